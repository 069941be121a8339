/* libcudart.so: errors, devices, and the way to the driver, on top of which the runtime is. From cuda_runtime_api.h.
 *
 * Each thread has a current device; whatever needs memory or runs makes its primary context current, as CUDA's own does.
 */
#include "runtime.h"
#include "virtual_gpu.h"

#include <string.h>

static __thread int device;
static __thread cudaError_t last_error;

/* ---- errors ---- */

static const struct {
    CUresult from;
    cudaError_t to;
    const char *name, *text;
} ERRORS[] = {
    {CUDA_SUCCESS, cudaSuccess, "cudaSuccess", "no error"},
    {CUDA_ERROR_INVALID_VALUE, cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {CUDA_ERROR_NO_DEVICE, cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {CUDA_ERROR_INVALID_DEVICE, cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, cudaErrorHostMemoryNotRegistered, "cudaErrorHostMemoryNotRegistered",
     "part or all of the requested memory range is not mapped"},
    {CUDA_ERROR_NOT_READY, cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {CUDA_ERROR_ILLEGAL_STATE, cudaErrorIllegalState, "cudaErrorIllegalState",
     "the operation cannot be performed in the present state"},
};
enum { ERROR_COUNT = sizeof ERRORS / sizeof *ERRORS };

cudaError_t rt_result(CUresult from)
{
    cudaError_t error = cudaErrorInvalidValue;
    for (int i = 0; i < ERROR_COUNT; i++)
        if (ERRORS[i].from == from)
            error = ERRORS[i].to;
    if (error)
        last_error = error;
    return error;
}

EXPORT cudaError_t cudaGetLastError(void)
{
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

EXPORT cudaError_t cudaPeekAtLastError(void) { return last_error; }

EXPORT const char *cudaGetErrorName(cudaError_t error)
{
    for (int i = 0; i < ERROR_COUNT; i++)
        if (ERRORS[i].to == error)
            return ERRORS[i].name;
    return "cudaErrorUnknown";
}

EXPORT const char *cudaGetErrorString(cudaError_t error)
{
    for (int i = 0; i < ERROR_COUNT; i++)
        if (ERRORS[i].to == error)
            return ERRORS[i].text;
    return "unknown error";
}

/* ---- devices ---- */

int rt_device(void) { return device; }

CUresult rt_enter(void)
{
    CUcontext wanted = NULL, current = NULL;
    CUresult error = vg_device_count() ? cuDevicePrimaryCtxRetain(&wanted, device) : CUDA_ERROR_NO_DEVICE;
    if (error)
        return error;
    cuCtxGetCurrent(&current);
    return current == wanted ? CUDA_SUCCESS : cuCtxSetCurrent(wanted);
}

EXPORT cudaError_t cudaGetDeviceCount(int *count)
{
    *count = vg_device_count();
    return rt_result(*count ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE);
}

EXPORT cudaError_t cudaGetDevice(int *current)
{
    *current = device;
    return rt_result(vg_device_count() ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE);
}

EXPORT cudaError_t cudaSetDevice(int wanted)
{
    if (wanted < 0 || wanted >= vg_device_count())
        return rt_result(CUDA_ERROR_INVALID_DEVICE);
    device = wanted;
    return rt_result(rt_enter());
}

EXPORT cudaError_t cudaDriverGetVersion(int *version) { return rt_result(cuDriverGetVersion(version)); }

EXPORT cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceSynchronize(void)
{
    IN_CONTEXT(cuCtxSynchronize());
}

EXPORT cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int which)
{
    return rt_result(cuDeviceGetAttribute(value, (CUdevice_attribute)attribute, which)); /* the same numbers */
}

EXPORT cudaError_t cudaDeviceGetPCIBusId(char *text, int length, int which)
{
    return rt_result(cuDeviceGetPCIBusId(text, length, which));
}

EXPORT cudaError_t cudaDeviceGetByPCIBusId(int *which, const char *text)
{
    return rt_result(cuDeviceGetByPCIBusId(which, text));
}

EXPORT cudaError_t cudaDeviceCanAccessPeer(int *can, int from, int to)
{
    return rt_result(cuDeviceCanAccessPeer(can, from, to));
}

EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    return rt_result(cuCtxGetStreamPriorityRange(least, greatest));
}

#define ATTRIBUTE(name) vg_attribute(CU_DEVICE_ATTRIBUTE_##name, which)

static void describe_limits(struct cudaDeviceProp *it, int which)
{
    it->sharedMemPerBlock = (size_t)ATTRIBUTE(MAX_SHARED_MEMORY_PER_BLOCK);
    it->sharedMemPerBlockOptin = (size_t)ATTRIBUTE(MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
    it->sharedMemPerMultiprocessor = (size_t)ATTRIBUTE(MAX_SHARED_MEMORY_PER_MULTIPROCESSOR);
    it->reservedSharedMemPerBlock = (size_t)ATTRIBUTE(RESERVED_SHARED_MEMORY_PER_BLOCK);
    it->regsPerBlock = ATTRIBUTE(MAX_REGISTERS_PER_BLOCK);
    it->regsPerMultiprocessor = ATTRIBUTE(MAX_REGISTERS_PER_MULTIPROCESSOR);
    it->warpSize = ATTRIBUTE(WARP_SIZE);
    it->maxThreadsPerBlock = ATTRIBUTE(MAX_THREADS_PER_BLOCK);
    it->maxThreadsPerMultiProcessor = ATTRIBUTE(MAX_THREADS_PER_MULTIPROCESSOR);
    it->maxBlocksPerMultiProcessor = ATTRIBUTE(MAX_BLOCKS_PER_MULTIPROCESSOR);
    it->multiProcessorCount = ATTRIBUTE(MULTIPROCESSOR_COUNT);
    it->maxThreadsDim[0] = ATTRIBUTE(MAX_BLOCK_DIM_X);
    it->maxThreadsDim[1] = ATTRIBUTE(MAX_BLOCK_DIM_Y);
    it->maxThreadsDim[2] = ATTRIBUTE(MAX_BLOCK_DIM_Z);
    it->maxGridSize[0] = ATTRIBUTE(MAX_GRID_DIM_X);
    it->maxGridSize[1] = ATTRIBUTE(MAX_GRID_DIM_Y);
    it->maxGridSize[2] = ATTRIBUTE(MAX_GRID_DIM_Z);
    it->maxTexture1D = ATTRIBUTE(MAXIMUM_TEXTURE1D_WIDTH);
    it->textureAlignment = (size_t)ATTRIBUTE(TEXTURE_ALIGNMENT);
    it->texturePitchAlignment = (size_t)ATTRIBUTE(TEXTURE_PITCH_ALIGNMENT);
    it->surfaceAlignment = (size_t)ATTRIBUTE(SURFACE_ALIGNMENT);
    it->memPitch = (size_t)ATTRIBUTE(MAX_PITCH);
    it->totalConstMem = (size_t)ATTRIBUTE(TOTAL_CONSTANT_MEMORY);
}

EXPORT cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *it, int which)
{
    memset(it, 0, sizeof *it);
    CUresult error = cuDeviceGetName(it->name, sizeof it->name, which);
    if (error)
        return rt_result(error);
    vg_uuid(vg_present_index(which), it->uuid.bytes);
    it->totalGlobalMem = vg_total_bytes();
    it->major = ATTRIBUTE(COMPUTE_CAPABILITY_MAJOR);
    it->minor = ATTRIBUTE(COMPUTE_CAPABILITY_MINOR);
    describe_limits(it, which);
    it->l2CacheSize = ATTRIBUTE(L2_CACHE_SIZE);
    it->persistingL2CacheMaxSize = ATTRIBUTE(MAX_PERSISTING_L2_CACHE_SIZE);
    it->accessPolicyMaxWindowSize = ATTRIBUTE(MAX_ACCESS_POLICY_WINDOW_SIZE);
    it->memoryBusWidth = ATTRIBUTE(GLOBAL_MEMORY_BUS_WIDTH);
    it->ECCEnabled = ATTRIBUTE(ECC_ENABLED);
    it->pciBusID = ATTRIBUTE(PCI_BUS_ID);
    it->asyncEngineCount = ATTRIBUTE(ASYNC_ENGINE_COUNT);
    it->canMapHostMemory = ATTRIBUTE(CAN_MAP_HOST_MEMORY);
    it->concurrentKernels = ATTRIBUTE(CONCURRENT_KERNELS);
    it->unifiedAddressing = ATTRIBUTE(UNIFIED_ADDRESSING);
    it->streamPrioritiesSupported = ATTRIBUTE(STREAM_PRIORITIES_SUPPORTED);
    it->globalL1CacheSupported = ATTRIBUTE(GLOBAL_L1_CACHE_SUPPORTED);
    it->localL1CacheSupported = ATTRIBUTE(LOCAL_L1_CACHE_SUPPORTED);
    it->managedMemory = ATTRIBUTE(MANAGED_MEMORY);
    it->concurrentManagedAccess = ATTRIBUTE(CONCURRENT_MANAGED_ACCESS);
    it->computePreemptionSupported = ATTRIBUTE(COMPUTE_PREEMPTION_SUPPORTED);
    it->cooperativeLaunch = ATTRIBUTE(COOPERATIVE_LAUNCH);
    it->hostRegisterSupported = ATTRIBUTE(HOST_REGISTER_SUPPORTED);
    it->memoryPoolsSupported = ATTRIBUTE(MEMORY_POOLS_SUPPORTED);
    it->clusterLaunch = ATTRIBUTE(CLUSTER_LAUNCH);
    return cudaSuccess;
}

/* ---- the driver's own functions ---- */

EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                                    unsigned long long flags,
                                                    enum cudaDriverEntryPointQueryResult *status)
{
    CUdriverProcAddressQueryResult found;
    cuGetProcAddress(name, function, (int)version, flags, &found);
    if (status)
        *status = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

#if CUDART_VERSION < 13000
EXPORT cudaError_t cudaGetDriverEntryPoint(const char *name, void **function, unsigned long long flags,
                                           enum cudaDriverEntryPointQueryResult *status)
{
    return cudaGetDriverEntryPointByVersion(name, function, CUDART_VERSION, flags, status);
}
#endif
