/* NCCL's thread, and when it sees that a collective is done.
 *
 * torch has a thread for each process group that asks ten times a second, by the clock on the wall, for the event behind
 * each collective; once it is complete, the tensors that the collective held are let go of when the next one is put. How
 * many steps that takes would depend on how quick this machine is. So that thread sees what it would see if it looked once
 * each time a queue is worked off: with the first collective after so much was put, the program waits until its thread has
 * looked, and at no other time does that one see anything.
 *
 *     put       0 ......... 1024 ......... 2048 .........       kernels and copies
 *     look             ^ first collective after 1024   ^        what is complete now, is seen now
 *
 * What it asks for is known: the event that is recorded on a stream right after a collective went there. It sees all
 * of a communicator that ends, everything when Python ends, and what it has asked for in vain for a minute.
 */
#define _GNU_SOURCE
#include "driver.h"
#include "virtual_gpu.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LONGEST_LOOK_SECONDS 10.0 /* who has not looked for so long does not look */
#define LONGEST_WAIT_SECONDS 60.0
#define MAX_LOOKERS 64

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static watched *first;
static unsigned long seen[VG_MAX_DEVICES], looked_at[VG_MAX_DEVICES];
static int lookers[MAX_LOOKERS], looker_count; /* threads that have looked since the last time to look began */
static unsigned long times;                    /* to look, so far */
static atomic_bool nobody_looks;

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void sleep_a_millisecond(void) { nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL); }

/* ---- what is watched ---- */

static void unlink_it(watched *it)
{
    if (!it->is)
        return;
    *(it->before ? &it->before->next : &first) = it->next;
    if (it->next)
        it->next->before = it->before;
    it->is = false;
}

void vg_unwatch(watched *it)
{
    pthread_mutex_lock(&lock);
    unlink_it(it);
    pthread_mutex_unlock(&lock);
}

void vg_watch(watched *it, const void *group, int device, unsigned long last)
{
    pthread_mutex_lock(&lock);
    unlink_it(it);
    *it = (watched){.is = true, .group = group, .device = device, .last = last, .next = first};
    if (first)
        first->before = it;
    first = it;
    pthread_mutex_unlock(&lock);
}

/* ---- the thread that looks ---- */

static bool python_ends(void)
{
    int (*runs)(void) = (int (*)(void))dlsym(RTLD_DEFAULT, "Py_IsInitialized");
    int (*ends)(void) = (int (*)(void))dlsym(RTLD_DEFAULT, "Py_IsFinalizing");
    if (!ends)
        ends = (int (*)(void))dlsym(RTLD_DEFAULT, "_Py_IsFinalizing");
    return (runs && !runs()) || (ends && ends());
}

static void remember_looker(void)
{
    static _Thread_local unsigned long known;
    if (known != times && looker_count < MAX_LOOKERS)
        lookers[looker_count++] = (int)syscall(SYS_gettid);
    known = times;
}

bool vg_is_seen(watched *it)
{
    pthread_mutex_lock(&lock);
    remember_looker();
    atomic_store(&nobody_looks, false);
    if (!it->asked)
        it->asked = seconds();
    bool result =
        it->last <= seen[it->device] || python_ends() || seconds() - it->asked > LONGEST_WAIT_SECONDS;
    if (result)
        unlink_it(it);
    pthread_mutex_unlock(&lock);
    return result;
}

/* ---- the thread that works, and lets the other one look ---- */

/* Is there something to see? */
static bool is_unseen(int device, bool drop)
{
    bool found = false;
    pthread_mutex_lock(&lock);
    for (watched *it = first, *next; it; it = next) {
        next = it->next;
        bool here = it->device == device && it->last && it->last <= seen[device];
        found = found || here;
        if (here && drop)
            unlink_it(it);
    }
    pthread_mutex_unlock(&lock);
    return found;
}

static bool is_awake(int thread)
{
    char path[64], state = 'S';
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", thread);
    FILE *file = fopen(path, "r");
    if (!file)
        return false;
    if (fscanf(file, "%*d (%*[^)]) %c", &state) != 1)
        state = 'S';
    fclose(file);
    return state == 'R';
}

static bool is_somebody_awake(void)
{
    bool found = false;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < looker_count && !found; i++)
        found = is_awake(lookers[i]);
    pthread_mutex_unlock(&lock);
    return found;
}

static void let_look(int device)
{
    pthread_mutex_lock(&lock);
    seen[device] = vg_last_complete(device);
    looker_count = 0;
    times++;
    pthread_mutex_unlock(&lock);
    if (!is_unseen(device, atomic_load(&nobody_looks)) || atomic_load(&nobody_looks))
        return;
    atomic_store(&nobody_looks, true); /* until somebody does */
    double begun = seconds();
    while (is_unseen(device, false) && seconds() - begun < LONGEST_LOOK_SECONDS)
        sleep_a_millisecond();
    is_unseen(device, true);
    do /* what it does with what it has seen */
        sleep_a_millisecond();
    while (is_somebody_awake() && seconds() - begun < LONGEST_LOOK_SECONDS);
}

EXPORT void vg_collective(const void *group, CUstream stream)
{
    if (!vg_room())
        return;
    stream = dr_stream(stream);
    stream->collective = group;
    unsigned long put = vg_last_put(stream->device);
    if (put - looked_at[stream->device] < vg_room())
        return;
    looked_at[stream->device] = put;
    let_look(stream->device);
}

EXPORT void vg_end_collectives(const void *group)
{
    pthread_mutex_lock(&lock);
    for (watched *it = first; it; it = it->next)
        if (it->group == group)
            it->last = 0;
    pthread_mutex_unlock(&lock);
}
