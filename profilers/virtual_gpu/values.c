/* The few values that device memory holds: small copies and memsets really happen, so that what a program writes and
 * reads back without computing is true.
 *
 * A kernel writes nothing here. What it would have written is unknown, so after one all small values are forgotten and
 * read as 0; a large copy to the host is zeros as well. Memory appears behind an address when a value first goes there.
 *
 * With `vg_keep_values` they outlive kernels: its caller moves behind an address what kernels would have written
 * (`vg_move`), drops what is no longer true (`vg_drop_values`), and says what the host is to read of the counts that a
 * kernel leaves for it (`vg_expect`).
 */
#include "virtual_gpu.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static size_t small_bytes = 4096; /* largest copy or memset that happens */
static bool keep;
static _Thread_local int64_t counts[VG_MAX_COUNTS]; /* what the host is to read next */
static _Thread_local int counts_left, counts_next;
static _Thread_local bool expecting;
static atomic_bool stale; /* something ran since the last small value was written */
typedef struct {
    uintptr_t start;
    size_t nbytes;
} piece;
static piece *written; /* pieces that hold values */
static size_t written_count, written_room;
static uintptr_t *backed; /* sorted pages that have memory */
static size_t backed_count, backed_room;

void vg_keep_values(size_t largest)
{
    small_bytes = largest;
    keep = true;
}

void vg_expect(const int64_t *values, int count)
{
    expecting = count >= 0;
    counts_next = 0;
    counts_left = count < 0 ? 0 : count < VG_MAX_COUNTS ? count : VG_MAX_COUNTS;
    for (int i = 0; i < counts_left; i++)
        counts[i] = values[i];
}

/* What the host reads of device memory while an operator runs: truths are 1, numbers those that were told, then 0. */
static void give_expected(char *to, size_t nbytes)
{
    int64_t value = nbytes == 1;
    if (nbytes > 1 && counts_left) {
        value = counts[counts_next++];
        counts_left--;
    }
    memset(to, 0, nbytes);
    memcpy(to, &value, nbytes < sizeof value ? nbytes : sizeof value);
}

static void forget(void) { atomic_store(&stale, true); }

void vg_ran(void)
{
    vg_put();
    forget();
}

/* `list`, with room for one more item. */
static void *with_room(void *list, size_t used, size_t *room, size_t item_bytes)
{
    if (used < *room)
        return list;
    *room = *room ? 2 * *room : 256;
    list = realloc(list, *room * item_bytes);
    if (!list)
        abort();
    return list;
}

static size_t place_of(uintptr_t page)
{
    size_t low = 0, high = backed_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (backed[middle] < page)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Put memory behind the pages of a small piece of device memory; false if the kernel has none. */
static bool back(uintptr_t start, size_t nbytes)
{
    for (uintptr_t page = start & ~(VG_PAGE_BYTES - 1); page < start + nbytes; page += VG_PAGE_BYTES) {
        size_t at = place_of(page);
        if (at < backed_count && backed[at] == page)
            continue;
        if (mprotect((void *)page, VG_PAGE_BYTES, PROT_READ | PROT_WRITE))
            return false;
        backed = with_room(backed, backed_count, &backed_room, sizeof *backed);
        memmove(&backed[at + 1], &backed[at], (backed_count - at) * sizeof *backed);
        backed[at] = page;
        backed_count++;
    }
    return true;
}

/* Forget what kernels may have overwritten. */
static void settle(void)
{
    if (keep || !atomic_exchange(&stale, false))
        return;
    for (size_t i = 0; i < written_count; i++)
        memset((void *)written[i].start, 0, written[i].nbytes);
    written_count = 0;
}

static void note_written(uintptr_t start, size_t nbytes)
{
    if (keep)
        return;
    written = with_room(written, written_count, &written_room, sizeof *written);
    written[written_count++] = (piece){start, nbytes};
}

/* Memory that was freed reads as 0 when it is given out again, and costs nothing meanwhile. */
static void drop(uintptr_t start, size_t nbytes)
{
    uintptr_t end = start + nbytes;
    for (size_t i = place_of(start & ~(VG_PAGE_BYTES - 1)); i < backed_count && backed[i] < end; i++) {
        uintptr_t from = backed[i] < start ? start : backed[i];
        uintptr_t to = backed[i] + VG_PAGE_BYTES < end ? backed[i] + VG_PAGE_BYTES : end;
        if (to - from == VG_PAGE_BYTES)
            madvise((void *)from, VG_PAGE_BYTES, MADV_DONTNEED);
        else
            memset((void *)from, 0, to - from);
    }
}

void vg_drop_values(uintptr_t start, size_t nbytes)
{
    vg_touched(start, nbytes);
    pthread_mutex_lock(&lock);
    drop(start, nbytes);
    pthread_mutex_unlock(&lock);
}

/* Zeros on the host. Memory of ours that reads as 0 without being there stays away: offloaded tensors cost nothing. */
static void clear(uintptr_t to, size_t nbytes)
{
    vg_range range;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), end = to + nbytes;
    uintptr_t first = (to + page - 1) & ~(page - 1), last = end & ~(page - 1);
    bool ours = vg_find(to, &range) && range.kind == VG_HOST_MEMORY && end <= range.start + range.nbytes;
    if (!ours || first >= last || madvise((void *)first, last - first, MADV_DONTNEED)) {
        memset((void *)to, 0, nbytes);
        return;
    }
    memset((void *)to, 0, first - to);
    memset((void *)last, 0, end - last);
}

static void copy(uintptr_t to, uintptr_t from, size_t nbytes, size_t most)
{
    bool to_device = vg_device_of(to) >= 0, from_device = vg_device_of(from) >= 0;
    if (!nbytes)
        return;
    if (!to_device && !from_device) {
        memmove((void *)to, (void *)from, nbytes);
        return;
    }
    vg_touched(to, nbytes);
    vg_touched(from, nbytes);
    pthread_mutex_lock(&lock);
    bool happens = nbytes <= most && (!to_device || back(to, nbytes)) && (!from_device || back(from, nbytes));
    if (happens) {
        settle();
        memmove((void *)to, (void *)from, nbytes);
        if (to_device)
            note_written(to, nbytes);
    } else if (to_device) {
        forget();
    } else {
        clear(to, nbytes);
    }
    pthread_mutex_unlock(&lock);
}

void vg_copy(uintptr_t to, uintptr_t from, size_t nbytes)
{
    vg_put();
    if (expecting && nbytes && vg_device_of(to) < 0 && vg_device_of(from) >= 0)
        give_expected((char *)to, nbytes);
    else
        copy(to, from, nbytes, vg_carries_any_size() ? SIZE_MAX : small_bytes);
}

void vg_move(uintptr_t to, uintptr_t from, size_t nbytes) { copy(to, from, nbytes, SIZE_MAX); }

void vg_fill(uintptr_t to, unsigned value, size_t width, size_t count)
{
    size_t nbytes = width * count;
    if (!nbytes)
        return;
    vg_put();
    vg_touched(to, nbytes);
    pthread_mutex_lock(&lock);
    bool on_device = vg_device_of(to) >= 0;
    if (on_device && keep && !value) {
        drop(to, nbytes); /* what has no memory reads as 0 */
    } else if (on_device && (nbytes > small_bytes || !back(to, nbytes))) {
        forget();
    } else {
        settle();
        for (size_t i = 0; i < count; i++)
            memcpy((char *)to + i * width, &value, width);
        if (on_device)
            note_written(to, nbytes);
    }
    pthread_mutex_unlock(&lock);
}
