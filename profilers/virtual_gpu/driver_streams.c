/* libcuda.so.1: streams and events. Nothing executes, so that every wait is over before it begins; when an event counts
 * as complete, queue.c and watch.c say. What remains is who belongs to which capture: a stream that begins one, and each
 * stream that waits for an event of it. From cuda.h.
 */
#include "driver.h"
#include "virtual_gpu.h"

#include <cuda.h>
#include <stdlib.h>

struct CUevent_st {
    double milliseconds;
    int device;
    unsigned long last; /* in that one's queue before it */
    capture *recorded_in;
    watched watched; /* by NCCL's thread */
};

static struct CUstream_st default_streams[VG_MAX_DEVICES];
static unsigned long long last_id = VG_MAX_DEVICES;

unsigned long long dr_new_id(void) { return __sync_add_and_fetch(&last_id, 1); }

void *dr_opaque(void)
{
    void *made = calloc(1, 64);
    if (!made)
        abort();
    return made;
}

/* 0: current, 1: legacy, 2: of the thread */
CUstream dr_stream(CUstream stream)
{
    if ((uintptr_t)stream > 2)
        return stream;
    CUdevice device = 0;
    cuCtxGetDevice(&device);
    default_streams[device].device = device;
    default_streams[device].id = (unsigned)device + 1;
    return &default_streams[device];
}

capture *dr_active(capture *it) { return it && it->active ? it : NULL; }

/* ---- streams ---- */

EXPORT CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned flags, int priority)
{
    CUdevice device = 0;
    cuCtxGetDevice(&device);
    *stream = malloc(sizeof **stream);
    if (!*stream)
        return CUDA_ERROR_OUT_OF_MEMORY;
    **stream = (struct CUstream_st){.device = device, .priority = priority, .flags = flags, .id = dr_new_id()};
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
    *priority = dr_stream(stream)->priority;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamGetFlags(CUstream stream, unsigned *flags)
{
    *flags = dr_stream(stream)->flags;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamGetId(CUstream stream, unsigned long long *id)
{
    *id = dr_stream(stream)->id;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamGetCtx(CUstream stream, CUcontext *context)
{
    return cuDevicePrimaryCtxRetain(context, dr_stream(stream)->device);
}

EXPORT CUresult cuStreamQuery(CUstream stream)
{
    int device = dr_stream(stream)->device;
    return vg_is_complete(device, vg_last_put(device)) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

static CUresult synchronize(int device)
{
    vg_finish(device, vg_last_put(device));
    vg_waited();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamSynchronize(CUstream stream) { return synchronize(dr_stream(stream)->device); }
EXPORT CUresult cuCtxSynchronize(void) { return synchronize(dr_current()); }

EXPORT CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags)
{
    (void)flags;
    if (dr_active(event->recorded_in))
        dr_stream(stream)->capturing = event->recorded_in;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void *argument)
{
    if (!dr_active(dr_stream(stream)->capturing))
        function(argument);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamAddCallback(CUstream stream, CUstreamCallback function, void *argument, unsigned flags)
{
    (void)flags;
    function(stream, CUDA_SUCCESS, argument);
    return CUDA_SUCCESS;
}

/* ---- events ----
 *
 * Their clock advances a millisecond with each event that is recorded: whoever times one thing after the other finds all
 * equally fast, and takes the first, every time (cuDNN's benchmark does). Of a GPU it says nothing. */

static double now_milliseconds(void)
{
    static unsigned long records;
    return (double)__sync_add_and_fetch(&records, 1);
}

EXPORT CUresult cuEventCreate(CUevent *event, unsigned flags)
{
    (void)flags;
    *event = malloc(sizeof **event);
    if (!*event)
        return CUDA_ERROR_OUT_OF_MEMORY;
    **event = (struct CUevent_st){0};
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventRecord(CUevent event, CUstream stream)
{
    stream = dr_stream(stream);
    event->milliseconds = now_milliseconds();
    event->recorded_in = dr_active(stream->capturing);
    event->device = stream->device;
    event->last = event->recorded_in ? 0 : vg_last_put(event->device);
    if (stream->collective && !event->recorded_in)
        vg_watch(&event->watched, stream->collective, event->device, event->last);
    else
        vg_unwatch(&event->watched);
    stream->collective = NULL;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned flags)
{
    (void)flags;
    return cuEventRecord(event, stream);
}

EXPORT CUresult cuEventQuery(CUevent event)
{
    if (event->watched.is && !vg_works())
        return vg_is_seen(&event->watched) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
    return vg_is_complete(event->device, event->last) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

EXPORT CUresult cuEventSynchronize(CUevent event)
{
    vg_finish(event->device, event->last);
    vg_waited();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventDestroy(CUevent event)
{
    vg_unwatch(&event->watched);
    free(event);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventElapsedTime(float *milliseconds, CUevent from, CUevent to)
{
    *milliseconds = (float)(to->milliseconds - from->milliseconds);
    return CUDA_SUCCESS;
}
