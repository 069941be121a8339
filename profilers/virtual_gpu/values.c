/* The few values that device memory holds: small copies and memsets really happen, so that what a program writes and
 * reads back without computing is true.
 *
 *   DNNMEM_VGPU_SMALL_BYTES    largest copy or memset that happens (4096)
 *   DNNMEM_VGPU_KEEP=1         values outlive kernels: whoever asks for it writes what the kernels would have written
 *
 * A kernel writes nothing here. What it would have written is unknown, so after one all small values are forgotten and
 * read as 0; a large copy to the host is zeros as well. Memory appears behind an address when a value first goes there.
 */
#include "virtual_gpu.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static size_t small_bytes = 4096;
static bool keep;
static atomic_bool stale; /* something ran since the last small value was written */
typedef struct {
    uintptr_t start;
    size_t nbytes;
} piece;
static piece *written; /* pieces that hold values */
static size_t written_count, written_room;
static uintptr_t *backed; /* sorted pages that have memory */
static size_t backed_count, backed_room;

__attribute__((constructor)) static void read_settings(void)
{
    const char *text = getenv("DNNMEM_VGPU_SMALL_BYTES");
    if (text)
        small_bytes = strtoull(text, NULL, 10);
    text = getenv("DNNMEM_VGPU_KEEP");
    keep = text && !strcmp(text, "1");
}

void vg_ran(void) { atomic_store(&stale, true); }

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
void vg_drop_values(uintptr_t start, size_t nbytes)
{
    pthread_mutex_lock(&lock);
    uintptr_t end = start + nbytes;
    for (size_t i = place_of(start & ~(VG_PAGE_BYTES - 1)); i < backed_count && backed[i] < end; i++) {
        uintptr_t from = backed[i] < start ? start : backed[i];
        uintptr_t to = backed[i] + VG_PAGE_BYTES < end ? backed[i] + VG_PAGE_BYTES : end;
        if (to - from == VG_PAGE_BYTES)
            madvise((void *)from, VG_PAGE_BYTES, MADV_DONTNEED);
        else
            memset((void *)from, 0, to - from);
    }
    pthread_mutex_unlock(&lock);
}

void vg_copy(uintptr_t to, uintptr_t from, size_t nbytes)
{
    bool to_device = vg_device_of(to) >= 0, from_device = vg_device_of(from) >= 0;
    if (!nbytes)
        return;
    if (!to_device && !from_device) {
        memmove((void *)to, (void *)from, nbytes);
        return;
    }
    pthread_mutex_lock(&lock);
    bool happens = nbytes <= small_bytes && (!to_device || back(to, nbytes)) && (!from_device || back(from, nbytes));
    if (happens) {
        settle();
        memmove((void *)to, (void *)from, nbytes);
        if (to_device)
            note_written(to, nbytes);
    } else if (to_device) {
        vg_ran();
    } else {
        memset((void *)to, 0, nbytes);
    }
    pthread_mutex_unlock(&lock);
}

void vg_fill(uintptr_t to, unsigned value, size_t width, size_t count)
{
    size_t nbytes = width * count;
    if (!nbytes)
        return;
    pthread_mutex_lock(&lock);
    bool on_device = vg_device_of(to) >= 0;
    if (on_device && (nbytes > small_bytes || !back(to, nbytes))) {
        vg_ran();
    } else {
        settle();
        for (size_t i = 0; i < count; i++)
            memcpy((char *)to + i * width, &value, width);
        if (on_device)
            note_written(to, nbytes);
    }
    pthread_mutex_unlock(&lock);
}
