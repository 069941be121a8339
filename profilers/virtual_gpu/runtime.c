/* libcudart.so: the runtime on top of the driver beside it. From the public cuda_runtime_api.h.
 *
 * Each thread has a current device; whatever needs memory or runs makes its primary context current, as CUDA's own does.
 */
#include "virtual_gpu.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PUSHED 8

static __thread int device;
static __thread cudaError_t last_error;
static __thread struct {
    dim3 grid, block;
    size_t shared_bytes;
    void *stream;
} pushed[MAX_PUSHED];
static __thread int pushed_count;

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
    {CUDA_ERROR_ILLEGAL_STATE, cudaErrorIllegalState, "cudaErrorIllegalState",
     "the operation cannot be performed in the present state"},
};
enum { ERROR_COUNT = sizeof ERRORS / sizeof *ERRORS };

static cudaError_t result(CUresult from)
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

/* Make the context of the thread's device current; it appears with the first call that needs it. */
static CUresult enter(void)
{
    CUcontext wanted = NULL, current = NULL;
    CUresult error = vg_device_count() ? cuDevicePrimaryCtxRetain(&wanted, device) : CUDA_ERROR_NO_DEVICE;
    if (error)
        return error;
    cuCtxGetCurrent(&current);
    return current == wanted ? CUDA_SUCCESS : cuCtxSetCurrent(wanted);
}

/* The result of `call`, made in the context. */
#define IN_CONTEXT(call)                                                                                             \
    do {                                                                                                             \
        CUresult failure = enter();                                                                                  \
        return result(failure ? failure : (call));                                                                   \
    } while (0)

EXPORT cudaError_t cudaGetDeviceCount(int *count)
{
    *count = vg_device_count();
    return result(*count ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE);
}

EXPORT cudaError_t cudaGetDevice(int *current)
{
    *current = device;
    return result(vg_device_count() ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE);
}

EXPORT cudaError_t cudaSetDevice(int wanted)
{
    if (wanted < 0 || wanted >= vg_device_count())
        return result(CUDA_ERROR_INVALID_DEVICE);
    device = wanted;
    return result(enter());
}

EXPORT cudaError_t cudaDriverGetVersion(int *version) { return result(cuDriverGetVersion(version)); }

EXPORT cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceSynchronize(void) { return result(enter()); }

EXPORT cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int which)
{
    return result(cuDeviceGetAttribute(value, (CUdevice_attribute)attribute, which)); /* the same numbers */
}

EXPORT cudaError_t cudaDeviceGetPCIBusId(char *text, int length, int which)
{
    return result(cuDeviceGetPCIBusId(text, length, which));
}

EXPORT cudaError_t cudaDeviceGetByPCIBusId(int *which, const char *text)
{
    return result(cuDeviceGetByPCIBusId(which, text));
}

EXPORT cudaError_t cudaDeviceCanAccessPeer(int *can, int from, int to)
{
    return result(cuDeviceCanAccessPeer(can, from, to));
}

EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    return result(cuCtxGetStreamPriorityRange(least, greatest));
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
        return result(error);
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

/* ---- memory ---- */

EXPORT cudaError_t cudaMalloc(void **address, size_t nbytes)
{
    *address = NULL;
    if (!nbytes)
        return cudaSuccess;
    CUdeviceptr made = 0;
    CUresult error = enter();
    error = error ? error : cuMemAlloc(&made, nbytes);
    *address = (void *)(uintptr_t)made;
    return result(error);
}

EXPORT cudaError_t cudaFree(void *address) { IN_CONTEXT(cuMemFree((CUdeviceptr)(uintptr_t)address)); }
EXPORT cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) { IN_CONTEXT(cuMemGetInfo(free_bytes, total)); }

EXPORT cudaError_t cudaHostAlloc(void **address, size_t nbytes, unsigned flags)
{
    IN_CONTEXT(cuMemHostAlloc(address, nbytes, flags));
}

EXPORT cudaError_t cudaMallocHost(void **address, size_t nbytes) { return cudaHostAlloc(address, nbytes, 0); }
EXPORT cudaError_t cudaFreeHost(void *address) { return result(address ? cuMemFreeHost(address) : CUDA_SUCCESS); }

EXPORT cudaError_t cudaHostRegister(void *address, size_t nbytes, unsigned flags)
{
    IN_CONTEXT(cuMemHostRegister(address, nbytes, flags));
}

EXPORT cudaError_t cudaHostUnregister(void *address) { return result(cuMemHostUnregister(address)); }

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
    CUresult error = enter();
    for (struct variable *it = first; it && !error; it = it->next)
        if (it->symbol == symbol && it->device == device) {
            *address = (void *)it->address;
            return cudaSuccess;
        }
    struct variable *made = malloc(sizeof *made);
    if (error || !made)
        return result(error ? error : CUDA_ERROR_OUT_OF_MEMORY);
    *made = (struct variable){symbol, device, vg_reserve(device, VG_PAGE_BYTES), first};
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

/* ---- streams, events, graphs ---- */

EXPORT cudaError_t cudaStreamCreate(cudaStream_t *stream) { IN_CONTEXT(cuStreamCreate(stream, 0)); }

EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    IN_CONTEXT(cuStreamCreate(stream, flags));
}

EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority)
{
    IN_CONTEXT(cuStreamCreateWithPriority(stream, flags, priority));
}

EXPORT cudaError_t cudaStreamDestroy(cudaStream_t stream) { return result(cuStreamDestroy(stream)); }

EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority)
{
    IN_CONTEXT(cuStreamGetPriority(stream, priority));
}

EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    IN_CONTEXT(cuStreamWaitEvent(stream, event, flags));
}

EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *argument)
{
    IN_CONTEXT(cuLaunchHostFunc(stream, function, argument));
}

EXPORT cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t function, void *argument,
                                         unsigned flags)
{
    (void)flags;
    function(stream, cudaSuccess, argument);
    return cudaSuccess;
}

EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    IN_CONTEXT(cuEventCreate(event, flags));
}

EXPORT cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t event) { return result(cuEventDestroy(event)); }
EXPORT cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { IN_CONTEXT(cuEventRecord(event, stream)); }

EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags)
{
    (void)flags;
    return cudaEventRecord(event, stream);
}

EXPORT cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to)
{
    return result(cuEventElapsedTime(milliseconds, from, to));
}

EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    IN_CONTEXT(cuStreamBeginCapture(stream, (CUstreamCaptureMode)mode));
}

EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    IN_CONTEXT(cuStreamEndCapture(stream, graph));
}

EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status)
{
    IN_CONTEXT(cuStreamIsCapturing(stream, (CUstreamCaptureStatus *)status));
}

CUresult vg_capture_info(CUstream stream, CUstreamCaptureStatus *status, cuuint64_t *id, CUgraph *graph);

#if CUDART_VERSION >= 13000
EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                            unsigned long long *id, cudaGraph_t *graph, const cudaGraphNode_t **nodes,
                                            const cudaGraphEdgeData **edges, size_t *count)
{
    if (edges)
        *edges = NULL;
#else
EXPORT cudaError_t cudaStreamGetCaptureInfo_v2(cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                               unsigned long long *id, cudaGraph_t *graph,
                                               const cudaGraphNode_t **nodes, size_t *count)
{
#endif
    if (nodes)
        *nodes = NULL;
    if (count)
        *count = 0;
    IN_CONTEXT(vg_capture_info(stream, (CUstreamCaptureStatus *)status, (cuuint64_t *)id, graph));
}

EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode)
{
    return result(cuThreadExchangeStreamCaptureMode((CUstreamCaptureMode *)mode));
}

EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count)
{
    return result(cuGraphGetNodes(graph, nodes, count));
}

EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags)
{
    return result(cuGraphInstantiateWithFlags(made, graph, flags));
}

EXPORT cudaError_t cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags)
{
    return result(cuGraphInstantiateWithFlags(made, graph, flags));
}

EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) { IN_CONTEXT(cuGraphLaunch(graph, stream)); }
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return result(cuGraphExecDestroy(graph)); }
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return result(cuGraphDestroy(graph)); }

/* An object that a graph keeps alive: it is released with the graph, which here means never. */
EXPORT cudaError_t cudaUserObjectCreate(cudaUserObject_t *object, void *pointer, cudaHostFn_t destroy, unsigned count,
                                        unsigned flags)
{
    (void)destroy, (void)count, (void)flags;
    *object = pointer;
    return cudaSuccess;
}

/* ---- kernels ---- */

static cudaError_t launch(void)
{
    vg_ran();
    return result(enter());
}

EXPORT cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared_bytes,
                                    cudaStream_t stream)
{
    (void)kernel, (void)grid, (void)block, (void)arguments, (void)shared_bytes, (void)stream;
    return launch();
}

EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments,
                                      size_t shared_bytes, cudaStream_t stream)
{
    (void)kernel, (void)grid, (void)block, (void)arguments, (void)shared_bytes, (void)stream;
    return launch();
}

EXPORT cudaError_t cudaLaunchCooperativeKernel(const void *kernel, dim3 grid, dim3 block, void **arguments,
                                               size_t shared_bytes, cudaStream_t stream)
{
    (void)kernel, (void)grid, (void)block, (void)arguments, (void)shared_bytes, (void)stream;
    return launch();
}

EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *kernel, void **arguments)
{
    (void)config, (void)kernel, (void)arguments;
    return launch();
}

EXPORT cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *it, const void *kernel)
{
    (void)kernel;
    memset(it, 0, sizeof *it);
    cuFuncGetAttribute(&it->maxThreadsPerBlock, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, NULL);
    cuFuncGetAttribute(&it->numRegs, CU_FUNC_ATTRIBUTE_NUM_REGS, NULL);
    cuFuncGetAttribute(&it->ptxVersion, CU_FUNC_ATTRIBUTE_PTX_VERSION, NULL);
    cuFuncGetAttribute(&it->binaryVersion, CU_FUNC_ATTRIBUTE_BINARY_VERSION, NULL);
    cuFuncGetAttribute(&it->maxDynamicSharedSizeBytes, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, NULL);
    return cudaSuccess;
}

EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *kernel, int threads,
                                                                 size_t shared_bytes)
{
    (void)kernel;
    return result(cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, NULL, threads, shared_bytes));
}

EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *kernel, int threads,
                                                                          size_t shared_bytes, unsigned flags)
{
    (void)flags;
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, threads, shared_bytes);
}

#if CUDART_VERSION >= 12080
EXPORT cudaError_t cudaLibraryLoadData(cudaLibrary_t *library, const void *code, enum cudaJitOption *jit,
                                       void **jit_values, unsigned jit_count, enum cudaLibraryOption *options,
                                       void **values, unsigned count)
{
    (void)code, (void)jit, (void)jit_values, (void)jit_count, (void)options, (void)values, (void)count;
    *library = calloc(1, 64);
    return result(*library ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY);
}

EXPORT cudaError_t cudaLibraryGetKernel(cudaKernel_t *kernel, cudaLibrary_t library, const char *name)
{
    (void)library, (void)name;
    *kernel = calloc(1, 64);
    return result(*kernel ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY);
}
#endif

/* ---- what compiled kernels call when they are loaded and launched (crt/host_runtime.h, which torch does not bring) ---- */

EXPORT void **__cudaRegisterFatBinary(void *image)
{
    (void)image;
    static void *handle[4];
    return handle;
}

EXPORT char __cudaInitModule(void **handle)
{
    (void)handle;
    return 0;
}

EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, struct CUstream_st *stream)
{
    if (pushed_count == MAX_PUSHED)
        return 1;
    pushed[pushed_count].grid = grid;
    pushed[pushed_count].block = block;
    pushed[pushed_count].shared_bytes = shared_bytes;
    pushed[pushed_count++].stream = stream;
    return 0;
}

EXPORT cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared_bytes, void *stream)
{
    if (!pushed_count)
        return cudaErrorInvalidConfiguration;
    pushed_count--;
    *grid = pushed[pushed_count].grid;
    *block = pushed[pushed_count].block;
    *shared_bytes = pushed[pushed_count].shared_bytes;
    *(void **)stream = pushed[pushed_count].stream;
    return cudaSuccess;
}

EXPORT cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function)
{
    *kernel = (cudaKernel_t)function;
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
