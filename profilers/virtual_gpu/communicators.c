/* libnccl.so, its communicators: this process as one rank of any number.
 *
 * A group that is split off learns its size from the other ranks, where they run. Where they do not, whoever splits
 * tells it beforehand with dnnmem_split_size(color, size), with color -1 for whichever group this thread splits off
 * next. From nccl.h.
 */
#include "communicators.h"
#include "payload.h"
#include "virtual_gpu.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define MAX_SPLITS 4096

static struct {
    int color, size;
} splits[MAX_SPLITS];
static int split_count;
static __thread int next_size; /* of the next split of this thread; 0: not told */

static ncclResult_t make(ncclComm_t *made, int size, int rank, uint64_t id)
{
    ncclComm_t group = *made = calloc(1, sizeof *group);
    if (!group)
        return ncclSystemError;
    *group = (struct ncclComm){.size = size, .rank = rank, .id = id};
    if (!id)
        return ncclSuccess;
    group->sent = calloc((size_t)size, sizeof *group->sent);
    group->received = calloc((size_t)size, sizeof *group->received);
    payload_join(id, rank);
    return group->sent && group->received ? ncclSuccess : ncclSystemError;
}

/* A number for `nbytes` of data, never 0; `before` is that of what comes before (FNV-1a). */
static uint64_t digest(uint64_t before, const void *data, size_t nbytes)
{
    uint64_t number = before ? before : 0xcbf29ce484222325u;
    for (size_t i = 0; i < nbytes; i++)
        number = (number ^ ((const unsigned char *)data)[i]) * 0x100000001b3u;
    return number ? number : 1;
}

static uint64_t id_of(const ncclUniqueId *id) { return payload_together() ? digest(0, id, sizeof *id) : 0; }

EXPORT ncclResult_t ncclGetVersion(int *version)
{
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

EXPORT ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    return getrandom(id, sizeof *id, 0) == sizeof *id ? ncclSuccess : ncclSystemError;
}

EXPORT ncclResult_t ncclCommInitRank(ncclComm_t *made, int size, ncclUniqueId id, int rank)
{
    return make(made, size, rank, id_of(&id));
}

EXPORT ncclResult_t ncclCommInitRankConfig(ncclComm_t *made, int size, ncclUniqueId id, int rank, ncclConfig_t *config)
{
    (void)config;
    return make(made, size, rank, id_of(&id));
}

EXPORT ncclResult_t ncclCommInitRankScalable(ncclComm_t *made, int size, int rank, int ids, ncclUniqueId *id,
                                             ncclConfig_t *config)
{
    (void)ids, (void)config;
    return make(made, size, rank, id_of(id));
}

EXPORT ncclResult_t ncclCommInitAll(ncclComm_t *made, int size, const int *devices)
{
    (void)devices;
    ncclResult_t status = ncclSuccess;
    for (int i = 0; i < size && !status; i++)
        status = make(&made[i], size, i, 0);
    return status;
}

/* ---- splits ---- */

EXPORT void dnnmem_split_size(int color, int size)
{
    if (color < 0) {
        next_size = size;
        return;
    }
    splits[split_count % MAX_SPLITS].color = color;
    splits[split_count++ % MAX_SPLITS].size = size;
}

static int told_size(int color)
{
    int told = next_size;
    next_size = 0;
    if (told)
        return told;
    for (int i = split_count < MAX_SPLITS ? split_count : MAX_SPLITS; i-- > 0;)
        if (splits[i].color == color)
            return splits[i].size;
    return 0;
}

/* Ranks that ask for the same color, by key and then by rank, make a group. */
static ncclResult_t split_with_others(ncclComm_t parent, int color, int key, ncclComm_t *made)
{
    int wish[2] = {color, key}, size = 0, rank = 0;
    payload_key from = {parent->id, parent->rank, PAYLOAD_EVERYONE, parent->calls++};
    payload_put(from, parent->size, (uintptr_t)wish, sizeof wish);
    for (int i = 0; i < parent->size; i++) {
        int others[2];
        from.source = i;
        payload_get(from, "ncclCommSplit", others, sizeof others);
        if (others[0] != color)
            continue;
        size++;
        rank += others[1] < key || (others[1] == key && i < parent->rank);
    }
    uint32_t facts[2] = {parent->splits++, (uint32_t)color};
    return color == NCCL_SPLIT_NOCOLOR ? ncclSuccess : make(made, size, rank, digest(parent->id, facts, sizeof facts));
}

EXPORT ncclResult_t ncclCommSplit(ncclComm_t parent, int color, int key, ncclComm_t *made, ncclConfig_t *config)
{
    (void)config;
    *made = NULL;
    if (parent->id)
        return split_with_others(parent, color, key, made);
    return color == NCCL_SPLIT_NOCOLOR ? ncclSuccess : make(made, told_size(color), key, 0);
}

/* ---- the end, and what is asked between ---- */

EXPORT ncclResult_t ncclCommFinalize(ncclComm_t group)
{
    vg_end_collectives(group);
    return ncclSuccess;
}

EXPORT ncclResult_t ncclCommDestroy(ncclComm_t group)
{
    vg_end_collectives(group);
    if (group) {
        connect_end(group);
        free(group->sent);
        free(group->received);
    }
    free(group);
    return ncclSuccess;
}

EXPORT ncclResult_t ncclCommAbort(ncclComm_t group) { return ncclCommDestroy(group); }

EXPORT ncclResult_t ncclCommCount(const ncclComm_t group, int *size)
{
    *size = group->size;
    return group->size ? ncclSuccess : (ncclResult_t)vg_unreviewed("ncclCommCount of a split of unknown size");
}

EXPORT ncclResult_t ncclCommUserRank(const ncclComm_t group, int *rank)
{
    *rank = group->rank;
    return ncclSuccess;
}

EXPORT ncclResult_t ncclCommGetAsyncError(ncclComm_t group, ncclResult_t *error)
{
    (void)group;
    *error = ncclSuccess;
    return ncclSuccess;
}

EXPORT const char *ncclGetErrorString(ncclResult_t error) { return error ? "error" : "no error"; }

EXPORT const char *ncclGetLastError(const ncclComm_t group)
{
    (void)group;
    return connect_error();
}
