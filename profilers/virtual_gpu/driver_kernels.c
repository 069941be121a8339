/* libcuda.so.1: modules, kernels, and how many of a kernel's blocks fit. From cuda.h. */
#include "driver.h"
#include "virtual_gpu.h"

#include <cuda.h>
#include <stdlib.h>
#include <string.h>

struct CUfunc_st {
    char *name;
};

struct CUgraph_st {
    int nodes;
};

EXPORT CUresult cuModuleLoadData(CUmodule *module, const void *image)
{
    (void)image;
    *module = dr_opaque();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned count, CUjit_option *options,
                                   void **values)
{
    (void)count, (void)options, (void)values;
    return cuModuleLoadData(module, image);
}

EXPORT CUresult cuModuleLoad(CUmodule *module, const char *path) { return cuModuleLoadData(module, path); }

EXPORT CUresult cuModuleUnload(CUmodule module)
{
    free(module);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name)
{
    (void)module;
    *function = dr_opaque();
    (*function)->name = strdup(name);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuLibraryLoadData(CUlibrary *library, const void *code, CUjit_option *jit, void **jit_values,
                                  unsigned jit_count, CUlibraryOption *options, void **values, unsigned count)
{
    (void)code, (void)jit, (void)jit_values, (void)jit_count, (void)options, (void)values, (void)count;
    *library = dr_opaque();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuLibraryGetKernel(CUkernel *kernel, CUlibrary library, const char *name)
{
    return cuModuleGetFunction((CUfunction *)kernel, (CUmodule)library, name);
}

EXPORT CUresult cuKernelGetFunction(CUfunction *function, CUkernel kernel)
{
    *function = (CUfunction)kernel;
    return CUDA_SUCCESS;
}

/* A kernel like most: the registers of 32 and no local memory; limits are those of the GPU. */
EXPORT CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function)
{
    (void)function;
    switch ((int)attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
        *value = vg_attribute(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 0);
        break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
        *value = 32;
        break;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION:
        *value = vg_kernel_version();
        break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
        *value = vg_attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 0);
        break;
    default:
        *value = 0; /* shared, constant and local bytes, preferences: none */
    }
    return CUDA_SUCCESS;
}

static int least(int a, int b) { return a < b ? a : b; }

/* Blocks of such a kernel that one multiprocessor holds: as many as its threads, registers and shared memory allow. */
EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function, int threads,
                                                            size_t shared_bytes)
{
    (void)function;
    int per_block = threads > 0 ? threads : 1;
    size_t own = (size_t)vg_attribute(CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK, 0);
    int all_shared = vg_attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, 0);
    int fit = vg_attribute(CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR, 0);
    fit = least(fit, vg_attribute(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, 0) / per_block);
    fit = least(fit, vg_attribute(CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR, 0) / (32 * per_block));
    if (shared_bytes)
        fit = least(fit, (int)((size_t)all_shared / (shared_bytes + own)));
    *blocks = fit;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, CUfunction function, int threads,
                                                                     size_t shared_bytes, unsigned flags)
{
    (void)flags;
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared_bytes);
}

EXPORT CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction function, const CUlaunchConfig *launch)
{
    int blocks;
    cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, function, (int)launch->blockDimX, launch->sharedMemBytes);
    *clusters = blocks * vg_attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 0) / 2;
    return CUDA_SUCCESS;
}
