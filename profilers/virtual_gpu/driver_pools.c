/* libcuda.so.1: memory in the order of a stream (cuMemAllocAsync), memory that host and GPU share, memory of another
 * process. From cuda.h.
 *
 * A pool keeps what is freed to it, so it has reserved as much as was ever in use since it was last trimmed. How the real
 * pool cuts its memory into pieces is not documented, and its loss to them not counted.
 */
#include "driver.h"
#include "virtual_gpu.h"

#include <cuda.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define GRANULE_BYTES ((size_t)512)

struct CUmemPoolHandle_st {
    cuuint64_t reserved, reserved_high, used, used_high, threshold;
    int reuse[4];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct CUmemPoolHandle_st pools[VG_MAX_DEVICES];
static size_t managed;

/* ---- pools ---- */

EXPORT CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *pool, CUdevice device)
{
    *pool = device >= 0 && device < vg_device_count() ? &pools[device] : NULL;
    return *pool ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

EXPORT CUresult cuDeviceGetMemPool(CUmemoryPool *pool, CUdevice device) { return cuDeviceGetDefaultMemPool(pool, device); }

static void count(CUmemoryPool pool, cuuint64_t used)
{
    pool->used = used;
    pool->used_high = used > pool->used_high ? used : pool->used_high;
    pool->reserved = used > pool->reserved ? used : pool->reserved;
    pool->reserved_high = pool->reserved > pool->reserved_high ? pool->reserved : pool->reserved_high;
}

static size_t granules(size_t nbytes) { return (nbytes + GRANULE_BYTES - 1) / GRANULE_BYTES * GRANULE_BYTES; }

EXPORT CUresult cuMemAllocAsync(CUdeviceptr *address, size_t nbytes, CUstream stream)
{
    (void)stream;
    CUresult error = cuMemAlloc(address, nbytes);
    pthread_mutex_lock(&lock);
    if (!error)
        count(&pools[dr_current()], pools[dr_current()].used + granules(nbytes));
    pthread_mutex_unlock(&lock);
    return error;
}

EXPORT CUresult cuMemFreeAsync(CUdeviceptr address, CUstream stream)
{
    (void)stream;
    vg_range was;
    if (!address)
        return CUDA_SUCCESS;
    if (!vg_forget(address, &was))
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&lock);
    count(&pools[was.device], pools[was.device].used - granules(was.nbytes));
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t kept)
{
    pool->reserved = pool->used > kept ? pool->used : pool->reserved < kept ? pool->reserved : kept;
    return CUDA_SUCCESS;
}

static cuuint64_t *counter(CUmemoryPool pool, CUmemPool_attribute attribute)
{
    switch ((int)attribute) {
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
        return &pool->threshold;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT:
        return &pool->reserved;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
        return &pool->reserved_high;
    case CU_MEMPOOL_ATTR_USED_MEM_CURRENT:
        return &pool->used;
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
        return &pool->used_high;
    }
    return NULL;
}

EXPORT CUresult cuMemPoolGetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute, void *value)
{
    if (counter(pool, attribute))
        *(cuuint64_t *)value = *counter(pool, attribute);
    else if ((int)attribute > 0 && (int)attribute < 4)
        *(int *)value = pool->reuse[attribute];
    else
        return vg_unreviewed("cuMemPoolGetAttribute of an unusual attribute");
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute, void *value)
{
    if (attribute == CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH)
        pool->reserved_high = pool->reserved; /* a high mark can be set to 0 alone: it begins anew */
    else if (attribute == CU_MEMPOOL_ATTR_USED_MEM_HIGH)
        pool->used_high = pool->used;
    else if (counter(pool, attribute))
        *counter(pool, attribute) = *(cuuint64_t *)value;
    else if ((int)attribute > 0 && (int)attribute < 4)
        pool->reuse[attribute] = *(int *)value;
    return CUDA_SUCCESS;
}

/* ---- managed memory: it lies on the host, and may move to the GPU whole: vg_modelled counts the most at one time ---- */

EXPORT CUresult cuMemAllocManaged(CUdeviceptr *address, size_t nbytes, unsigned flags)
{
    (void)flags;
    int how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *made = nbytes ? mmap(NULL, nbytes, PROT_READ | PROT_WRITE, how, -1, 0) : MAP_FAILED;
    if (made == MAP_FAILED)
        return nbytes ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_INVALID_VALUE;
    *address = (uintptr_t)made;
    vg_track((vg_range){.start = *address, .nbytes = nbytes, .kind = VG_MANAGED, .device = -1, .page = -1});
    vg_modelled(VG_MANAGED_BYTES, __sync_add_and_fetch(&managed, nbytes));
    return CUDA_SUCCESS;
}

void dr_free_managed(const vg_range *range)
{
    munmap((void *)range->start, range->nbytes);
    __sync_sub_and_fetch(&managed, range->nbytes);
}

/* ---- memory and events of another process: addresses for them here, their bytes belong to it ---- */

typedef struct {
    uintptr_t start;
    size_t nbytes;
    int device, process;
} shared;

EXPORT CUresult cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr address)
{
    vg_range range;
    if (!vg_find(address, &range) || range.kind != VG_DEVICE_MEMORY)
        return CUDA_ERROR_INVALID_VALUE;
    shared told = {range.start, range.nbytes, vg_present_index(range.device), (int)getpid()};
    memset(handle, 0, sizeof *handle);
    memcpy(handle, &told, sizeof told);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuIpcOpenMemHandle(CUdeviceptr *address, CUipcMemHandle handle, unsigned flags)
{
    (void)flags;
    shared told;
    memcpy(&told, &handle, sizeof told);
    int device = vg_visible_index(told.device);
    if (told.process == (int)getpid() || device < 0)
        return CUDA_ERROR_INVALID_VALUE;
    *address = vg_reserve(device, told.nbytes);
    return *address ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

EXPORT CUresult cuIpcCloseMemHandle(CUdeviceptr address) { return cuMemFree(address); }

EXPORT CUresult cuIpcGetEventHandle(CUipcEventHandle *handle, CUevent event)
{
    (void)event; /* whoever waits for it finds it over */
    memset(handle, 0, sizeof *handle);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuIpcOpenEventHandle(CUevent *event, CUipcEventHandle handle)
{
    (void)handle;
    return cuEventCreate(event, CU_EVENT_DISABLE_TIMING);
}
