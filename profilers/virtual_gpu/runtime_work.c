/* libcudart.so: streams, events, graphs. From cuda_runtime_api.h. */
#include "runtime.h"
#include "virtual_gpu.h"

#include <stdlib.h>

EXPORT cudaError_t cudaStreamCreate(cudaStream_t *stream) { IN_CONTEXT(cuStreamCreate(stream, 0)); }

EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    IN_CONTEXT(cuStreamCreate(stream, flags));
}

EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority)
{
    IN_CONTEXT(cuStreamCreateWithPriority(stream, flags, priority));
}

EXPORT cudaError_t cudaStreamDestroy(cudaStream_t stream) { return rt_result(cuStreamDestroy(stream)); }

EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    return rt_result(cuStreamSynchronize(stream));
}

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
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t event) { return rt_result(cuEventDestroy(event)); }
EXPORT cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { IN_CONTEXT(cuEventRecord(event, stream)); }

EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    return rt_result(cuEventSynchronize(event));
}

EXPORT cudaError_t cudaEventQuery(cudaEvent_t event) { return rt_result(cuEventQuery(event)); }
EXPORT cudaError_t cudaStreamQuery(cudaStream_t stream) { IN_CONTEXT(cuStreamQuery(stream)); }

EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags)
{
    (void)flags;
    return cudaEventRecord(event, stream);
}

EXPORT cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to)
{
    return rt_result(cuEventElapsedTime(milliseconds, from, to));
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
    return rt_result(cuThreadExchangeStreamCaptureMode((CUstreamCaptureMode *)mode));
}

EXPORT cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t stream, cudaGraph_t graph, const cudaGraphNode_t *nodes,
                                                 const cudaGraphEdgeData *edges, size_t count,
                                                 enum cudaStreamCaptureMode mode)
{
    IN_CONTEXT(cuStreamBeginCaptureToGraph(stream, graph, nodes, (const CUgraphEdgeData *)edges, count,
                                           (CUstreamCaptureMode)mode));
}

/* Conditional nodes: their bodies are graphs of their own, which something is captured to and nothing runs. */
EXPORT cudaError_t cudaGraphConditionalHandleCreate(cudaGraphConditionalHandle *handle, cudaGraph_t graph,
                                                    unsigned start, unsigned flags)
{
    (void)graph, (void)start, (void)flags;
    static unsigned long long last;
    *handle = __sync_add_and_fetch(&last, 1);
    return cudaSuccess;
}

#if CUDART_VERSION >= 13000
EXPORT cudaError_t cudaGraphAddNode(cudaGraphNode_t *made, cudaGraph_t graph, const cudaGraphNode_t *after,
                                    const cudaGraphEdgeData *edges, size_t count, struct cudaGraphNodeParams *it)
{
    (void)edges;
#else
EXPORT cudaError_t cudaGraphAddNode(cudaGraphNode_t *made, cudaGraph_t graph, const cudaGraphNode_t *after,
                                    size_t count, struct cudaGraphNodeParams *it)
{
#endif
    (void)after, (void)count;
    *made = (cudaGraphNode_t)graph;
    if (it->type != cudaGraphNodeTypeConditional)
        return (cudaError_t)vg_unreviewed("cudaGraphAddNode of another type than conditional");
    it->conditional.phGraph_out = calloc(it->conditional.size, sizeof(cudaGraph_t)); /* lives as long as the process */
    for (unsigned i = 0; it->conditional.phGraph_out && i < it->conditional.size; i++)
        it->conditional.phGraph_out[i] = calloc(1, 64);
    return it->conditional.phGraph_out ? cudaSuccess : rt_result(CUDA_ERROR_OUT_OF_MEMORY);
}

EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count)
{
    return rt_result(cuGraphGetNodes(graph, nodes, count));
}

EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags)
{
    return rt_result(cuGraphInstantiateWithFlags(made, graph, flags));
}

EXPORT cudaError_t cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags)
{
    return rt_result(cuGraphInstantiateWithFlags(made, graph, flags));
}

EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) { IN_CONTEXT(cuGraphLaunch(graph, stream)); }
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return rt_result(cuGraphExecDestroy(graph)); }
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return rt_result(cuGraphDestroy(graph)); }

/* An object that a graph keeps alive: it is released with the graph, which here means never. */
EXPORT cudaError_t cudaUserObjectCreate(cudaUserObject_t *object, void *pointer, cudaHostFn_t destroy, unsigned count,
                                        unsigned flags)
{
    (void)destroy, (void)count, (void)flags;
    *object = pointer;
    return cudaSuccess;
}
