/* Values that are still to come from other ranks: libnccl brings them in when somebody touches where they belong, or
 * when the host waits for the GPU.
 *
 *   DNNMEM_VGPU_ERROR_FILE     where the reason is written as JSON if they never come
 */
#include "virtual_gpu.h"

#include <stdio.h>
#include <stdlib.h>

static void (*settle)(uintptr_t start, size_t nbytes);
static _Thread_local bool any_size;

void vg_on_touch(void (*then)(uintptr_t start, size_t nbytes)) { settle = then; }

void vg_touched(uintptr_t start, size_t nbytes)
{
    if (settle && nbytes)
        settle(start, nbytes);
}

void vg_waited(void)
{
    if (settle)
        settle(0, 0);
}

void vg_carry_any_size(bool any) { any_size = any; }
bool vg_carries_any_size(void) { return any_size; }

/* `text` as JSON has it; the texts are our own, and hold nothing odd but quotes. */
static void write_text(FILE *file, const char *text)
{
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            fputc('\\', file);
        fputc((unsigned char)*text < ' ' ? ' ' : *text, file);
    }
}

void vg_give_up(const char *message, const char *hint)
{
    const char *path = getenv("DNNMEM_VGPU_ERROR_FILE");
    FILE *file = path && *path ? fopen(path, "w") : NULL;
    fprintf(stderr, "dnnmem: %s\n", message);
    if (file) {
        fputs("{\"type\": \"UnsupportedError\", \"message\": \"", file);
        write_text(file, message);
        fputs("\", \"hint\": \"", file);
        write_text(file, hint);
        fputs("\"}", file);
        fclose(file);
    }
    abort();
}
