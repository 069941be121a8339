/* libcublasLt.so: descriptors are opaque; a search for an algorithm finds one that needs no workspace of its own (torch
 * passes the workspace that it has allocated, whatever the algorithm would take of it). From cublasLt.h.
 */
#include "virtual_gpu.h"

#include <cublasLt.h>
#include <stdlib.h>
#include <string.h>

static cublasStatus_t make(void *made)
{
    *(void **)made = calloc(1, 1024);
    return *(void **)made ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}

static cublasStatus_t end(void *handle)
{
    free(handle);
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) { return make(handle); }
EXPORT cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) { return end(handle); }
EXPORT size_t cublasLtGetVersion(void) { return CUBLAS_VERSION; }

EXPORT cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *made, cublasComputeType_t compute,
                                               cudaDataType_t scale)
{
    (void)compute, (void)scale;
    return make(made);
}

EXPORT cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) { return end(description); }

EXPORT cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *made, cudaDataType_t type, uint64_t rows,
                                                 uint64_t columns, int64_t stride)
{
    (void)type, (void)rows, (void)columns, (void)stride;
    return make(made);
}

EXPORT cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) { return end(layout); }
EXPORT cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *made) { return make(made); }
EXPORT cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) { return end(preference); }

EXPORT cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
                                                     cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                     cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                                     cublasLtMatmulPreference_t preference, int wanted,
                                                     cublasLtMatmulHeuristicResult_t *results, int *found)
{
    (void)handle, (void)operation, (void)a, (void)b, (void)c, (void)d, (void)preference;
    *found = wanted > 0;
    if (!*found)
        return CUBLAS_STATUS_INVALID_VALUE;
    memset(results, 0, sizeof *results);
    results->state = CUBLAS_STATUS_SUCCESS;
    results->wavesCount = 1;
    return CUBLAS_STATUS_SUCCESS;
}
