/* libcuda.so.1, second half: streams, events, graphs, modules, kernels, the table of entry points. Nothing executes.
 *
 * All work is done at once, so that every wait is over before it begins. What remains is who belongs to which capture:
 * a stream that begins one, and each stream that waits for an event of it.
 */
#include "virtual_gpu.h"

#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct {
    bool active;
    unsigned long long id;
    CUgraph graph;
} capture;

struct CUstream_st {
    int device, priority;
    unsigned flags;
    unsigned long long id;
    capture *capturing; /* NULL, or one that may have ended */
};

struct CUevent_st {
    double milliseconds;
    capture *recorded_in;
};

struct CUfunc_st {
    char *name;
};

struct CUgraph_st {
    int nodes;
};

static struct CUstream_st default_streams[VG_MAX_DEVICES];
static unsigned long long last_id = VG_MAX_DEVICES;

static unsigned long long new_id(void) { return __sync_add_and_fetch(&last_id, 1); }

/* A handle that nobody looks into. */
static void *opaque(void)
{
    void *made = calloc(1, 64);
    if (!made)
        abort();
    return made;
}

/* The stream itself, or that of the device for the default ones (0: current, 1: legacy, 2: of the thread). */
static CUstream real(CUstream stream)
{
    if ((uintptr_t)stream > 2)
        return stream;
    CUdevice device = 0;
    cuCtxGetDevice(&device);
    default_streams[device].device = device;
    default_streams[device].id = (unsigned)device + 1;
    return &default_streams[device];
}

static capture *active(capture *it) { return it && it->active ? it : NULL; }

/* ---- streams ---- */

EXPORT CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned flags, int priority)
{
    CUdevice device = 0;
    cuCtxGetDevice(&device);
    *stream = malloc(sizeof **stream);
    if (!*stream)
        return CUDA_ERROR_OUT_OF_MEMORY;
    **stream = (struct CUstream_st){.device = device, .priority = priority, .flags = flags, .id = new_id()};
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamCreate(CUstream *stream, unsigned flags) { return cuStreamCreateWithPriority(stream, flags, 0); }

EXPORT CUresult cuStreamDestroy(CUstream stream)
{
    free(stream);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamGetPriority(CUstream stream, int *priority)
{
    *priority = real(stream)->priority;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamGetFlags(CUstream stream, unsigned *flags)
{
    *flags = real(stream)->flags;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamGetId(CUstream stream, unsigned long long *id)
{
    *id = real(stream)->id;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamGetCtx(CUstream stream, CUcontext *context)
{
    return cuDevicePrimaryCtxRetain(context, real(stream)->device);
}

EXPORT CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags)
{
    (void)flags;
    if (active(event->recorded_in))
        real(stream)->capturing = event->recorded_in;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void *argument)
{
    if (!active(real(stream)->capturing))
        function(argument);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamAddCallback(CUstream stream, CUstreamCallback function, void *argument, unsigned flags)
{
    (void)flags;
    function(stream, CUDA_SUCCESS, argument);
    return CUDA_SUCCESS;
}

/* ---- events: their times are those of this machine's clock and say nothing of a GPU ---- */

static double now_milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

EXPORT CUresult cuEventCreate(CUevent *event, unsigned flags)
{
    (void)flags;
    *event = malloc(sizeof **event);
    if (!*event)
        return CUDA_ERROR_OUT_OF_MEMORY;
    **event = (struct CUevent_st){.milliseconds = now_milliseconds()};
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventRecord(CUevent event, CUstream stream)
{
    event->milliseconds = now_milliseconds();
    event->recorded_in = active(real(stream)->capturing);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned flags)
{
    (void)flags;
    return cuEventRecord(event, stream);
}

EXPORT CUresult cuEventDestroy(CUevent event)
{
    free(event);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventElapsedTime(float *milliseconds, CUevent from, CUevent to)
{
    *milliseconds = (float)(to->milliseconds - from->milliseconds);
    return CUDA_SUCCESS;
}

/* ---- captures and graphs ---- */

static CUresult begin(CUstream stream, CUgraph graph)
{
    capture *made = opaque(); /* streams and events keep pointing to it: it is never freed */
    *made = (capture){.active = true, .id = new_id(), .graph = graph};
    real(stream)->capturing = made;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode)
{
    (void)mode;
    return begin(stream, opaque());
}

EXPORT CUresult cuStreamBeginCaptureToGraph(CUstream stream, CUgraph graph, const CUgraphNode *nodes,
                                            const CUgraphEdgeData *edges, size_t count, CUstreamCaptureMode mode)
{
    (void)nodes, (void)edges, (void)count, (void)mode;
    return begin(stream, graph);
}

EXPORT CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph)
{
    capture *it = active(real(stream)->capturing);
    if (!it)
        return CUDA_ERROR_ILLEGAL_STATE;
    it->active = false;
    *graph = it->graph;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status)
{
    *status = active(real(stream)->capturing) ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}

/* What cuStreamGetCaptureInfo tells in each of its versions (runtime.c passes it on). */
EXPORT CUresult vg_capture_info(CUstream stream, CUstreamCaptureStatus *status, cuuint64_t *id, CUgraph *graph)
{
    capture *it = active(real(stream)->capturing);
    *status = it ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
    if (id)
        *id = it ? it->id : 0;
    if (graph)
        *graph = it ? it->graph : NULL;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode)
{
    static __thread CUstreamCaptureMode own;
    CUstreamCaptureMode before = own;
    own = *mode;
    *mode = before;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphGetNodes(CUgraph graph, CUgraphNode *nodes, size_t *count)
{
    if (nodes && *count)
        nodes[0] = (CUgraphNode)graph; /* one node stands for all: callers ask whether there is any */
    *count = 1;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec *made, CUgraph graph, unsigned long long flags)
{
    (void)graph, (void)flags;
    *made = opaque();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphLaunch(CUgraphExec graph, CUstream stream)
{
    (void)graph, (void)stream;
    vg_ran();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphExecDestroy(CUgraphExec graph)
{
    free(graph);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphDestroy(CUgraph graph)
{
    free(graph);
    return CUDA_SUCCESS;
}

/* ---- modules and kernels ---- */

EXPORT CUresult cuModuleLoadData(CUmodule *module, const void *image)
{
    (void)image;
    *module = opaque();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned count, CUjit_option *options,
                                   void **values)
{
    (void)count, (void)options, (void)values;
    return cuModuleLoadData(module, image);
}

EXPORT CUresult cuModuleLoad(CUmodule *module, const char *path) { return cuModuleLoadData(module, path); }

EXPORT CUresult cuModuleUnload(CUmodule module)
{
    free(module);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name)
{
    (void)module;
    *function = opaque();
    (*function)->name = strdup(name);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuLibraryLoadData(CUlibrary *library, const void *code, CUjit_option *jit, void **jit_values,
                                  unsigned jit_count, CUlibraryOption *options, void **values, unsigned count)
{
    (void)code, (void)jit, (void)jit_values, (void)jit_count, (void)options, (void)values, (void)count;
    *library = opaque();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuLibraryGetKernel(CUkernel *kernel, CUlibrary library, const char *name)
{
    return cuModuleGetFunction((CUfunction *)kernel, (CUmodule)library, name);
}

EXPORT CUresult cuKernelGetFunction(CUfunction *function, CUkernel kernel)
{
    *function = (CUfunction)kernel;
    return CUDA_SUCCESS;
}

/* A kernel like most: the registers of 32 and no local memory; limits are those of the GPU. */
EXPORT CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function)
{
    (void)function;
    switch ((int)attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
        *value = vg_attribute(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 0);
        break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
        *value = 32;
        break;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION:
        *value = vg_kernel_version();
        break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
        *value = vg_attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 0);
        break;
    default:
        *value = 0; /* shared, constant and local bytes, preferences: none */
    }
    return CUDA_SUCCESS;
}

static int least(int a, int b) { return a < b ? a : b; }

/* Blocks of such a kernel that one multiprocessor holds: as many as its threads, registers and shared memory allow. */
EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function, int threads,
                                                            size_t shared_bytes)
{
    (void)function;
    int per_block = threads > 0 ? threads : 1;
    size_t own = (size_t)vg_attribute(CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK, 0);
    int all_shared = vg_attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, 0);
    int fit = vg_attribute(CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR, 0);
    fit = least(fit, vg_attribute(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, 0) / per_block);
    fit = least(fit, vg_attribute(CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR, 0) / (32 * per_block));
    if (shared_bytes)
        fit = least(fit, (int)((size_t)all_shared / (shared_bytes + own)));
    *blocks = fit;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, CUfunction function, int threads,
                                                                     size_t shared_bytes, unsigned flags)
{
    (void)flags;
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared_bytes);
}

EXPORT CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction function, const CUlaunchConfig *launch)
{
    int blocks;
    cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, function, (int)launch->blockDimX, launch->sharedMemBytes);
    *clusters = blocks * vg_attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 0) / 2;
    return CUDA_SUCCESS;
}

/* ---- errors ---- */

EXPORT CUresult cuGetErrorName(CUresult error, const char **text)
{
    *text = error == CUDA_SUCCESS                ? "CUDA_SUCCESS"
            : error == CUDA_ERROR_OUT_OF_MEMORY  ? "CUDA_ERROR_OUT_OF_MEMORY"
            : error == CUDA_ERROR_NO_DEVICE      ? "CUDA_ERROR_NO_DEVICE"
            : error == CUDA_ERROR_INVALID_DEVICE ? "CUDA_ERROR_INVALID_DEVICE"
                                                 : "CUDA_ERROR_INVALID_VALUE";
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGetErrorString(CUresult error, const char **text)
{
    *text = error == CUDA_SUCCESS                ? "no error"
            : error == CUDA_ERROR_OUT_OF_MEMORY  ? "out of memory"
            : error == CUDA_ERROR_NO_DEVICE      ? "no CUDA-capable device is detected"
            : error == CUDA_ERROR_INVALID_DEVICE ? "invalid device ordinal"
                                                 : "invalid argument";
    return CUDA_SUCCESS;
}

/* ---- entry points ---- */

void *vg_entry_point(const char *name); /* generated */

EXPORT CUresult cuGetProcAddress(const char *name, void **function, int version, cuuint64_t flags,
                                 CUdriverProcAddressQueryResult *status)
{
    (void)version, (void)flags;
    *function = vg_entry_point(name);
    if (status)
        *status = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

/* NVIDIA's own libraries look for undocumented tables here and refuse to work without them: that is left to them. */
EXPORT CUresult cuGetExportTable(const void **table, const CUuuid *id)
{
    (void)id;
    *table = NULL;
    return CUDA_ERROR_NOT_FOUND;
}
