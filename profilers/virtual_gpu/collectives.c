/* libnccl.so: this process as one rank of any number. Collectives succeed at once; what other ranks would send is
 * unknown, except that small payloads are taken to be like this rank's own, so that ranks which compare notes agree.
 *
 * A group that was split off does not know its size from NCCL's arguments: whoever splits tells it beforehand with
 * dnnmem_split_size(color, size), with color -1 for whichever group this thread splits off next. From nccl.h.
 */
#include "virtual_gpu.h"

#include <nccl.h>
#include <stdlib.h>
#include <string.h>

#define SMALL_BYTES 4096
#define MAX_SPLITS 4096

struct ncclComm {
    int size; /* 0: a split whose size nobody told */
    int rank;
};

static struct {
    int color, size;
} splits[MAX_SPLITS];
static int split_count;
static __thread int next_size; /* of the next split of this thread; 0: not told */

/* ---- communicators ---- */

static ncclResult_t make(ncclComm_t *made, int size, int rank)
{
    *made = malloc(sizeof **made);
    if (!*made)
        return ncclSystemError;
    **made = (struct ncclComm){.size = size, .rank = rank};
    return ncclSuccess;
}

EXPORT void dnnmem_split_size(int color, int size)
{
    if (color < 0) {
        next_size = size;
        return;
    }
    splits[split_count % MAX_SPLITS].color = color;
    splits[split_count++ % MAX_SPLITS].size = size;
}

static int split_size(int color)
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

EXPORT ncclResult_t ncclGetVersion(int *version)
{
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

EXPORT ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    memset(id, 1, sizeof *id);
    return ncclSuccess;
}

EXPORT ncclResult_t ncclCommInitRank(ncclComm_t *made, int size, ncclUniqueId id, int rank)
{
    (void)id;
    return make(made, size, rank);
}

EXPORT ncclResult_t ncclCommInitRankConfig(ncclComm_t *made, int size, ncclUniqueId id, int rank, ncclConfig_t *config)
{
    (void)id, (void)config;
    return make(made, size, rank);
}

EXPORT ncclResult_t ncclCommInitRankScalable(ncclComm_t *made, int size, int rank, int ids, ncclUniqueId *id,
                                             ncclConfig_t *config)
{
    (void)ids, (void)id, (void)config;
    return make(made, size, rank);
}

EXPORT ncclResult_t ncclCommInitAll(ncclComm_t *made, int size, const int *devices)
{
    (void)devices;
    ncclResult_t status = ncclSuccess;
    for (int i = 0; i < size && !status; i++)
        status = make(&made[i], size, i);
    return status;
}

EXPORT ncclResult_t ncclCommSplit(ncclComm_t parent, int color, int key, ncclComm_t *made, ncclConfig_t *config)
{
    (void)parent, (void)config;
    *made = NULL;
    return color == NCCL_SPLIT_NOCOLOR ? ncclSuccess : make(made, split_size(color), key);
}

EXPORT ncclResult_t ncclCommDestroy(ncclComm_t group)
{
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
    return "";
}

/* ---- collectives ---- */

static size_t bytes_of(ncclDataType_t type)
{
    switch ((int)type) {
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64:
        return 8;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
        return 4;
    case ncclFloat16:
    case ncclBfloat16:
        return 2;
    default:
        return 1;
    }
}

/* What this rank has, as its result. */
static ncclResult_t carry(void *to, const void *from, size_t nbytes)
{
    if (to == from)
        return ncclSuccess;
    if (nbytes <= SMALL_BYTES)
        vg_copy((uintptr_t)to, (uintptr_t)from, nbytes);
    else
        vg_ran();
    return ncclSuccess;
}

EXPORT ncclResult_t ncclAllGather(const void *from, void *to, size_t count, ncclDataType_t type, ncclComm_t group,
                                  cudaStream_t stream)
{
    (void)stream;
    size_t nbytes = count * bytes_of(type);
    if (!group->size)
        return carry((char *)to + (size_t)group->rank * nbytes, from, nbytes);
    if (nbytes > SMALL_BYTES) {
        vg_ran();
        return ncclSuccess;
    }
    for (int i = 0; i < group->size; i++)
        carry((char *)to + (size_t)i * nbytes, from, nbytes);
    return ncclSuccess;
}

EXPORT ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t operation,
                                  ncclComm_t group, cudaStream_t stream)
{
    (void)operation, (void)group, (void)stream;
    return carry(to, from, count * bytes_of(type));
}

EXPORT ncclResult_t ncclReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t operation,
                               int root, ncclComm_t group, cudaStream_t stream)
{
    (void)operation, (void)stream;
    return root == group->rank ? carry(to, from, count * bytes_of(type)) : ncclSuccess;
}

EXPORT ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type, int root,
                                  ncclComm_t group, cudaStream_t stream)
{
    (void)stream;
    if (root != group->rank)
        vg_ran(); /* the root's values are not here */
    return root == group->rank ? carry(to, from, count * bytes_of(type)) : ncclSuccess;
}

EXPORT ncclResult_t ncclReduceScatter(const void *from, void *to, size_t count, ncclDataType_t type,
                                      ncclRedOp_t operation, ncclComm_t group, cudaStream_t stream)
{
    (void)operation, (void)stream;
    size_t nbytes = count * bytes_of(type);
    return carry(to, (const char *)from + (size_t)group->rank * nbytes, nbytes);
}
