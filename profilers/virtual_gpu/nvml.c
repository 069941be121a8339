/* libnvidia-ml.so.1: counts, names, memory. What it does not know it says it does not support, as NVML may.
 *
 * Types are those of the public nvml.h, which comes with a toolkit and not with torch; nvidia-ml-py has them in Python.
 */
#include "virtual_gpu.h"

#include <cuda.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { NVML_SUCCESS = 0, NVML_ERROR_INVALID_ARGUMENT = 2, NVML_ERROR_NOT_SUPPORTED = 3, NVML_ERROR_INSUFFICIENT_SIZE = 7 };

typedef struct {
    unsigned long long total, free, used;
} memory;

typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} memory_v2;

typedef struct {
    unsigned pid;
    unsigned long long used_bytes;
    unsigned gpu_instance, compute_instance;
} process;

typedef struct {
    unsigned gpu, memory;
} utilization;

/* A handle is the GPU's place in the machine, plus 1: NVML sees GPUs that this process has hidden from itself. */
static void *handle_of(unsigned index) { return (void *)(uintptr_t)(index + 1); }
static int index_of(void *handle) { return (int)(uintptr_t)handle - 1; }

static int give(unsigned index, void **handle)
{
    *handle = handle_of(index);
    return (int)index < vg_present_count() ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

static size_t used_bytes(void *handle)
{
    int device = vg_visible_index(index_of(handle));
    return device < 0 ? 0 : vg_used_bytes(device);
}

EXPORT int nvmlInit_v2(void) { return NVML_SUCCESS; }
EXPORT int nvmlInit(void) { return NVML_SUCCESS; }
EXPORT int nvmlShutdown(void) { return NVML_SUCCESS; }

EXPORT int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    return NVML_SUCCESS;
}

EXPORT const char *nvmlErrorString(int error) { return error == NVML_SUCCESS ? "Success" : "Not Supported"; }

EXPORT int nvmlDeviceGetCount_v2(unsigned *count)
{
    *count = (unsigned)vg_present_count();
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }
EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { return give(index, handle); }
EXPORT int nvmlDeviceGetHandleByIndex(unsigned index, void **handle) { return give(index, handle); }

EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *text, void **handle)
{
    unsigned domain, bus;
    return sscanf(text, "%x:%x", &domain, &bus) == 2 ? give(bus - 1, handle) : NVML_ERROR_INVALID_ARGUMENT;
}

EXPORT int nvmlDeviceGetUUID(void *handle, char *text, unsigned room)
{
    unsigned char b[16];
    vg_uuid(index_of(handle), (char *)b);
    int length = snprintf(text, room, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0],
                          b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
    return length < (int)room ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

EXPORT int nvmlDeviceGetHandleByUUID(const char *text, void **handle)
{
    for (int index = 0; index < vg_present_count(); index++) {
        char own[64];
        nvmlDeviceGetUUID(handle_of((unsigned)index), own, sizeof own);
        if (!strcmp(own, text))
            return give((unsigned)index, handle);
    }
    return NVML_ERROR_INVALID_ARGUMENT;
}

EXPORT int nvmlDeviceGetIndex(void *handle, unsigned *index)
{
    *index = (unsigned)index_of(handle);
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetName(void *handle, char *text, unsigned room)
{
    (void)handle;
    return snprintf(text, room, "%s", vg_device_name()) < (int)room ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

EXPORT int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor)
{
    (void)handle; /* all GPUs are alike */
    *major = vg_attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 0);
    *minor = vg_attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 0);
    return NVML_SUCCESS;
}

/* ---- memory: the total is what the driver offers, its own share left out, so that it agrees with cudaMemGetInfo ---- */

EXPORT int nvmlDeviceGetMemoryInfo(void *handle, memory *it)
{
    it->total = vg_total_bytes();
    it->used = used_bytes(handle);
    it->free = it->total - it->used;
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetMemoryInfo_v2(void *handle, memory_v2 *it)
{
    it->total = vg_total_bytes();
    it->reserved = 0;
    it->used = used_bytes(handle);
    it->free = it->total - it->used;
    return NVML_SUCCESS;
}

/* This process, with its context, once it has one. */
EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, process *processes)
{
    unsigned room = *count;
    *count = used_bytes(handle) > 0;
    if (*count > room)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    if (*count)
        processes[0] = (process){.pid = (unsigned)getpid(),
                                 .used_bytes = used_bytes(handle),
                                 .gpu_instance = ~0u,
                                 .compute_instance = ~0u};
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetComputeRunningProcesses_v2(void *handle, unsigned *count, process *processes)
{
    return nvmlDeviceGetComputeRunningProcesses_v3(handle, count, processes);
}

/* The oldest form has no instances in it. */
EXPORT int nvmlDeviceGetComputeRunningProcesses(void *handle, unsigned *count, void *processes)
{
    process found;
    unsigned room = *count, one = 1;
    nvmlDeviceGetComputeRunningProcesses_v3(handle, &one, &found);
    *count = one;
    if (one > room)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    if (one)
        memcpy(processes, &found, offsetof(process, gpu_instance));
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetUtilizationRates(void *handle, utilization *it)
{
    (void)handle;
    *it = (utilization){0, 0};
    return NVML_SUCCESS;
}

/* ---- versions ---- */

/* Scripts compare it with others: a branch of the driver that knows this CUDA (R570 knows 12.8, R580 13.0), with a second
   number that no driver of NVIDIA has. */
EXPORT int nvmlSystemGetDriverVersion(char *text, unsigned room)
{
    return snprintf(text, room, "%s", CUDA_VERSION < 13000 ? "570.00" : "580.00") < (int)room ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    *version = CUDA_VERSION;
    return NVML_SUCCESS;
}

EXPORT int nvmlSystemGetCudaDriverVersion(int *version) { return nvmlSystemGetCudaDriverVersion_v2(version); }
