/* libnccl.so, its memory: the buffers of a communicator, which appear when it first needs a way to another rank.
 *
 * How many bytes each way takes on this GPU is told by the environment (nccl_memory.py has the formula and its
 * sources): DNNMEM_VGPU_NCCL=RING,TREE,NVLS,SEND,RECEIVE; NVLS is for each rank of the node, the last two for each rank
 * that something goes to or comes from by hand. Without it there are none.
 */
#include "communicators.h"
#include "virtual_gpu.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define SMALL_REDUCTION VG_MIB /* up to here a tree is quicker than a ring */
#define MOST_PEERS 4096

enum { RING = 1, TREE = 2, NVLS = 4 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static size_t in_use[VG_MAX_DEVICES];
static const char *refused = "";

const char *connect_error(void) { return refused; }

static struct {
    bool known;
    size_t ring, tree, nvls, send, receive;
} costs;

/* Bytes of NCCL on a device of this process. */
EXPORT size_t dnnmem_nccl_bytes(int device)
{
    pthread_mutex_lock(&lock);
    size_t nbytes = device >= 0 && device < VG_MAX_DEVICES ? in_use[device] : 0;
    pthread_mutex_unlock(&lock);
    return nbytes;
}

static void read_costs(void)
{
    const char *text = getenv("DNNMEM_VGPU_NCCL");
    if (text && !costs.known)
        sscanf(text, "%zu,%zu,%zu,%zu,%zu", &costs.ring, &costs.tree, &costs.nvls, &costs.send, &costs.receive);
    costs.known = true;
}

static int local_ranks(ncclComm_t group)
{
    int here = vg_device_count();
    return group->size && group->size < here ? group->size : here;
}

/* Under the lock. */
static bool charge(ncclComm_t group, const void *buffer, size_t nbytes)
{
    if (!group->charged) {
        int device = vg_device_of((uintptr_t)buffer);
        group->device = device < 0 ? 0 : device;
    }
    if (nbytes && !vg_charge(group->device, nbytes)) {
        refused = "out of memory: the GPU has no room for NCCL's buffers";
        return false;
    }
    group->charged += nbytes;
    in_use[group->device] += nbytes;
    return true;
}

bool connect_collective(ncclComm_t group, const void *buffer, size_t nbytes, bool reduces)
{
    if (group->size == 1)
        return true;
    pthread_mutex_lock(&lock);
    read_costs();
    unsigned wanted = RING;
    if (group->size != 2 && reduces && nbytes <= SMALL_REDUCTION)
        wanted = TREE;
    else if (group->size != 2 && local_ranks(group) > 2)
        wanted = RING | NVLS;
    wanted &= ~group->connected;
    size_t more = (wanted & RING ? costs.ring : 0) + (wanted & TREE ? costs.tree : 0);
    more += wanted & NVLS ? costs.nvls * (size_t)local_ranks(group) : 0;
    bool fits = charge(group, buffer, more);
    group->connected |= fits ? wanted : 0;
    pthread_mutex_unlock(&lock);
    return fits;
}

bool connect_peer(ncclComm_t group, const void *buffer, int peer, bool sends)
{
    if (peer == group->rank || peer < 0 || peer >= MOST_PEERS)
        return true;
    pthread_mutex_lock(&lock);
    read_costs();
    uint64_t *met = sends ? group->to : group->from, bit = (uint64_t)1 << peer % 64;
    int before = 0;
    for (int i = 0; i < MOST_PEERS / 64; i++)
        before += __builtin_popcountll(met[i]);
    bool known = met[peer / 64] & bit, near = before < local_ranks(group) - 1; /* those of other nodes share buffers */
    bool fits = known || charge(group, buffer, !near ? 0 : sends ? costs.send : costs.receive);
    met[peer / 64] |= fits ? bit : 0;
    pthread_mutex_unlock(&lock);
    return fits;
}

void connect_end(ncclComm_t group)
{
    pthread_mutex_lock(&lock);
    if (group->charged) {
        vg_discharge(group->device, group->charged);
        in_use[group->device] -= group->charged;
    }
    pthread_mutex_unlock(&lock);
}
