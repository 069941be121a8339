/* How far a GPU is behind the host. Nothing executes, but what a program allocates depends on what is over: a block that
 * another stream used is free again once an event of that stream is complete, and NCCL's thread lets go of a collective's
 * tensors once it is done.
 *
 * A training step keeps the GPU busy, so that the host runs ahead of it as far as it may: what was put into the queue is
 * complete once the host has waited for it or for something later, or once so much came after it that the host had to
 * wait for room. A GPU has one queue: its streams are taken to work off what they got in the order in which they got it.
 * A host that gives it nothing to do for a second finds everything complete. A host that waits for room waits for a while,
 * so that a thread that only looks, as NCCL's does ten times a second, looks at least once while a queue is worked off.
 *
 *   DNNMEM_VGPU_QUEUE     how much fits into a queue; 0: everything is complete at once
 */
#include "driver.h"
#include "virtual_gpu.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#define IDLE_SECONDS 1.0
#define LOOK_SECONDS 0.2 /* who has not looked for so long has stopped looking */

static struct {
    atomic_ulong put, complete;
    _Atomic double last_put; /* when */
    atomic_ulong looked;     /* what was put when somebody looked last; 0: nobody looks */
} queues[VG_MAX_DEVICES];
static unsigned long room;
static _Thread_local bool works; /* this thread has put something */

__attribute__((constructor)) static void read_room(void)
{
    const char *text = getenv("DNNMEM_VGPU_QUEUE");
    room = text ? strtoul(text, NULL, 10) : 0;
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Let whoever looks have a look. */
static void wait_for_look(int device, unsigned long was)
{
    double begun = seconds();
    while (atomic_load(&queues[device].looked) == was && seconds() - begun < LOOK_SECONDS)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    atomic_compare_exchange_strong(&queues[device].looked, &was, 0);
}

void vg_put(void)
{
    if (!room)
        return;
    int device = dr_current();
    unsigned long now = atomic_fetch_add(&queues[device].put, 1) + 1;
    unsigned long looked = atomic_load(&queues[device].looked);
    works = true;
    if (looked && now - looked > room)
        wait_for_look(device, looked);
    atomic_store(&queues[device].last_put, seconds());
    if (now > room)
        vg_finish(device, now - room);
}

unsigned long vg_last_put(int device) { return atomic_load(&queues[device].put); }

void vg_finish(int device, unsigned long upto)
{
    unsigned long was = atomic_load(&queues[device].complete);
    while (was < upto && !atomic_compare_exchange_weak(&queues[device].complete, &was, upto))
        ;
}

bool vg_is_complete(int device, unsigned long which)
{
    if (!works)
        atomic_store(&queues[device].looked, atomic_load(&queues[device].put));
    if (which > atomic_load(&queues[device].complete) &&
        seconds() - atomic_load(&queues[device].last_put) > IDLE_SECONDS)
        vg_finish(device, which);
    return which <= atomic_load(&queues[device].complete);
}
