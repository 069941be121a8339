/* libcuda.so.1: device memory, host memory, what an address is, copies and memsets. From cuda.h. */
#include "driver.h"
#include "virtual_gpu.h"

#include <cuda.h>
#include <sys/mman.h>

/* ---- device memory ---- */

EXPORT CUresult cuMemGetInfo(size_t *free_bytes, size_t *total)
{
    *total = vg_total_bytes();
    *free_bytes = *total - vg_used_bytes(dr_current());
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemAlloc(CUdeviceptr *address, size_t nbytes)
{
    if (!nbytes)
        return CUDA_ERROR_INVALID_VALUE;
    *address = vg_allocate(dr_current(), nbytes);
    return *address ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

EXPORT CUresult cuMemFree(CUdeviceptr address)
{
    vg_range range;
    if (!address)
        return CUDA_SUCCESS;
    vg_finish(dr_current(), vg_last_put(dr_current())); /* it waits for all that may still use the memory */
    if (!vg_forget(address, &range))
        return CUDA_ERROR_INVALID_VALUE;
    if (range.kind == VG_MANAGED)
        dr_free_managed(&range);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemGetAddressRange(CUdeviceptr *start, size_t *nbytes, CUdeviceptr address)
{
    vg_range range;
    if (!vg_find(address, &range))
        return CUDA_ERROR_NOT_FOUND;
    if (start)
        *start = range.start;
    if (nbytes)
        *nbytes = range.nbytes;
    return CUDA_SUCCESS;
}

/* ---- host memory ---- */

EXPORT CUresult cuMemHostAlloc(void **address, size_t nbytes, unsigned flags)
{
    (void)flags;
    *address = mmap(NULL, nbytes ? nbytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (*address == MAP_FAILED)
        return CUDA_ERROR_OUT_OF_MEMORY;
    vg_track((vg_range){
        .start = (uintptr_t)*address, .nbytes = nbytes ? nbytes : 1, .kind = VG_HOST_MEMORY, .device = -1, .page = -1});
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemAllocHost(void **address, size_t nbytes) { return cuMemHostAlloc(address, nbytes, 0); }

EXPORT CUresult cuMemFreeHost(void *address)
{
    vg_range range;
    if (!vg_forget((uintptr_t)address, &range))
        return CUDA_ERROR_INVALID_VALUE;
    munmap(address, range.nbytes);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemHostRegister(void *address, size_t nbytes, unsigned flags)
{
    (void)flags;
    vg_track((vg_range){
        .start = (uintptr_t)address, .nbytes = nbytes, .kind = VG_REGISTERED, .device = -1, .page = -1});
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemHostUnregister(void *address)
{
    vg_range range;
    return vg_forget((uintptr_t)address, &range) ? CUDA_SUCCESS : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
}

EXPORT CUresult cuMemHostGetDevicePointer(CUdeviceptr *address, void *host, unsigned flags)
{
    (void)flags;
    *address = (CUdeviceptr)(uintptr_t)host;
    return CUDA_SUCCESS;
}

/* ---- what an address is ---- */

EXPORT CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr address)
{
    vg_range range = {.start = address, .device = -1};
    int device = vg_device_of(address);
    if (!vg_find(address, &range) && device < 0)
        return CUDA_ERROR_INVALID_VALUE;
    switch ((int)attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
        return cuDevicePrimaryCtxRetain(value, device < 0 ? dr_current() : device);
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *(unsigned *)value = device < 0 ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
        *(CUdeviceptr *)value = address;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
        *(uintptr_t *)value = device < 0 ? (uintptr_t)address : 0;
        return device < 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
        *(unsigned *)value = range.kind == VG_MANAGED;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
        *(unsigned *)value = 0;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
        *(unsigned long long *)value = range.start;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        *(int *)value = device < 0 ? dr_current() : device;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
        *(CUdeviceptr *)value = range.start;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
        *(size_t *)value = range.nbytes;
        return CUDA_SUCCESS;
    }
    return vg_unreviewed("cuPointerGetAttribute of an unusual attribute");
}

/* ---- copies and memsets ---- */

EXPORT CUresult cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t nbytes)
{
    vg_copy(to, from, nbytes);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t nbytes, CUstream stream)
{
    (void)stream;
    return cuMemcpy(to, from, nbytes);
}

EXPORT CUresult cuMemcpyDtoH(void *to, CUdeviceptr from, size_t nbytes) { return cuMemcpy((uintptr_t)to, from, nbytes); }

EXPORT CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t nbytes, CUstream stream)
{
    return cuMemcpyAsync((uintptr_t)to, from, nbytes, stream);
}

EXPORT CUresult cuMemcpyHtoD(CUdeviceptr to, const void *from, size_t nbytes)
{
    return cuMemcpy(to, (uintptr_t)from, nbytes);
}

EXPORT CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t nbytes, CUstream stream)
{
    return cuMemcpyAsync(to, (uintptr_t)from, nbytes, stream);
}

EXPORT CUresult cuMemsetD8(CUdeviceptr to, unsigned char value, size_t count)
{
    vg_fill(to, value, 1, count);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream stream)
{
    (void)stream;
    return cuMemsetD8(to, value, count);
}

EXPORT CUresult cuMemsetD32(CUdeviceptr to, unsigned value, size_t count)
{
    vg_fill(to, value, 4, count);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, CUstream stream)
{
    (void)stream;
    return cuMemsetD32(to, value, count);
}
