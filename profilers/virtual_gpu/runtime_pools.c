/* libcudart.so: memory in the order of a stream, managed memory, memory of another process: the driver's. From
 * cuda_runtime_api.h.
 */
#include "runtime.h"
#include "virtual_gpu.h"

#include <string.h>

EXPORT cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device)
{
    return rt_result(cuDeviceGetDefaultMemPool(pool, device));
}

EXPORT cudaError_t cudaDeviceGetMemPool(cudaMemPool_t *pool, int device)
{
    return rt_result(cuDeviceGetDefaultMemPool(pool, device));
}

EXPORT cudaError_t cudaMallocAsync(void **address, size_t nbytes, cudaStream_t stream)
{
    *address = NULL;
    CUresult error = rt_enter();
    if (!error && nbytes)
        error = cuMemAllocAsync((CUdeviceptr *)address, nbytes, stream);
    return rt_result(error);
}

EXPORT cudaError_t cudaFreeAsync(void *address, cudaStream_t stream)
{
    IN_CONTEXT(cuMemFreeAsync((uintptr_t)address, stream));
}

EXPORT cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t kept) { return rt_result(cuMemPoolTrimTo(pool, kept)); }

EXPORT cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute, void *value)
{
    return rt_result(cuMemPoolGetAttribute(pool, (CUmemPool_attribute)attribute, value)); /* the same numbers */
}

EXPORT cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute, void *value)
{
    return rt_result(cuMemPoolSetAttribute(pool, (CUmemPool_attribute)attribute, value));
}

/* What graphs hold of pools: nothing. */
EXPORT cudaError_t cudaDeviceGetGraphMemAttribute(int device, enum cudaGraphMemAttributeType attribute, void *value)
{
    (void)device, (void)attribute;
    *(unsigned long long *)value = 0;
    return cudaSuccess;
}

EXPORT cudaError_t cudaMallocManaged(void **address, size_t nbytes, unsigned flags)
{
    IN_CONTEXT(cuMemAllocManaged((CUdeviceptr *)address, nbytes, flags));
}

EXPORT cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle, void *address)
{
    IN_CONTEXT(cuIpcGetMemHandle((CUipcMemHandle *)handle, (uintptr_t)address));
}

EXPORT cudaError_t cudaIpcOpenMemHandle(void **address, cudaIpcMemHandle_t handle, unsigned flags)
{
    CUipcMemHandle same;
    memcpy(&same, &handle, sizeof same);
    IN_CONTEXT(cuIpcOpenMemHandle((CUdeviceptr *)address, same, flags));
}

EXPORT cudaError_t cudaIpcCloseMemHandle(void *address) { IN_CONTEXT(cuIpcCloseMemHandle((uintptr_t)address)); }

EXPORT cudaError_t cudaIpcGetEventHandle(cudaIpcEventHandle_t *handle, cudaEvent_t event)
{
    return rt_result(cuIpcGetEventHandle((CUipcEventHandle *)handle, event));
}

EXPORT cudaError_t cudaIpcOpenEventHandle(cudaEvent_t *event, cudaIpcEventHandle_t handle)
{
    CUipcEventHandle same;
    memcpy(&same, &handle, sizeof same);
    IN_CONTEXT(cuIpcOpenEventHandle(event, same));
}
