/* libcuda.so.1, first half: initialization, devices, contexts, memory, copies. From the public cuda.h alone.
 *
 * Names are the plain ones; cuda.h renames them to the newest version of each (cuMemAlloc -> cuMemAlloc_v2).
 */
#include "virtual_gpu.h"

#include <cuda.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define MAX_CONTEXT_DEPTH 16

struct CUctx_st {
    int device;
};

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

static struct CUctx_st contexts[VG_MAX_DEVICES];
static __thread CUcontext stack[MAX_CONTEXT_DEPTH];
static __thread int depth;
static mapping *mappings;
static pthread_mutex_t mapping_lock = PTHREAD_MUTEX_INITIALIZER;

static bool is_device(CUdevice device) { return device >= 0 && device < vg_device_count(); }

/* ---- initialization and devices ---- */

EXPORT CUresult cuInit(unsigned flags)
{
    (void)flags;
    return vg_device_count() ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

EXPORT CUresult cuDriverGetVersion(int *version)
{
    *version = CUDA_VERSION;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetCount(int *count)
{
    *count = vg_device_count();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
    *device = ordinal;
    return is_device(ordinal) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

EXPORT CUresult cuDeviceGetName(char *name, int length, CUdevice device)
{
    snprintf(name, (size_t)length, "%s", vg_device_name());
    return is_device(device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

EXPORT CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device)
{
    vg_uuid(vg_present_index(device), uuid->bytes);
    return is_device(device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

EXPORT CUresult cuDeviceTotalMem(size_t *nbytes, CUdevice device)
{
    *nbytes = vg_total_bytes();
    return is_device(device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

EXPORT CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device)
{
    *value = vg_attribute((int)attribute, device);
    return is_device(device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

EXPORT CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice device)
{
    *major = vg_attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device);
    *minor = vg_attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device);
    return is_device(device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

EXPORT CUresult cuDeviceGetPCIBusId(char *text, int length, CUdevice device)
{
    snprintf(text, (size_t)length, "00000000:%02X:00.0", vg_present_index(device) + 1);
    return is_device(device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

EXPORT CUresult cuDeviceGetByPCIBusId(CUdevice *device, const char *text)
{
    unsigned domain = 0, bus = 0;
    if (sscanf(text, "%x:%x", &domain, &bus) != 2)
        return CUDA_ERROR_INVALID_VALUE;
    *device = vg_visible_index((int)bus - 1);
    return is_device(*device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

EXPORT CUresult cuDeviceCanAccessPeer(int *can, CUdevice from, CUdevice to)
{
    *can = from != to && vg_peers();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetP2PAttribute(int *value, CUdevice_P2PAttribute attribute, CUdevice from, CUdevice to)
{
    *value = from != to && vg_peers() && attribute != CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK;
    return CUDA_SUCCESS;
}

/* ---- contexts: the primary one of each device ---- */

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
    if (!is_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    if (!vg_open(device))
        return CUDA_ERROR_OUT_OF_MEMORY;
    contexts[device].device = device;
    *context = &contexts[device];
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRelease(CUdevice device)
{
    return is_device(device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active)
{
    if (!is_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *flags = 0;
    *active = vg_is_open(device);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetCurrent(CUcontext *context)
{
    *context = depth ? stack[depth - 1] : NULL;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxSetCurrent(CUcontext context)
{
    depth = depth ? depth : 1;
    stack[depth - 1] = context;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxPushCurrent(CUcontext context)
{
    if (depth == MAX_CONTEXT_DEPTH)
        return CUDA_ERROR_INVALID_VALUE;
    stack[depth++] = context;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxPopCurrent(CUcontext *context)
{
    if (!depth)
        return CUDA_ERROR_INVALID_CONTEXT;
    depth--;
    if (context)
        *context = stack[depth];
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetDevice(CUdevice *device)
{
    if (!depth || !stack[depth - 1])
        return CUDA_ERROR_INVALID_CONTEXT;
    *device = stack[depth - 1]->device;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
    if (least)
        *least = 0;
    if (greatest)
        *greatest = -5;
    return CUDA_SUCCESS;
}

/* Device of the current context; 0 where there is none yet. */
static int current(void) { return depth && stack[depth - 1] ? stack[depth - 1]->device : 0; }

/* ---- device memory ---- */

EXPORT CUresult cuMemGetInfo(size_t *free_bytes, size_t *total)
{
    *total = vg_total_bytes();
    *free_bytes = *total - vg_used_bytes(current());
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemAlloc(CUdeviceptr *address, size_t nbytes)
{
    if (!nbytes)
        return CUDA_ERROR_INVALID_VALUE;
    *address = vg_allocate(current(), nbytes);
    return *address ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

EXPORT CUresult cuMemFree(CUdeviceptr address)
{
    vg_range range;
    return !address || vg_forget(address, &range) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
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

/* ---- addresses and memory apart (expandable segments) ---- */

EXPORT CUresult cuMemAddressReserve(CUdeviceptr *address, size_t nbytes, size_t alignment, CUdeviceptr wish,
                                    unsigned long long flags)
{
    (void)alignment, (void)wish, (void)flags;
    *address = vg_reserve(current(), nbytes);
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
        return cuDevicePrimaryCtxRetain(value, device < 0 ? current() : device);
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *(unsigned *)value = device < 0 ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
        *(CUdeviceptr *)value = address;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
        *(uintptr_t *)value = device < 0 ? (uintptr_t)address : 0;
        return device < 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
        *(unsigned *)value = 0;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
        *(unsigned long long *)value = range.start;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        *(int *)value = device < 0 ? current() : device;
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
