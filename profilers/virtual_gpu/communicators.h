/* A group of ranks, as libnccl.so knows it. */
#ifndef DNNMEM_COMMUNICATORS_H
#define DNNMEM_COMMUNICATORS_H

#include <nccl.h>
#include <stdint.h>

struct ncclComm {
    int size; /* 0: a split whose size nobody told */
    int rank;
    uint64_t id;            /* the same on all of its ranks that run; 0: no others run */
    uint32_t calls, splits; /* so far */
    uint32_t *sent, *received; /* to and from each rank */
};

#endif
