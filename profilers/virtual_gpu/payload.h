/* Small payloads that really go from rank to rank, by way of the process that started them (exchange.py). */
#ifndef DNNMEM_PAYLOAD_H
#define DNNMEM_PAYLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAYLOAD_EVERYONE (-1) /* in place of a destination */
#define PAYLOAD_JOB 0         /* the group in which every rank has its number in the job */

/* One payload: the number counts what went from there to there before. */
typedef struct {
    uint64_t group;
    int source, destination;
    uint32_t number;
} payload_key;

/* What is still to come: one payload from each of `count` ranks, in order. */
typedef struct {
    const char *operation; /* for messages */
    payload_key first;     /* of the first rank; the others' sources follow it */
    int count;
    bool by_hand;   /* a receive: nobody waits for it who does not read it */
    uintptr_t to;   /* address of what the first rank sends; the others' follow it, or all are reduced there */
    size_t nbytes;  /* of each payload */
    void (*reduce)(void *parts, int count, size_t nbytes, const void *how); /* into the first part; NULL: none */
    uint64_t how[2];
} payload_wish;

__attribute__((visibility("default"))) int payload_rank(void); /* of this process in its job; -1: there is nobody to exchange with */
__attribute__((visibility("default"))) bool payload_together(void); /* do all ranks of the job run? */
void payload_join(uint64_t group, int rank);
void payload_put(payload_key key, int readers, uintptr_t from, size_t nbytes);
void payload_get(payload_key key, const char *operation, void *to, size_t nbytes); /* now; `to` is the host's */
void payload_expect(const payload_wish *wish); /* when somebody reads it, or waits for the stream */

#endif
