/* libcufft.so: plans, which have a size and compute nothing. From cufftXt.h.
 *
 * torch takes the work area from its own allocator (cufftSetAutoAllocation, cufftSetWorkArea). cuFFT tells how large it is
 * only to a process that has a GPU. The model: one copy of the transformed data in complex form, as published for
 * two-dimensional transforms (arrayfire/arrayfire#1443: 100 x 100k complex numbers ask for 80,000 k bytes); where a length
 * has a prime factor above 127, which cuFFT documents as Bluestein's algorithm, the data padded to the power of two above
 * twice the length. A plan keeps half a MiB of its own on the GPU, which is what 4,000 cached plans took in
 * pytorch/pytorch#94893.
 */
#include "virtual_gpu.h"

#include <cuda.h>
#include <cufftXt.h>
#include <pthread.h>
#include <stdlib.h>

#define PLAN_BYTES (VG_MIB / 2)
#define LARGEST_PRIME 127

typedef struct {
    bool used;
    uintptr_t own; /* what the plan keeps on the GPU */
    size_t work;
} plan;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static plan *plans; /* a handle is a place, plus 1 */
static int room;

static plan *plan_of(cufftHandle handle)
{
    return handle > 0 && handle <= room && plans[handle - 1].used ? &plans[handle - 1] : NULL;
}

EXPORT cufftResult cufftCreate(cufftHandle *handle)
{
    pthread_mutex_lock(&lock);
    int place = 0;
    while (place < room && plans[place].used)
        place++;
    if (place == room) {
        room = 2 * room + 64;
        plans = realloc(plans, (size_t)room * sizeof *plans);
        if (!plans)
            abort();
        for (int i = place; i < room; i++)
            plans[i] = (plan){0};
    }
    plans[place] = (plan){.used = true};
    pthread_mutex_unlock(&lock);
    *handle = place + 1;
    return CUFFT_SUCCESS;
}

EXPORT cufftResult cufftDestroy(cufftHandle handle)
{
    vg_range was;
    pthread_mutex_lock(&lock);
    plan *it = plan_of(handle);
    if (it && it->own)
        vg_forget(it->own, &was);
    if (it)
        it->used = false;
    pthread_mutex_unlock(&lock);
    return it ? CUFFT_SUCCESS : CUFFT_INVALID_PLAN;
}

/* ---- sizes ---- */

static size_t complex_bytes(cudaDataType type)
{
    switch ((int)type) {
    case CUDA_R_64F:
    case CUDA_C_64F:
        return 16;
    case CUDA_R_32F:
    case CUDA_C_32F:
        return 8;
    default:
        return 4; /* half, bfloat16 */
    }
}

static bool is_real(cudaDataType type)
{
    return type == CUDA_R_16F || type == CUDA_R_16BF || type == CUDA_R_32F || type == CUDA_R_64F;
}

static bool has_large_prime(long long length)
{
    for (long long prime = 2; prime <= LARGEST_PRIME; prime++)
        while (length % prime == 0)
            length /= prime;
    return length > 1;
}

/* Complex numbers that stand for one dimension. `half`: of real data, of which the second half is known. */
static size_t numbers(long long length, bool half)
{
    if (!has_large_prime(length))
        return (size_t)(half ? length / 2 + 1 : length);
    size_t padded = 1;
    while (padded < 2 * (size_t)length - 1)
        padded *= 2;
    return padded;
}

static size_t work_bytes(int rank, const long long *lengths, cudaDataType from, cudaDataType to, long long batch)
{
    size_t total = (size_t)batch * complex_bytes(from);
    for (int i = 0; i < rank; i++)
        total *= numbers(lengths[i], i == rank - 1 && (is_real(from) || is_real(to)));
    return total;
}

EXPORT cufftResult cufftXtMakePlanMany(cufftHandle handle, int rank, long long *lengths, long long *in_embed,
                                       long long in_stride, long long in_distance, cudaDataType from,
                                       long long *out_embed, long long out_stride, long long out_distance,
                                       cudaDataType to, long long batch, size_t *work, cudaDataType inside)
{
    (void)in_embed, (void)in_stride, (void)in_distance, (void)out_embed, (void)out_stride, (void)out_distance;
    (void)inside;
    plan *it = plan_of(handle);
    CUdevice device = 0;
    if (!it)
        return CUFFT_INVALID_PLAN;
    cuCtxGetDevice(&device);
    if (!vg_open(device) || !(it->own = vg_allocate(device, PLAN_BYTES)))
        return CUFFT_ALLOC_FAILED;
    it->work = vg_modelled(VG_FFT, work_bytes(rank, lengths, from, to, batch));
    if (work)
        *work = it->work;
    return CUFFT_SUCCESS;
}

EXPORT cufftResult cufftGetSize(cufftHandle handle, size_t *work)
{
    plan *it = plan_of(handle);
    *work = it ? it->work : 0;
    return it ? CUFFT_SUCCESS : CUFFT_INVALID_PLAN;
}

EXPORT cufftResult cufftGetVersion(int *version)
{
    *version = CUFFT_VERSION;
    return CUFFT_SUCCESS;
}
