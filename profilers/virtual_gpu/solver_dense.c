/* libcusolver.so: the older interface, one function for each type of element. Sizes are those of solver.c. From
 * cusolverDn.h.
 */
#include "solver.h"
#include "virtual_gpu.h"

#define H cusolverDnHandle_t handle
#define FUNCTION(name, ...) EXPORT cusolverStatus_t cusolverDn##name(__VA_ARGS__)
/* Arguments that nobody reads keep the names that they have in the header. */
#pragma GCC diagnostic ignored "-Wunused-parameter"

#define LU_AND_CHOLESKY(T, type)                                                                                     \
    FUNCTION(T##getrf_bufferSize, H, int m, int n, type *A, int lda, int *lwork)                                     \
    {                                                                                                                \
        return sv_elements(sv_blocks(m), sizeof(type), lwork);                                                       \
    }                                                                                                                \
    FUNCTION(T##getrf, H, int m, int n, type *A, int lda, type *work, int *pivots, int *info)                        \
    {                                                                                                                \
        return sv_done(info, 1);                                                                                     \
    }                                                                                                                \
    FUNCTION(T##getrs, H, cublasOperation_t op, int n, int k, const type *A, int lda, const int *pivots, type *B,    \
             int ldb, int *info)                                                                                     \
    {                                                                                                                \
        return sv_done(info, 1);                                                                                     \
    }                                                                                                                \
    FUNCTION(T##potrf_bufferSize, H, cublasFillMode_t fill, int n, type *A, int lda, int *lwork)                     \
    {                                                                                                                \
        return sv_elements(sv_blocks(n), sizeof(type), lwork);                                                       \
    }                                                                                                                \
    FUNCTION(T##potrf, H, cublasFillMode_t fill, int n, type *A, int lda, type *work, int lwork, int *info)          \
    {                                                                                                                \
        return sv_done(info, 1);                                                                                     \
    }                                                                                                                \
    FUNCTION(T##potrfBatched, H, cublasFillMode_t fill, int n, type *A[], int lda, int *info, int batch)             \
    {                                                                                                                \
        return sv_done(info, batch);                                                                                 \
    }                                                                                                                \
    FUNCTION(T##potrs, H, cublasFillMode_t fill, int n, int k, const type *A, int lda, type *B, int ldb, int *info)  \
    {                                                                                                                \
        return sv_done(info, 1);                                                                                     \
    }                                                                                                                \
    FUNCTION(T##potrsBatched, H, cublasFillMode_t fill, int n, int k, type *A[], int lda, type *B[], int ldb,        \
             int *info, int batch)                                                                                   \
    {                                                                                                                \
        return sv_done(info, 1); /* one status for all */                                                            \
    }                                                                                                                \
    FUNCTION(T##sytrf_bufferSize, H, int n, type *A, int lda, int *lwork)                                            \
    {                                                                                                                \
        return sv_elements(sv_blocks(n), sizeof(type), lwork);                                                       \
    }                                                                                                                \
    FUNCTION(T##sytrf, H, cublasFillMode_t fill, int n, type *A, int lda, int *pivots, type *work, int lwork,        \
             int *info)                                                                                              \
    {                                                                                                                \
        return sv_done(info, 1);                                                                                     \
    }

/* `or`: or for real matrices, un for complex ones. */
#define QR(T, or, type)                                                                                              \
    FUNCTION(T##geqrf_bufferSize, H, int m, int n, type *A, int lda, int *lwork)                                     \
    {                                                                                                                \
        return sv_elements(sv_blocks(n), sizeof(type), lwork);                                                       \
    }                                                                                                                \
    FUNCTION(T##geqrf, H, int m, int n, type *A, int lda, type *tau, type *work, int lwork, int *info)               \
    {                                                                                                                \
        return sv_done(info, 1);                                                                                     \
    }                                                                                                                \
    FUNCTION(T##or##gqr_bufferSize, H, int m, int n, int k, const type *A, int lda, const type *tau, int *lwork)     \
    {                                                                                                                \
        return sv_elements(sv_blocks(n), sizeof(type), lwork);                                                       \
    }                                                                                                                \
    FUNCTION(T##or##gqr, H, int m, int n, int k, type *A, int lda, const type *tau, type *work, int lwork, int *info)\
    {                                                                                                                \
        return sv_done(info, 1);                                                                                     \
    }                                                                                                                \
    FUNCTION(T##or##mqr_bufferSize, H, cublasSideMode_t side, cublasOperation_t op, int m, int n, int k,             \
             const type *A, int lda, const type *tau, const type *C, int ldc, int *lwork)                            \
    {                                                                                                                \
        return sv_elements(sv_blocks(side == CUBLAS_SIDE_LEFT ? n : m), sizeof(type), lwork);                        \
    }                                                                                                                \
    FUNCTION(T##or##mqr, H, cublasSideMode_t side, cublasOperation_t op, int m, int n, int k, const type *A, int lda,\
             const type *tau, type *C, int ldc, type *work, int lwork, int *info)                                    \
    {                                                                                                                \
        return sv_done(info, 1);                                                                                     \
    }

#define SVD(T, type, real)                                                                                           \
    FUNCTION(T##gesvd_bufferSize, H, int m, int n, int *lwork)                                                       \
    {                                                                                                                \
        return sv_elements(sv_svd(m, n), sizeof(type), lwork);                                                       \
    }                                                                                                                \
    FUNCTION(T##gesvd, H, signed char left, signed char right, int m, int n, type *A, int lda, real *S, type *U,     \
             int ldu, type *V, int ldv, type *work, int lwork, real *rwork, int *info)                               \
    {                                                                                                                \
        return sv_done(info, 1);                                                                                     \
    }                                                                                                                \
    FUNCTION(T##gesvdj_bufferSize, H, cusolverEigMode_t mode, int economy, int m, int n, const type *A, int lda,     \
             const real *S, const type *U, int ldu, const type *V, int ldv, int *lwork, gesvdjInfo_t options)        \
    {                                                                                                                \
        return sv_elements(sv_jacobi(m, n), sizeof(type), lwork);                                                    \
    }                                                                                                                \
    FUNCTION(T##gesvdj, H, cusolverEigMode_t mode, int economy, int m, int n, type *A, int lda, real *S, type *U,    \
             int ldu, type *V, int ldv, type *work, int lwork, int *info, gesvdjInfo_t options)                      \
    {                                                                                                                \
        return sv_done(info, 1);                                                                                     \
    }                                                                                                                \
    FUNCTION(T##gesvdjBatched_bufferSize, H, cusolverEigMode_t mode, int m, int n, const type *A, int lda,           \
             const real *S, const type *U, int ldu, const type *V, int ldv, int *lwork, gesvdjInfo_t options,        \
             int batch)                                                                                              \
    {                                                                                                                \
        return sv_elements((size_t)batch * sv_jacobi(m, n), sizeof(type), lwork);                                    \
    }                                                                                                                \
    FUNCTION(T##gesvdjBatched, H, cusolverEigMode_t mode, int m, int n, type *A, int lda, real *S, type *U, int ldu, \
             type *V, int ldv, type *work, int lwork, int *info, gesvdjInfo_t options, int batch)                    \
    {                                                                                                                \
        return sv_done(info, batch);                                                                                 \
    }                                                                                                                \
    FUNCTION(T##gesvdaStridedBatched_bufferSize, H, cusolverEigMode_t mode, int rank, int m, int n, const type *A,   \
             int lda, long long stride_A, const real *S, long long stride_S, const type *U, int ldu,                 \
             long long stride_U, const type *V, int ldv, long long stride_V, int *lwork, int batch)                  \
    {                                                                                                                \
        return sv_elements((size_t)batch * sv_jacobi(m, n), sizeof(type), lwork);                                    \
    }                                                                                                                \
    FUNCTION(T##gesvdaStridedBatched, H, cusolverEigMode_t mode, int rank, int m, int n, const type *A, int lda,     \
             long long stride_A, real *S, long long stride_S, type *U, int ldu, long long stride_U, type *V,         \
             int ldv, long long stride_V, type *work, int lwork, int *info, double *residuals, int batch)            \
    {                                                                                                                \
        return sv_done(info, batch);                                                                                 \
    }

/* `sy`: sy for real matrices, he for complex ones. */
#define EIGEN(T, sy, type, real)                                                                                     \
    FUNCTION(T##sy##evd_bufferSize, H, cusolverEigMode_t mode, cublasFillMode_t fill, int n, const type *A, int lda, \
             const real *W, int *lwork)                                                                              \
    {                                                                                                                \
        return sv_elements(sv_eigen(mode, n), sizeof(type), lwork);                                                  \
    }                                                                                                                \
    FUNCTION(T##sy##evd, H, cusolverEigMode_t mode, cublasFillMode_t fill, int n, type *A, int lda, real *W,         \
             type *work, int lwork, int *info)                                                                       \
    {                                                                                                                \
        return sv_done(info, 1);                                                                                     \
    }                                                                                                                \
    FUNCTION(T##sy##evj_bufferSize, H, cusolverEigMode_t mode, cublasFillMode_t fill, int n, const type *A, int lda, \
             const real *W, int *lwork, syevjInfo_t options)                                                         \
    {                                                                                                                \
        return sv_elements(sv_eigen(mode, n), sizeof(type), lwork);                                                  \
    }                                                                                                                \
    FUNCTION(T##sy##evj, H, cusolverEigMode_t mode, cublasFillMode_t fill, int n, type *A, int lda, real *W,         \
             type *work, int lwork, int *info, syevjInfo_t options)                                                  \
    {                                                                                                                \
        return sv_done(info, 1);                                                                                     \
    }                                                                                                                \
    FUNCTION(T##sy##evjBatched_bufferSize, H, cusolverEigMode_t mode, cublasFillMode_t fill, int n, const type *A,   \
             int lda, const real *W, int *lwork, syevjInfo_t options, int batch)                                     \
    {                                                                                                                \
        return sv_elements((size_t)batch * sv_eigen(mode, n), sizeof(type), lwork);                                  \
    }                                                                                                                \
    FUNCTION(T##sy##evjBatched, H, cusolverEigMode_t mode, cublasFillMode_t fill, int n, type *A, int lda, real *W,  \
             type *work, int lwork, int *info, syevjInfo_t options, int batch)                                       \
    {                                                                                                                \
        return sv_done(info, batch);                                                                                 \
    }

#define DENSE(T, type, real, or, sy)                                                                                 \
    LU_AND_CHOLESKY(T, type) QR(T, or, type) SVD(T, type, real) EIGEN(T, sy, type, real)

DENSE(S, float, float, or, sy)
DENSE(D, double, double, or, sy)
DENSE(C, cuComplex, float, un, he)
DENSE(Z, cuDoubleComplex, double, un, he)
