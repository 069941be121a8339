/* libcusolver.so: handles, scratch memory, and the interface of 64-bit sizes (the older one: solver_dense.c).
 * Decompositions compute nothing and always succeed: the status that each leaves on the GPU (`info`) is 0. From
 * cusolverDn.h.
 *
 * cuSOLVER tells the size of its scratch memory only to a process that has a GPU, and none was found published. The model
 * is what LAPACK documents for the routine of the same name, in blocks of 32 columns, and for what LAPACK lacks a copy of
 * the matrix and of its factors. vg_modelled counts it, so that the report can say so.
 */
#include "solver.h"
#include "virtual_gpu.h"

#include <cusolverDn.h>
#include <limits.h>
#include <stdlib.h>

#define BLOCK ((size_t)32)

static cusolverStatus_t make(void *made)
{
    *(void **)made = calloc(1, 64);
    return *(void **)made ? CUSOLVER_STATUS_SUCCESS : CUSOLVER_STATUS_ALLOC_FAILED;
}

static cusolverStatus_t end(void *handle)
{
    free(handle);
    return CUSOLVER_STATUS_SUCCESS;
}

EXPORT cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t *handle) { return make(handle); }
EXPORT cusolverStatus_t cusolverDnDestroy(cusolverDnHandle_t handle) { return end(handle); }
EXPORT cusolverStatus_t cusolverDnCreateParams(cusolverDnParams_t *made) { return make(made); }
EXPORT cusolverStatus_t cusolverDnDestroyParams(cusolverDnParams_t it) { return end(it); }
EXPORT cusolverStatus_t cusolverDnCreateGesvdjInfo(gesvdjInfo_t *made) { return make(made); }
EXPORT cusolverStatus_t cusolverDnDestroyGesvdjInfo(gesvdjInfo_t it) { return end(it); }
EXPORT cusolverStatus_t cusolverDnCreateSyevjInfo(syevjInfo_t *made) { return make(made); }
EXPORT cusolverStatus_t cusolverDnDestroySyevjInfo(syevjInfo_t it) { return end(it); }

/* ---- scratch memory ---- */

static size_t most(size_t a, size_t b) { return a > b ? a : b; }

size_t sv_blocks(int64_t columns) { return most((size_t)columns, 1) * BLOCK; }
size_t sv_svd(int64_t m, int64_t n) { return 3 * most((size_t)m, (size_t)n) + (size_t)(m + n) * BLOCK; }
size_t sv_jacobi(int64_t m, int64_t n) { return (size_t)(2 * m * n + n * n); }

size_t sv_eigen(cusolverEigMode_t mode, int64_t n)
{
    size_t N = (size_t)n;
    return 1 + 6 * N + (mode == CUSOLVER_EIG_MODE_VECTOR ? 2 * N * N : N * BLOCK);
}

cusolverStatus_t sv_elements(size_t wanted, size_t element_bytes, int *answer)
{
    vg_modelled(VG_SOLVER, wanted * element_bytes);
    *answer = wanted > INT_MAX ? INT_MAX : (int)wanted;
    return CUSOLVER_STATUS_SUCCESS;
}

static size_t bytes_of(cudaDataType type)
{
    return type == CUDA_C_64F ? 16 : type == CUDA_C_32F || type == CUDA_R_64F ? 8 : 4;
}

static cusolverStatus_t bytes(size_t wanted, cudaDataType type, size_t *on_device, size_t *on_host)
{
    *on_device = vg_modelled(VG_SOLVER, wanted * bytes_of(type));
    *on_host = 0;
    return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t sv_done(int *info, int64_t batch)
{
    vg_ran();
    if (info)
        vg_fill((uintptr_t)info, 0, sizeof *info, (size_t)batch);
    return CUSOLVER_STATUS_SUCCESS;
}

/* ---- sizes of 64 bits ---- */

/* Arguments that nobody reads keep the names that they have in the header. */
#pragma GCC diagnostic ignored "-Wunused-parameter"

EXPORT cusolverStatus_t cusolverDnXpotrf_bufferSize(cusolverDnHandle_t handle, cusolverDnParams_t params,
                                                    cublasFillMode_t uplo, int64_t n, cudaDataType type_A,
                                                    const void *A, int64_t lda, cudaDataType compute, size_t *on_device,
                                                    size_t *on_host)
{
    return bytes(sv_blocks(n), type_A, on_device, on_host);
}

EXPORT cusolverStatus_t cusolverDnXpotrf(cusolverDnHandle_t handle, cusolverDnParams_t params, cublasFillMode_t uplo,
                                         int64_t n, cudaDataType type_A, void *A, int64_t lda, cudaDataType compute,
                                         void *device_work, size_t on_device, void *host_work, size_t on_host,
                                         int *info)
{
    return sv_done(info, 1);
}

EXPORT cusolverStatus_t cusolverDnXpotrs(cusolverDnHandle_t handle, cusolverDnParams_t params, cublasFillMode_t uplo,
                                         int64_t n, int64_t nrhs, cudaDataType type_A, const void *A, int64_t lda,
                                         cudaDataType type_B, void *B, int64_t ldb, int *info)
{
    return sv_done(info, 1);
}

EXPORT cusolverStatus_t cusolverDnXgeqrf_bufferSize(cusolverDnHandle_t handle, cusolverDnParams_t params, int64_t m,
                                                    int64_t n, cudaDataType type_A, const void *A, int64_t lda,
                                                    cudaDataType type_Tau, const void *tau, cudaDataType compute,
                                                    size_t *on_device, size_t *on_host)
{
    return bytes(sv_blocks(n), type_A, on_device, on_host);
}

EXPORT cusolverStatus_t cusolverDnXgeqrf(cusolverDnHandle_t handle, cusolverDnParams_t params, int64_t m, int64_t n,
                                         cudaDataType type_A, void *A, int64_t lda, cudaDataType type_Tau, void *tau,
                                         cudaDataType compute, void *device_work, size_t on_device, void *host_work,
                                         size_t on_host, int *info)
{
    return sv_done(info, 1);
}

EXPORT cusolverStatus_t cusolverDnXsyevd_bufferSize(cusolverDnHandle_t handle, cusolverDnParams_t params,
                                                    cusolverEigMode_t jobz, cublasFillMode_t uplo, int64_t n,
                                                    cudaDataType type_A, const void *A, int64_t lda,
                                                    cudaDataType type_W, const void *W, cudaDataType compute,
                                                    size_t *on_device, size_t *on_host)
{
    return bytes(sv_eigen(jobz, n), type_A, on_device, on_host);
}

EXPORT cusolverStatus_t cusolverDnXsyevd(cusolverDnHandle_t handle, cusolverDnParams_t params, cusolverEigMode_t jobz,
                                         cublasFillMode_t uplo, int64_t n, cudaDataType type_A, void *A, int64_t lda,
                                         cudaDataType type_W, void *W, cudaDataType compute, void *device_work,
                                         size_t on_device, void *host_work, size_t on_host, int *info)
{
    return sv_done(info, 1);
}

EXPORT cusolverStatus_t cusolverDnXsytrs_bufferSize(cusolverDnHandle_t handle, cublasFillMode_t uplo, int64_t n,
                                                    int64_t nrhs, cudaDataType type_A, const void *A, int64_t lda, const
                                                    int64_t *ipiv, cudaDataType type_B, void *B, int64_t ldb,
                                                    size_t *on_device, size_t *on_host)
{
    return bytes(sv_blocks(nrhs), type_A, on_device, on_host);
}

EXPORT cusolverStatus_t cusolverDnXsytrs(cusolverDnHandle_t handle, cublasFillMode_t uplo, int64_t n, int64_t nrhs,
                                         cudaDataType type_A, const void *A, int64_t lda, const int64_t *ipiv,
                                         cudaDataType type_B, void *B, int64_t ldb, void *device_work, size_t on_device,
                                         void *host_work, size_t on_host, int *info)
{
    return sv_done(info, 1);
}

#if CUSOLVER_VERSION >= 11701
EXPORT cusolverStatus_t cusolverDnXsyevBatched_bufferSize(cusolverDnHandle_t handle, cusolverDnParams_t params,
                                                          cusolverEigMode_t jobz, cublasFillMode_t uplo, int64_t n,
                                                          cudaDataType type_A, const void *A, int64_t lda,
                                                          cudaDataType type_W, const void *W, cudaDataType compute,
                                                          size_t *on_device, size_t *on_host, int64_t batch)
{
    return bytes((size_t)batch * sv_eigen(jobz, n), type_A, on_device, on_host);
}

EXPORT cusolverStatus_t cusolverDnXsyevBatched(cusolverDnHandle_t handle, cusolverDnParams_t params,
                                               cusolverEigMode_t jobz, cublasFillMode_t uplo, int64_t n,
                                               cudaDataType type_A, void *A, int64_t lda, cudaDataType type_W, void *W,
                                               cudaDataType compute, void *device_work, size_t on_device,
                                               void *host_work, size_t on_host, int *info, int64_t batch)
{
    return sv_done(info, batch);
}

EXPORT cusolverStatus_t cusolverDnXgeev_bufferSize(cusolverDnHandle_t handle, cusolverDnParams_t params,
                                                   cusolverEigMode_t jobvl, cusolverEigMode_t jobvr, int64_t n,
                                                   cudaDataType type_A, const void *A, int64_t lda, cudaDataType type_W,
                                                   const void *W, cudaDataType type_VL, const void *VL, int64_t ldvl,
                                                   cudaDataType type_VR, const void *VR, int64_t ldvr,
                                                   cudaDataType compute, size_t *on_device, size_t *on_host)
{
    return bytes(4 * (size_t)n + sv_blocks(n), type_A, on_device, on_host);
}

EXPORT cusolverStatus_t cusolverDnXgeev(cusolverDnHandle_t handle, cusolverDnParams_t params, cusolverEigMode_t jobvl,
                                        cusolverEigMode_t jobvr, int64_t n, cudaDataType type_A, void *A, int64_t lda,
                                        cudaDataType type_W, void *W, cudaDataType type_VL, void *VL, int64_t ldvl,
                                        cudaDataType type_VR, void *VR, int64_t ldvr, cudaDataType compute,
                                        void *device_work, size_t on_device, void *host_work, size_t on_host, int *info)
{
    return sv_done(info, 1);
}
#endif
