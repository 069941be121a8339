/* libcublas.so: handles keep what was set on them. Products compute nothing and allocate nothing: torch gives each handle
 * its workspace out of its own allocator (cublasSetWorkspace), by the GPU's compute capability. From cublas_v2.h.
 */
#include "virtual_gpu.h"

#include <cublas_v2.h>
#include <stdlib.h>

struct cublasContext {
    cudaStream_t stream;
    cublasPointerMode_t pointer_mode;
    cublasMath_t math_mode;
    cublasAtomicsMode_t atomics_mode;
    int sm_target;
};

EXPORT cublasStatus_t cublasCreate(cublasHandle_t *handle)
{
    *handle = calloc(1, sizeof **handle);
    return *handle ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}

EXPORT cublasStatus_t cublasDestroy(cublasHandle_t handle)
{
    free(handle);
    return CUBLAS_STATUS_SUCCESS;
}

/* cublasSetNAME and cublasGetNAME of one field. */
#define PROPERTY(Set, Get, type, field)                                                                               \
    EXPORT cublasStatus_t Set(cublasHandle_t handle, type value)                                                     \
    {                                                                                                                \
        handle->field = value;                                                                                       \
        return CUBLAS_STATUS_SUCCESS;                                                                                \
    }                                                                                                                \
    EXPORT cublasStatus_t Get(cublasHandle_t handle, type *value)                                                    \
    {                                                                                                                \
        *value = handle->field;                                                                                      \
        return CUBLAS_STATUS_SUCCESS;                                                                                \
    }

PROPERTY(cublasSetStream, cublasGetStream, cudaStream_t, stream)
PROPERTY(cublasSetPointerMode, cublasGetPointerMode, cublasPointerMode_t, pointer_mode)
PROPERTY(cublasSetMathMode, cublasGetMathMode, cublasMath_t, math_mode)
PROPERTY(cublasSetAtomicsMode, cublasGetAtomicsMode, cublasAtomicsMode_t, atomics_mode)
PROPERTY(cublasSetSmCountTarget, cublasGetSmCountTarget, int, sm_target)

EXPORT cublasStatus_t cublasGetVersion(cublasHandle_t handle, int *version)
{
    (void)handle;
    *version = CUBLAS_VERSION;
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasGetProperty(libraryPropertyType which, int *value)
{
    *value = which == MAJOR_VERSION ? CUBLAS_VER_MAJOR : which == MINOR_VERSION ? CUBLAS_VER_MINOR : CUBLAS_VER_PATCH;
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT const char *cublasGetStatusString(cublasStatus_t status)
{
    return status == CUBLAS_STATUS_SUCCESS ? "CUBLAS_STATUS_SUCCESS" : "CUBLAS_STATUS_ALLOC_FAILED";
}

EXPORT const char *cublasGetStatusName(cublasStatus_t status) { return cublasGetStatusString(status); }
