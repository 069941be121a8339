/* libcudart.so: kernels, and what compiled code calls to bring and launch them. From cuda_runtime_api.h. */
#include "runtime.h"
#include "virtual_gpu.h"

#include <stdlib.h>
#include <string.h>

#define MAX_PUSHED 8

static __thread struct {
    dim3 grid, block;
    size_t shared_bytes;
    void *stream;
} pushed[MAX_PUSHED];
static __thread int pushed_count;

static cudaError_t launch(void)
{
    vg_ran();
    return rt_result(rt_enter());
}

EXPORT cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared_bytes,
                                    cudaStream_t stream)
{
    (void)kernel, (void)grid, (void)block, (void)arguments, (void)shared_bytes, (void)stream;
    return launch();
}

EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments,
                                      size_t shared_bytes, cudaStream_t stream)
{
    (void)kernel, (void)grid, (void)block, (void)arguments, (void)shared_bytes, (void)stream;
    return launch();
}

EXPORT cudaError_t cudaLaunchCooperativeKernel(const void *kernel, dim3 grid, dim3 block, void **arguments,
                                               size_t shared_bytes, cudaStream_t stream)
{
    (void)kernel, (void)grid, (void)block, (void)arguments, (void)shared_bytes, (void)stream;
    return launch();
}

EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *kernel, void **arguments)
{
    (void)config, (void)kernel, (void)arguments;
    return launch();
}

EXPORT cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *it, const void *kernel)
{
    (void)kernel;
    memset(it, 0, sizeof *it);
    cuFuncGetAttribute(&it->maxThreadsPerBlock, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, NULL);
    cuFuncGetAttribute(&it->numRegs, CU_FUNC_ATTRIBUTE_NUM_REGS, NULL);
    cuFuncGetAttribute(&it->ptxVersion, CU_FUNC_ATTRIBUTE_PTX_VERSION, NULL);
    cuFuncGetAttribute(&it->binaryVersion, CU_FUNC_ATTRIBUTE_BINARY_VERSION, NULL);
    cuFuncGetAttribute(&it->maxDynamicSharedSizeBytes, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, NULL);
    return cudaSuccess;
}

EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *kernel, int threads,
                                                                 size_t shared_bytes)
{
    (void)kernel;
    return rt_result(cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, NULL, threads, shared_bytes));
}

EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *kernel, int threads,
                                                                          size_t shared_bytes, unsigned flags)
{
    (void)flags;
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, threads, shared_bytes);
}

#if CUDART_VERSION >= 12080
EXPORT cudaError_t cudaLibraryLoadData(cudaLibrary_t *library, const void *code, enum cudaJitOption *jit,
                                       void **jit_values, unsigned jit_count, enum cudaLibraryOption *options,
                                       void **values, unsigned count)
{
    (void)code, (void)jit, (void)jit_values, (void)jit_count, (void)options, (void)values, (void)count;
    *library = calloc(1, 64);
    return rt_result(*library ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY);
}

EXPORT cudaError_t cudaLibraryGetKernel(cudaKernel_t *kernel, cudaLibrary_t library, const char *name)
{
    (void)library, (void)name;
    *kernel = calloc(1, 64);
    return rt_result(*kernel ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY);
}
#endif

/* ---- what compiled kernels call when they are loaded and launched (crt/host_runtime.h, which torch does not bring) ---- */

EXPORT void **__cudaRegisterFatBinary(void *image)
{
    (void)image;
    static void *handle[4];
    return handle;
}

EXPORT char __cudaInitModule(void **handle)
{
    (void)handle;
    return 0;
}

EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, struct CUstream_st *stream)
{
    if (pushed_count == MAX_PUSHED)
        return 1;
    pushed[pushed_count].grid = grid;
    pushed[pushed_count].block = block;
    pushed[pushed_count].shared_bytes = shared_bytes;
    pushed[pushed_count++].stream = stream;
    return 0;
}

EXPORT cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared_bytes, void *stream)
{
    if (!pushed_count)
        return cudaErrorInvalidConfiguration;
    pushed_count--;
    *grid = pushed[pushed_count].grid;
    *block = pushed[pushed_count].block;
    *shared_bytes = pushed[pushed_count].shared_bytes;
    *(void **)stream = pushed[pushed_count].stream;
    return cudaSuccess;
}

EXPORT cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function)
{
    *kernel = (cudaKernel_t)function;
    return cudaSuccess;
}
