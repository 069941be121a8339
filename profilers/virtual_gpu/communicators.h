/* A group of ranks, as libnccl.so knows it. */
#ifndef DNNMEM_COMMUNICATORS_H
#define DNNMEM_COMMUNICATORS_H

#include <nccl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ncclComm {
    int size; /* 0: a split whose size nobody told */
    int rank;
    uint64_t id;            /* the same on all of its ranks that run; 0: no others run */
    uint32_t calls, splits; /* so far */
    uint32_t *sent, *received; /* to and from each rank */
    unsigned connected;        /* ways to other ranks that have their buffers (connections.c) */
    uint64_t to[64], from[64]; /* ranks that have buffers for what goes by hand, a bit for each */
    int device;                /* where its buffers are */
    size_t charged;            /* their bytes */
};

/* The buffers that a first collective, or a first payload by hand, makes NCCL allocate on the GPU of `buffer`; false:
 * there is no room for them. */
bool connect_collective(ncclComm_t group, const void *buffer, size_t nbytes, bool reduces);
bool connect_peer(ncclComm_t group, const void *buffer, int peer, bool sends);
void connect_end(ncclComm_t group); /* gives them back */
const char *connect_error(void);    /* empty if there was room so far */

#endif
