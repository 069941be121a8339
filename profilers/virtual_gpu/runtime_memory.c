/* libcudart.so: memory and copies. From cuda_runtime_api.h. */
#include "runtime.h"
#include "virtual_gpu.h"

#include <stdlib.h>
#include <string.h>

/* ---- memory ---- */

EXPORT cudaError_t cudaMalloc(void **address, size_t nbytes)
{
    *address = NULL;
    if (!nbytes)
        return cudaSuccess;
    CUdeviceptr made = 0;
    CUresult error = rt_enter();
    error = error ? error : cuMemAlloc(&made, nbytes);
    *address = (void *)(uintptr_t)made;
    return rt_result(error);
}

EXPORT cudaError_t cudaFree(void *address) { IN_CONTEXT(cuMemFree((CUdeviceptr)(uintptr_t)address)); }
EXPORT cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) { IN_CONTEXT(cuMemGetInfo(free_bytes, total)); }

EXPORT cudaError_t cudaHostAlloc(void **address, size_t nbytes, unsigned flags)
{
    IN_CONTEXT(cuMemHostAlloc(address, nbytes, flags));
}

EXPORT cudaError_t cudaMallocHost(void **address, size_t nbytes) { return cudaHostAlloc(address, nbytes, 0); }
EXPORT cudaError_t cudaFreeHost(void *address) { return rt_result(address ? cuMemFreeHost(address) : CUDA_SUCCESS); }

EXPORT cudaError_t cudaHostRegister(void *address, size_t nbytes, unsigned flags)
{
    IN_CONTEXT(cuMemHostRegister(address, nbytes, flags));
}

EXPORT cudaError_t cudaHostUnregister(void *address) { return rt_result(cuMemHostUnregister(address)); }

EXPORT cudaError_t cudaHostGetDevicePointer(void **address, void *host, unsigned flags)
{
    (void)flags;
    *address = host;
    return cudaSuccess;
}

EXPORT cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *it, const void *address)
{
    vg_range range;
    int on = vg_device_of((uintptr_t)address);
    bool host = on < 0 && vg_find((uintptr_t)address, &range);
    memset(it, 0, sizeof *it);
    it->type = on >= 0 ? cudaMemoryTypeDevice : host ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
    if (host && range.kind == VG_MANAGED)
        it->type = cudaMemoryTypeManaged;
    it->device = on >= 0 ? on : host ? 0 : cudaInvalidDeviceId;
    it->devicePointer = on >= 0 || host ? (void *)address : NULL;
    it->hostPointer = on < 0 ? (void *)address : NULL;
    return cudaSuccess;
}

/* A variable of a kernel library: a few bytes on each device that reads it, part of the context. */
EXPORT cudaError_t cudaGetSymbolAddress(void **address, const void *symbol)
{
    static struct variable {
        const void *symbol;
        int device;
        uintptr_t address;
        struct variable *next;
    } *first;
    CUresult error = rt_enter();
    for (struct variable *it = first; it && !error; it = it->next)
        if (it->symbol == symbol && it->device == rt_device()) {
            *address = (void *)it->address;
            return cudaSuccess;
        }
    struct variable *made = malloc(sizeof *made);
    if (error || !made)
        return rt_result(error ? error : CUDA_ERROR_OUT_OF_MEMORY);
    *made = (struct variable){symbol, rt_device(), vg_reserve(rt_device(), VG_PAGE_BYTES), first};
    first = made;
    *address = (void *)made->address;
    return cudaSuccess;
}

/* ---- copies ---- */

EXPORT cudaError_t cudaMemcpy(void *to, const void *from, size_t nbytes, enum cudaMemcpyKind kind)
{
    (void)kind; /* addresses tell */
    IN_CONTEXT(cuMemcpy((uintptr_t)to, (uintptr_t)from, nbytes));
}

EXPORT cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t nbytes, enum cudaMemcpyKind kind,
                                   cudaStream_t stream)
{
    (void)stream;
    return cudaMemcpy(to, from, nbytes, kind);
}

EXPORT cudaError_t cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device, size_t nbytes,
                                       cudaStream_t stream)
{
    (void)to_device, (void)from_device, (void)stream;
    return cudaMemcpy(to, from, nbytes, cudaMemcpyDefault);
}

EXPORT cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                                     size_t height, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    (void)kind, (void)stream;
    for (size_t row = 0; row < height; row++)
        vg_copy((uintptr_t)to + row * to_pitch, (uintptr_t)from + row * from_pitch, width);
    return cudaSuccess;
}

EXPORT cudaError_t cudaMemset(void *to, int value, size_t count)
{
    IN_CONTEXT(cuMemsetD8((uintptr_t)to, (unsigned char)value, count));
}

EXPORT cudaError_t cudaMemsetAsync(void *to, int value, size_t count, cudaStream_t stream)
{
    (void)stream;
    return cudaMemset(to, value, count);
}
