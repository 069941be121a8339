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

/* ---- decompositions of many matrices: they succeed ----
 *
 * `info` is one number on the host that says whether the arguments were right, or one for each matrix on the GPU. */

static cublasStatus_t done(int *info, int count)
{
    vg_ran();
    if (info)
        vg_fill((uintptr_t)info, 0, sizeof *info, (size_t)count);
    return CUBLAS_STATUS_SUCCESS;
}

/* Arguments that nobody reads keep the names that they have in the header. */
#pragma GCC diagnostic ignored "-Wunused-parameter"

#define OF_TYPE(T, type)                                                                                              \
    EXPORT cublasStatus_t cublas##T##getrfBatched(cublasHandle_t handle, int n, type *const A[], int lda, int *P,    \
                                                  int *info, int batch)                                              \
    {                                                                                                                \
        return done(info, batch);                                                                                    \
    }                                                                                                                \
    EXPORT cublasStatus_t cublas##T##getrsBatched(cublasHandle_t handle, cublasOperation_t op, int n, int nrhs,      \
                                                  const type *const A[], int lda, const int *P, type *const B[],     \
                                                  int ldb, int *info, int batch)                                     \
    {                                                                                                                \
        return done(info, 1);                                                                                        \
    }                                                                                                                \
    EXPORT cublasStatus_t cublas##T##geqrfBatched(cublasHandle_t handle, int m, int n, type *const A[], int lda,     \
                                                  type *const tau[], int *info, int batch)                           \
    {                                                                                                                \
        return done(info, 1);                                                                                        \
    }                                                                                                                \
    EXPORT cublasStatus_t cublas##T##gelsBatched(cublasHandle_t handle, cublasOperation_t op, int m, int n,          \
                                                 int nrhs, type *const A[], int lda, type *const C[], int ldc,       \
                                                 int *info, int *on_device, int batch)                               \
    {                                                                                                                \
        done(on_device, batch);                                                                                      \
        return done(info, 1);                                                                                        \
    }

OF_TYPE(S, float)
OF_TYPE(D, double)
OF_TYPE(C, cuComplex)
OF_TYPE(Z, cuDoubleComplex)
