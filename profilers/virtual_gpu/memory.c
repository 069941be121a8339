/* The memory of the virtual GPUs of this process: how many bytes are in use, which addresses are taken.
 *
 * Each GPU has a window of addresses. Allocations go upward in it, and into gaps once its end is reached.
 */
#include "virtual_gpu.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define FIRST_WINDOW ((uintptr_t)0x302000000) /* above any heap, below where the kernel puts libraries */
#define WINDOW_BYTES ((size_t)1 << 40)
#define LEAST_WINDOW_BYTES ((size_t)1 << 36)
#define SMALL_BYTES VG_MIB   /* requests below this share a page, as they do in the real driver */
#define SMALL_STEP_BYTES 512 /* alignment of cudaMalloc */

typedef struct {
    bool open;
    size_t used;
    uintptr_t base, end, next; /* window, and the first address in it that was never used */
} gpu;

typedef struct {
    uintptr_t start;
    size_t filled; /* bytes given out so far */
    int pieces;    /* of them alive */
    int device;
} small_page;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static gpu gpus[VG_MAX_DEVICES];

static vg_range *ranges; /* sorted by start */
static size_t range_count, range_room;
static small_page *pages; /* a page without pieces has start 0, and its place is used again */
static int page_count;

/* ---- bytes in use ---- */

static bool charge(int device, size_t nbytes)
{
    if (nbytes > vg_total_bytes() - gpus[device].used)
        return false;
    gpus[device].used += nbytes;
    return true;
}

bool vg_charge(int device, size_t nbytes)
{
    pthread_mutex_lock(&lock);
    bool fits = charge(device, nbytes);
    pthread_mutex_unlock(&lock);
    return fits;
}

void vg_discharge(int device, size_t nbytes)
{
    pthread_mutex_lock(&lock);
    gpus[device].used -= nbytes;
    pthread_mutex_unlock(&lock);
}

size_t vg_used_bytes(int device) { return gpus[device].used; }
bool vg_is_open(int device) { return gpus[device].open; }

/* Take the window of addresses: where it belongs, or, where that is taken or too large, wherever the kernel has room. */
static void take_window(gpu *it, int device)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *hint = (void *)(FIRST_WINDOW + (size_t)device * WINDOW_BYTES);
    for (size_t nbytes = WINDOW_BYTES; nbytes >= LEAST_WINDOW_BYTES; nbytes /= 2) {
        char *window = mmap(hint, nbytes, PROT_NONE, flags, -1, 0);
        if (window == MAP_FAILED)
            continue;
        it->base = it->next = ((uintptr_t)window + VG_PAGE_BYTES - 1) & ~(VG_PAGE_BYTES - 1);
        it->end = (uintptr_t)window + nbytes;
        return;
    }
    fprintf(stderr, "dnnmem: no %zu GiB of addresses for a virtual GPU: `ulimit -v` must be unlimited\n",
            LEAST_WINDOW_BYTES >> 30);
    abort();
}

bool vg_open(int device)
{
    pthread_mutex_lock(&lock);
    gpu *it = &gpus[device];
    if (!it->open && charge(device, vg_context_bytes()))
        it->open = true;
    pthread_mutex_unlock(&lock);
    return it->open;
}

/* ---- addresses ---- */

int vg_device_of(uintptr_t address)
{
    for (int i = 0; i < vg_device_count(); i++)
        if (address >= gpus[i].base && address < gpus[i].end)
            return i;
    return -1;
}

/* Index of the first range that begins after `address`. */
static size_t after(uintptr_t address)
{
    size_t low = 0, high = range_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (ranges[middle].start <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void track(vg_range range)
{
    if (range_count == range_room) {
        range_room = range_room ? 2 * range_room : 1024;
        ranges = realloc(ranges, range_room * sizeof *ranges);
        if (!ranges)
            abort();
    }
    size_t at = after(range.start);
    memmove(&ranges[at + 1], &ranges[at], (range_count - at) * sizeof *ranges);
    ranges[at] = range;
    range_count++;
}

void vg_track(vg_range range)
{
    pthread_mutex_lock(&lock);
    track(range);
    pthread_mutex_unlock(&lock);
}

bool vg_find(uintptr_t address, vg_range *found)
{
    pthread_mutex_lock(&lock);
    size_t at = after(address);
    bool inside = at && address - ranges[at - 1].start < (ranges[at - 1].nbytes ? ranges[at - 1].nbytes : 1);
    if (inside)
        *found = ranges[at - 1];
    pthread_mutex_unlock(&lock);
    return inside;
}

/* End of what is taken at or before a range: a piece of a page takes its whole page. */
static uintptr_t end_of(const vg_range *range)
{
    uintptr_t end = range->page >= 0 ? pages[range->page].start + VG_PAGE_BYTES : range->start + range->nbytes;
    return (end + VG_PAGE_BYTES - 1) & ~(VG_PAGE_BYTES - 1);
}

/* Whole pages of addresses: above all that were ever used, or else in the lowest gap. */
static uintptr_t addresses(int device, size_t nbytes)
{
    gpu *it = &gpus[device];
    if (!it->base) /* addresses may be asked for before there is a context */
        take_window(it, device);
    if (nbytes <= it->end - it->next) {
        it->next += nbytes;
        return it->next - nbytes;
    }
    uintptr_t gap = it->base;
    for (size_t i = after(it->base - 1); i < range_count && ranges[i].start < it->end; i++) {
        if (ranges[i].start > gap && ranges[i].start - gap >= nbytes)
            return gap;
        gap = end_of(&ranges[i]) > gap ? end_of(&ranges[i]) : gap;
    }
    return gap < it->end && it->end - gap >= nbytes ? gap : 0;
}

static size_t whole_pages(size_t nbytes) { return (nbytes + VG_PAGE_BYTES - 1) & ~(VG_PAGE_BYTES - 1); }

/* A page with room for `nbytes` more, or a new one; -1: out of memory. */
static int page_for(int device, size_t nbytes)
{
    int place = page_count;
    for (int i = page_count - 1; i >= 0; i--) {
        if (pages[i].start && pages[i].device == device && pages[i].filled + nbytes <= VG_PAGE_BYTES)
            return i;
        if (!pages[i].start)
            place = i;
    }
    uintptr_t start = addresses(device, VG_PAGE_BYTES);
    if (!start || !charge(device, VG_PAGE_BYTES))
        return -1; /* a page of addresses is lost then, not of memory */
    if (place == page_count && !(pages = realloc(pages, (size_t)++page_count * sizeof *pages)))
        abort();
    pages[place] = (small_page){.start = start, .device = device};
    return place;
}

uintptr_t vg_allocate(int device, size_t nbytes)
{
    vg_range made = {.nbytes = nbytes, .kind = VG_DEVICE_MEMORY, .device = device, .page = -1};
    pthread_mutex_lock(&lock);
    if (nbytes < SMALL_BYTES) {
        size_t step = (nbytes + SMALL_STEP_BYTES - 1) & ~(size_t)(SMALL_STEP_BYTES - 1);
        made.page = page_for(device, step);
        if (made.page >= 0) {
            made.start = pages[made.page].start + pages[made.page].filled;
            pages[made.page].filled += step;
            pages[made.page].pieces++;
        }
    } else if (nbytes <= vg_total_bytes() && charge(device, whole_pages(nbytes))) {
        made.charged = whole_pages(nbytes);
        made.start = addresses(device, made.charged);
        if (!made.start)
            gpus[device].used -= made.charged;
    }
    if (made.start)
        track(made);
    pthread_mutex_unlock(&lock);
    return made.start;
}

uintptr_t vg_reserve(int device, size_t nbytes)
{
    pthread_mutex_lock(&lock);
    uintptr_t start = addresses(device, whole_pages(nbytes));
    if (start)
        track((vg_range){.start = start, .nbytes = nbytes, .kind = VG_ADDRESSES, .device = device, .page = -1});
    pthread_mutex_unlock(&lock);
    return start;
}

static void give_back(const vg_range *range)
{
    gpus[range->device].used -= range->charged;
    if (range->page < 0 || --pages[range->page].pieces)
        return;
    pages[range->page].start = 0;
    gpus[range->device].used -= VG_PAGE_BYTES;
}

bool vg_forget(uintptr_t start, vg_range *was)
{
    pthread_mutex_lock(&lock);
    size_t at = after(start);
    bool begins = at && ranges[at - 1].start == start;
    if (begins) {
        *was = ranges[at - 1];
        range_count--;
        memmove(&ranges[at - 1], &ranges[at], (range_count - at + 1) * sizeof *ranges);
        if (was->device >= 0)
            give_back(was);
    }
    pthread_mutex_unlock(&lock);
    if (begins && was->device >= 0)
        vg_drop_values(was->start, was->nbytes);
    return begins;
}
