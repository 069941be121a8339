/* How far a GPU is behind the host. Nothing executes, but what a program allocates depends on what is over: a block that
 * another stream used is free again once an event of that stream is complete, and torch keeps an asynchronous
 * collective's tensors until NCCL's thread sees that it is done (watch.c).
 *
 * A training step keeps the GPU busy, so that the host runs ahead of it as far as it may: what was put into the queue is
 * complete once the host has waited for it or for something later, or once so much came after it that the host had to
 * wait for room. A GPU has one queue: its streams are taken to work off what they got in the order in which they got it.
 * A host that asks again and again, and puts nothing meanwhile, waits: it finds complete what it asks for.
 *
 * No clock is read: a program needs the same memory on a slow machine and on a quick one. Only threads that work, that is,
 * put something, move the queue on; one that never does can wait for an event, and finds it complete, but what it
 * waited for when is not its own doing.
 *
 *   DNNMEM_VGPU_QUEUE     how much fits into a queue; 0: everything is complete at once
 */
#include "driver.h"
#include "virtual_gpu.h"

#include <stdatomic.h>
#include <stdlib.h>

#define PATIENCE 32 /* so often a host asks in vain before it waits */

static struct {
    atomic_ulong put, complete;
} queues[VG_MAX_DEVICES];
static unsigned long room;
static _Thread_local bool works; /* this thread has put something */
static _Thread_local struct {
    unsigned long put;
    int times;
} asked; /* in vain, after so much was put */

__attribute__((constructor)) static void read_room(void)
{
    const char *text = getenv("DNNMEM_VGPU_QUEUE");
    room = text ? strtoul(text, NULL, 10) : 0;
}

static void finish(int device, unsigned long upto)
{
    unsigned long was = atomic_load(&queues[device].complete);
    while (was < upto && !atomic_compare_exchange_weak(&queues[device].complete, &was, upto))
        ;
}

void vg_put(void)
{
    if (!room)
        return;
    int device = dr_current();
    unsigned long now = atomic_fetch_add(&queues[device].put, 1) + 1;
    works = true;
    if (now > room)
        finish(device, now - room);
}

bool vg_works(void) { return works; }
unsigned long vg_room(void) { return room; }
unsigned long vg_last_put(int device) { return atomic_load(&queues[device].put); }
unsigned long vg_last_complete(int device) { return atomic_load(&queues[device].complete); }

void vg_finish(int device, unsigned long upto)
{
    if (works)
        finish(device, upto);
}

static bool asked_too_often(int device)
{
    unsigned long put = vg_last_put(device);
    asked.times = asked.put == put ? asked.times + 1 : 1;
    asked.put = put;
    return asked.times > PATIENCE;
}

bool vg_is_complete(int device, unsigned long which)
{
    if (which <= vg_last_complete(device))
        return true;
    if (!asked_too_often(device))
        return false;
    vg_finish(device, which);
    return true;
}
