/* libnccl.so, its collectives: they succeed at once. Small payloads really go to the other ranks where those run
 * (payload.c). Where they do not, what they would send is unknown; small payloads are then taken to be like this rank's
 * own, so that ranks which compare notes agree.
 *
 * Small: results of up to 1 MiB of integers or bytes, or 4 KiB of floating-point numbers, and of any size while
 * vg_carry_any_size holds. All ranks decide so alike, and what is larger holds nobody up. From nccl.h.
 */
#include "communicators.h"
#include "payload.h"
#include "reduce.h"
#include "virtual_gpu.h"

#define SMALL_INTEGERS VG_MIB /* as gpu_twins.py keeps them */
#define SMALL_FLOATS 4096
#define BY_HAND 0x80000000u /* in the number of a payload that is sent, so that no collective's is the same */

static __thread int next_peer = -1; /* the rank in the job that this thread's next send or receive is for */

EXPORT void dnnmem_next_peer(int rank) { next_peer = rank; }

static bool is_small(size_t nbytes, ncclDataType_t type)
{
    return vg_carries_any_size() || nbytes <= (reduce_is_float(type) ? SMALL_FLOATS : SMALL_INTEGERS);
}

/* Does a collective with a result of `nbytes` go to the other ranks? */
static bool goes(ncclComm_t group, size_t nbytes, ncclDataType_t type)
{
    return group->id && nbytes && is_small(nbytes, type);
}

/* Without others: a copy of what this rank has. */
static ncclResult_t take_own(void *to, const void *from, size_t nbytes, ncclDataType_t type)
{
    if (to != from && is_small(nbytes, type))
        vg_move((uintptr_t)to, (uintptr_t)from, nbytes);
    else if (to != from)
        vg_ran();
    return ncclSuccess;
}

static payload_key key_of(ncclComm_t group, int source, int destination)
{
    return (payload_key){group->id, source, destination, group->calls};
}

/* Expect payloads of this call from `count` ranks on. */
static void expect(const char *operation, payload_key first, int count, void *to, size_t nbytes)
{
    payload_expect(&(payload_wish){
        .operation = operation, .first = first, .count = count, .to = (uintptr_t)to, .nbytes = nbytes});
}

static void expect_reduced(const char *operation, payload_key first, int count, void *to, size_t nbytes,
                           ncclDataType_t type, ncclRedOp_t how)
{
    payload_expect(&(payload_wish){.operation = operation,
                                   .first = first,
                                   .count = count,
                                   .to = (uintptr_t)to,
                                   .nbytes = nbytes,
                                   .reduce = reduce_parts,
                                   .how = {(uint64_t)type, (uint64_t)how}});
}

/* Give each rank its part of `from`. */
static void put_parts(ncclComm_t group, const void *from, size_t nbytes)
{
    for (int i = 0; i < group->size; i++)
        payload_put(key_of(group, group->rank, i), 1, (uintptr_t)from + (size_t)i * nbytes, nbytes);
}

static bool connect_all(ncclComm_t group, const void *buffer)
{
    bool fits = true;
    for (int i = 0; i < group->size; i++)
        fits = fits && connect_peer(group, buffer, i, true) && connect_peer(group, buffer, i, false);
    return fits;
}

/* ---- from all to all ---- */

EXPORT ncclResult_t ncclAllGather(const void *from, void *to, size_t count, ncclDataType_t type, ncclComm_t group,
                                  cudaStream_t stream)
{
    vg_collective(group, stream);
    size_t nbytes = count * reduce_size(type);
    if (!connect_collective(group, from, nbytes * (size_t)group->size, false))
        return ncclUnhandledCudaError;
    if (goes(group, nbytes * (size_t)group->size, type)) {
        payload_put(key_of(group, group->rank, PAYLOAD_EVERYONE), group->size, (uintptr_t)from, nbytes);
        expect("ncclAllGather", key_of(group, 0, PAYLOAD_EVERYONE), group->size, to, nbytes);
        group->calls++;
        return ncclSuccess;
    }
    group->calls++;
    if (group->id || !is_small(nbytes * (size_t)group->size, type)) {
        vg_ran();
        return ncclSuccess;
    }
    if (!group->size)
        return take_own((char *)to + (size_t)group->rank * nbytes, from, nbytes, type);
    for (int i = 0; i < group->size; i++)
        take_own((char *)to + (size_t)i * nbytes, from, nbytes, type);
    return ncclSuccess;
}

EXPORT ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t operation,
                                  ncclComm_t group, cudaStream_t stream)
{
    vg_collective(group, stream);
    size_t nbytes = count * reduce_size(type);
    if (!connect_collective(group, from, nbytes, true))
        return ncclUnhandledCudaError;
    if (goes(group, nbytes, type) && reduce_can(type)) {
        payload_put(key_of(group, group->rank, PAYLOAD_EVERYONE), group->size, (uintptr_t)from, nbytes);
        expect_reduced("ncclAllReduce", key_of(group, 0, PAYLOAD_EVERYONE), group->size, to, nbytes, type, operation);
        group->calls++;
        return ncclSuccess;
    }
    group->calls++;
    return take_own(to, from, nbytes, type);
}

EXPORT ncclResult_t ncclReduceScatter(const void *from, void *to, size_t count, ncclDataType_t type,
                                      ncclRedOp_t operation, ncclComm_t group, cudaStream_t stream)
{
    vg_collective(group, stream);
    size_t nbytes = count * reduce_size(type);
    if (!connect_collective(group, from, nbytes * (size_t)group->size, false))
        return ncclUnhandledCudaError;
    if (goes(group, nbytes * (size_t)group->size, type) && reduce_can(type)) {
        put_parts(group, from, nbytes);
        expect_reduced("ncclReduceScatter", key_of(group, 0, group->rank), group->size, to, nbytes, type, operation);
        group->calls++;
        return ncclSuccess;
    }
    group->calls++;
    return take_own(to, (const char *)from + (size_t)group->rank * nbytes, nbytes, type);
}

EXPORT ncclResult_t ncclAlltoAll(const void *from, void *to, size_t count, ncclDataType_t type, ncclComm_t group,
                                 cudaStream_t stream)
{
    vg_collective(group, stream);
    size_t nbytes = count * reduce_size(type), all = nbytes * (size_t)group->size;
    if (!connect_all(group, from))
        return ncclUnhandledCudaError;
    if (goes(group, all, type)) {
        put_parts(group, from, nbytes);
        expect("ncclAlltoAll", key_of(group, 0, group->rank), group->size, to, nbytes);
        group->calls++;
        return ncclSuccess;
    }
    group->calls++;
    return take_own(to, from, all, type);
}

/* ---- from one to all, from all to one ---- */

EXPORT ncclResult_t ncclReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t operation,
                               int root, ncclComm_t group, cudaStream_t stream)
{
    vg_collective(group, stream);
    size_t nbytes = count * reduce_size(type);
    if (!connect_collective(group, from, nbytes, false))
        return ncclUnhandledCudaError;
    bool here = root == group->rank;
    if (goes(group, nbytes, type) && reduce_can(type)) {
        payload_put(key_of(group, group->rank, root), 1, (uintptr_t)from, nbytes);
        if (here)
            expect_reduced("ncclReduce", key_of(group, 0, root), group->size, to, nbytes, type, operation);
        group->calls++;
        return ncclSuccess;
    }
    group->calls++;
    return here ? take_own(to, from, nbytes, type) : ncclSuccess;
}

EXPORT ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type, int root,
                                  ncclComm_t group, cudaStream_t stream)
{
    vg_collective(group, stream);
    size_t nbytes = count * reduce_size(type);
    if (!connect_collective(group, from, nbytes, false))
        return ncclUnhandledCudaError;
    bool here = root == group->rank;
    if (goes(group, nbytes, type) && group->size > 1) {
        payload_key key = key_of(group, root, PAYLOAD_EVERYONE);
        if (here)
            payload_put(key, group->size - 1, (uintptr_t)from, nbytes);
        else
            expect("ncclBroadcast", key, 1, to, nbytes);
    } else if (!here && !is_small(nbytes, type)) {
        vg_ran();
    }
    group->calls++;
    return here ? take_own(to, from, nbytes, type) : ncclSuccess;
}

EXPORT ncclResult_t ncclBcast(void *buffer, size_t count, ncclDataType_t type, int root, ncclComm_t group,
                              cudaStream_t stream)
{
    return ncclBroadcast(buffer, buffer, count, type, root, group, stream);
}

EXPORT ncclResult_t ncclGather(const void *from, void *to, size_t count, ncclDataType_t type, int root,
                               ncclComm_t group, cudaStream_t stream)
{
    vg_collective(group, stream);
    size_t nbytes = count * reduce_size(type);
    if (!connect_all(group, from))
        return ncclUnhandledCudaError;
    bool here = root == group->rank;
    if (goes(group, nbytes * (size_t)group->size, type)) {
        payload_put(key_of(group, group->rank, root), 1, (uintptr_t)from, nbytes);
        if (here)
            expect("ncclGather", key_of(group, 0, root), group->size, to, nbytes);
    } else if (here && !group->id) {
        for (int i = 0; i < group->size; i++)
            take_own((char *)to + (size_t)i * nbytes, from, nbytes, type);
    } else {
        vg_ran();
    }
    group->calls++;
    return ncclSuccess;
}

EXPORT ncclResult_t ncclScatter(const void *from, void *to, size_t count, ncclDataType_t type, int root,
                                ncclComm_t group, cudaStream_t stream)
{
    vg_collective(group, stream);
    size_t nbytes = count * reduce_size(type);
    if (!connect_all(group, from))
        return ncclUnhandledCudaError;
    bool here = root == group->rank;
    if (goes(group, nbytes * (size_t)group->size, type)) {
        if (here)
            put_parts(group, from, nbytes);
        expect("ncclScatter", key_of(group, root, group->rank), 1, to, nbytes);
    } else if (here) {
        take_own(to, (const char *)from + (size_t)group->rank * nbytes, nbytes, type);
    } else {
        vg_ran();
    }
    group->calls++;
    return ncclSuccess;
}

/* ---- from one to one ---- */

/* Where a payload between this rank and `peer` is kept: by group, or, where a rank runs without its group, by the
 * number in the job that this thread was told, and then integers alone. False: it goes nowhere. */
static bool find_channel(ncclComm_t group, int peer, bool sending, size_t nbytes, ncclDataType_t type, payload_key *key)
{
    static uint32_t counts[2][4096]; /* of payloads to and from the ranks of the job */
    int own = group->rank, told = next_peer;
    uint32_t *number;
    next_peer = -1;
    if (group->id) {
        number = sending ? &group->sent[peer] : &group->received[peer];
    } else {
        if (told < 0 || told >= 4096 || payload_rank() < 0 || reduce_is_float(type))
            return false;
        own = payload_rank(), peer = told;
        number = &counts[sending][told];
    }
    *key = (payload_key){group->id, sending ? own : peer, sending ? peer : own, BY_HAND | (*number)++};
    return nbytes && is_small(nbytes, type);
}

EXPORT ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int peer, ncclComm_t group,
                             cudaStream_t stream)
{
    vg_collective(group, stream);
    payload_key key;
    size_t nbytes = count * reduce_size(type);
    if (!connect_peer(group, from, peer, true))
        return ncclUnhandledCudaError;
    if (find_channel(group, peer, true, nbytes, type, &key))
        payload_put(key, 1, (uintptr_t)from, nbytes);
    return ncclSuccess;
}

EXPORT ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int peer, ncclComm_t group,
                             cudaStream_t stream)
{
    vg_collective(group, stream);
    payload_key key;
    size_t nbytes = count * reduce_size(type);
    if (!connect_peer(group, to, peer, false))
        return ncclUnhandledCudaError;
    if (find_channel(group, peer, false, nbytes, type, &key))
        payload_expect(&(payload_wish){.operation = "ncclRecv",
                                       .first = key,
                                       .count = 1,
                                       .by_hand = true,
                                       .to = (uintptr_t)to,
                                       .nbytes = nbytes});
    else
        vg_ran();
    return ncclSuccess;
}
