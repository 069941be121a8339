/* libcuda.so.1: addresses and memory apart, as expandable segments need them. From cuda.h. */
#include "driver.h"
#include "virtual_gpu.h"

#include <cuda.h>
#include <pthread.h>
#include <stdlib.h>

typedef struct {
    size_t nbytes;
    int device;
    int users; /* the handle itself, and each place it is mapped to */
} physical;

typedef struct mapping {
    uintptr_t start;
    size_t nbytes;
    physical *memory;
    struct mapping *next;
} mapping;

static mapping *mappings;
static pthread_mutex_t mapping_lock = PTHREAD_MUTEX_INITIALIZER;

EXPORT CUresult cuMemAddressReserve(CUdeviceptr *address, size_t nbytes, size_t alignment, CUdeviceptr wish,
                                    unsigned long long flags)
{
    (void)alignment, (void)wish, (void)flags;
    *address = vg_reserve(dr_current(), nbytes);
    return *address ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

EXPORT CUresult cuMemAddressFree(CUdeviceptr address, size_t nbytes)
{
    (void)nbytes;
    return cuMemFree(address);
}

EXPORT CUresult cuMemGetAllocationGranularity(size_t *nbytes, const CUmemAllocationProp *wish,
                                              CUmemAllocationGranularity_flags option)
{
    (void)wish, (void)option;
    *nbytes = VG_PAGE_BYTES;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t nbytes, const CUmemAllocationProp *wish,
                            unsigned long long flags)
{
    (void)flags;
    physical *memory = calloc(1, sizeof *memory);
    if (!memory || !vg_open(wish->location.id) || !vg_charge(wish->location.id, nbytes)) {
        free(memory);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *memory = (physical){.nbytes = nbytes, .device = wish->location.id, .users = 1};
    *handle = (CUmemGenericAllocationHandle)(uintptr_t)memory;
    return CUDA_SUCCESS;
}

static void leave(physical *memory)
{
    if (__sync_sub_and_fetch(&memory->users, 1))
        return;
    vg_discharge(memory->device, memory->nbytes);
    free(memory);
}

EXPORT CUresult cuMemRelease(CUmemGenericAllocationHandle handle)
{
    leave((physical *)(uintptr_t)handle);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemMap(CUdeviceptr address, size_t nbytes, size_t offset, CUmemGenericAllocationHandle handle,
                         unsigned long long flags)
{
    (void)offset, (void)flags;
    mapping *made = malloc(sizeof *made);
    if (!made)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *made = (mapping){.start = address, .nbytes = nbytes, .memory = (physical *)(uintptr_t)handle};
    __sync_add_and_fetch(&made->memory->users, 1);
    pthread_mutex_lock(&mapping_lock);
    made->next = mappings;
    mappings = made;
    pthread_mutex_unlock(&mapping_lock);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemUnmap(CUdeviceptr address, size_t nbytes)
{
    pthread_mutex_lock(&mapping_lock);
    for (mapping **link = &mappings; *link;) {
        mapping *it = *link;
        if (it->start < address || it->start >= address + nbytes) {
            link = &it->next;
            continue;
        }
        *link = it->next;
        leave(it->memory);
        free(it);
    }
    pthread_mutex_unlock(&mapping_lock);
    vg_drop_values(address, nbytes);
    return CUDA_SUCCESS;
}
