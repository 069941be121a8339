/* What the files of libcuda.so.1 share beside the public cuda.h. */
#ifndef DNNMEM_DRIVER_H
#define DNNMEM_DRIVER_H

#include "virtual_gpu.h"

#include <cuda.h>
#include <stdbool.h>

typedef struct {
    bool active;
    unsigned long long id;
    CUgraph graph;
} capture;

/* What NCCL's thread asks for (watch.c). */
typedef struct watched {
    bool is;
    const void *group; /* whose collective it is */
    int device;
    unsigned long last; /* in that one's queue before it; 0: over */
    double asked;       /* when first; 0: not yet */
    struct watched *before, *next;
} watched;

void vg_watch(watched *it, const void *group, int device, unsigned long last);
void vg_unwatch(watched *it);
bool vg_is_seen(watched *it);

struct CUstream_st {
    int device, priority;
    unsigned flags;
    unsigned long long id;
    capture *capturing; /* NULL, or one that may have ended */
    const void *collective; /* group of the collective that went here last, if no event is recorded behind it yet */
};

int dr_current(void);                 /* device of the current context; 0 where there is none yet */
unsigned long long dr_new_id(void);
void *dr_opaque(void);                /* a handle that nobody looks into */
CUstream dr_stream(CUstream stream);  /* the stream itself, or that of the device for the default ones */
capture *dr_active(capture *it);      /* NULL where it has ended */
void dr_free_managed(const vg_range *range);

#endif
