/* libcuda.so.1: captures and graphs. A graph is a handle; launching it does nothing. From cuda.h. */
#include "driver.h"
#include "virtual_gpu.h"

#include <cuda.h>
#include <stdlib.h>

static CUresult begin(CUstream stream, CUgraph graph)
{
    capture *made = dr_opaque(); /* streams and events keep pointing to it: it is never freed */
    *made = (capture){.active = true, .id = dr_new_id(), .graph = graph};
    dr_stream(stream)->capturing = made;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode)
{
    (void)mode;
    return begin(stream, dr_opaque());
}

EXPORT CUresult cuStreamBeginCaptureToGraph(CUstream stream, CUgraph graph, const CUgraphNode *nodes,
                                            const CUgraphEdgeData *edges, size_t count, CUstreamCaptureMode mode)
{
    (void)nodes, (void)edges, (void)count, (void)mode;
    return begin(stream, graph);
}

EXPORT CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph)
{
    capture *it = dr_active(dr_stream(stream)->capturing);
    if (!it)
        return CUDA_ERROR_ILLEGAL_STATE;
    it->active = false;
    *graph = it->graph;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status)
{
    *status = dr_active(dr_stream(stream)->capturing) ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}

/* What cuStreamGetCaptureInfo tells in each of its versions (runtime.c passes it on). */
EXPORT CUresult vg_capture_info(CUstream stream, CUstreamCaptureStatus *status, cuuint64_t *id, CUgraph *graph)
{
    capture *it = dr_active(dr_stream(stream)->capturing);
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
    *made = dr_opaque();
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
