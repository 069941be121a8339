/* Calls that have no answer, and answers that are a model's.
 *
 *   DNNMEM_VGPU_STRICT=0       a call that nobody has reviewed does nothing, instead of ending the process
 *   DNNMEM_VGPU_ERROR_FILE     where such a call writes what it was, as JSON
 */
#include "virtual_gpu.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void write_error(const char *path, const char *symbol)
{
    FILE *file = fopen(path, "w");
    if (!file)
        return;
    fprintf(file,
            "{\"type\": \"UnsupportedError\", \"message\": \"this step calls %s, which the virtual GPU does not have: "
            "what it would do to memory is not known\", \"hint\": \"dnnmem profile --device fake needs no virtual GPU, and "
            "--device cuda has a real one\"}",
            symbol);
    fclose(file);
}

int vg_unreviewed(const char *symbol)
{
    const char *strict = getenv("DNNMEM_VGPU_STRICT"), *path = getenv("DNNMEM_VGPU_ERROR_FILE");
    if (strict && !strcmp(strict, "0"))
        return 0;
    fprintf(stderr, "dnnmem: the virtual GPU has no %s: what it would do to memory is not known\n", symbol);
    if (path && *path)
        write_error(path, symbol);
    abort();
}

/* ---- what is a model ---- */

static atomic_long calls[VG_TOPICS];
static atomic_size_t most[VG_TOPICS];

size_t vg_modelled(vg_topic topic, size_t nbytes)
{
    calls[topic]++;
    size_t before = most[topic];
    while (nbytes > before && !atomic_compare_exchange_weak(&most[topic], &before, nbytes))
        ;
    return nbytes;
}

long vg_modelled_calls(vg_topic topic) { return calls[topic]; }
size_t vg_modelled_most(vg_topic topic) { return most[topic]; }
