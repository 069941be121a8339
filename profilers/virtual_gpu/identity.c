/* Who the virtual GPUs of this process are, by its environment (identity.py writes it):
 *
 *   DNNMEM_VGPU_NAME  _COUNT  _TOTAL_BYTES  _CONTEXT_BYTES  _PEERS  _KERNEL_VERSION  _ATTRIBUTES (number=value,...)
 */
#include "virtual_gpu.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ATTRIBUTE 256

static int present, count, visible[VG_MAX_DEVICES]; /* in the machine; seen; which those are */
static pthread_once_t visible_once = PTHREAD_ONCE_INIT;
static char name[256];
static size_t total_bytes, context_bytes;
static bool peers;
static int kernel_version;
static int attributes[MAX_ATTRIBUTE];

static unsigned long long number(const char *variable)
{
    const char *text = getenv(variable);
    return text ? strtoull(text, NULL, 10) : 0;
}

/* CUDA reads the variable when it is first used, so that a program can set it before. */
static void read_visible(void)
{
    const char *text = getenv("CUDA_VISIBLE_DEVICES");
    if (!text) {
        for (count = 0; count < present; count++)
            visible[count] = count;
        return;
    }
    for (char *end; *text && count < VG_MAX_DEVICES; text = *end == ',' ? end + 1 : end) {
        long index = strtol(text, &end, 10);
        if (end == text || index < 0 || index >= present)
            break;
        visible[count++] = (int)index;
    }
}

/* Again, where a process changes its environment before it uses a GPU. */
__attribute__((constructor)) void vg_read_identity(void)
{
    const char *text = getenv("DNNMEM_VGPU_NAME");
    snprintf(name, sizeof name, "%s", text ? text : "");
    present = (int)number("DNNMEM_VGPU_COUNT");
    present = present > VG_MAX_DEVICES ? VG_MAX_DEVICES : present;
    total_bytes = number("DNNMEM_VGPU_TOTAL_BYTES");
    context_bytes = number("DNNMEM_VGPU_CONTEXT_BYTES");
    peers = number("DNNMEM_VGPU_PEERS") != 0;
    kernel_version = (int)number("DNNMEM_VGPU_KERNEL_VERSION");
    text = getenv("DNNMEM_VGPU_ATTRIBUTES");
    while (text && *text) {
        char *end;
        long key = strtol(text, &end, 10);
        long value = *end == '=' ? strtol(end + 1, &end, 10) : 0;
        if (key > 0 && key < MAX_ATTRIBUTE)
            attributes[key] = (int)value;
        text = *end == ',' ? end + 1 : NULL;
    }
}

int vg_device_count(void)
{
    pthread_once(&visible_once, read_visible);
    return count;
}

int vg_present_count(void) { return present; }
int vg_present_index(int device) { return device >= 0 && device < vg_device_count() ? visible[device] : -1; }

int vg_visible_index(int index)
{
    for (int i = 0; i < vg_device_count(); i++)
        if (visible[i] == index)
            return i;
    return -1;
}

const char *vg_device_name(void) { return name; }
size_t vg_total_bytes(void) { return total_bytes; }
size_t vg_context_bytes(void) { return context_bytes; }
bool vg_peers(void) { return peers; }
int vg_kernel_version(void) { return kernel_version; }

int vg_attribute(int key, int device)
{
    enum { PCI_BUS_ID = 33 };
    if (key == PCI_BUS_ID)
        return vg_present_index(device) + 1;
    return key > 0 && key < MAX_ATTRIBUTE ? attributes[key] : 0;
}

/* Of a GPU by its place in the machine. */
void vg_uuid(int index, char bytes[16])
{
    memcpy(bytes, "dnnmem-vgpu-0000", 16);
    bytes[15] = (char)index;
}
