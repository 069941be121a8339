/* libcusparse.so: descriptors that remember their sizes, and the buffers that operations ask for. From cusparse.h.
 *
 * cuSPARSE tells the sizes of its buffers only to a process that has a GPU. The model: a product with dense data needs an
 * index for each row of the sparse matrix, a solution and a product of two one for each element as well, a sort two for
 * each element. The number of elements of a sparse result is a value that is not known here: a sum gets all elements of
 * both, a product as many as elements that lie evenly would meet; never more than the dense matrix has.
 */
#include "virtual_gpu.h"

#include <cusparse.h>
#include <stdlib.h>

#define INDEX_BYTES sizeof(int64_t)

struct cusparseContext {
    cudaStream_t stream;
    cusparsePointerMode_t pointer_mode;
};

struct cusparseSpMatDescr {
    int64_t rows, columns, nonzero;
};

struct cusparseMatDescr {
    cusparseMatrixType_t type;
    cusparseFillMode_t fill;
    cusparseDiagType_t diagonal;
    cusparseIndexBase_t base;
};

static cusparseStatus_t made(const void *handle)
{
    return handle ? CUSPARSE_STATUS_SUCCESS : CUSPARSE_STATUS_ALLOC_FAILED;
}

static cusparseStatus_t make(void *handle)
{
    *(void **)handle = calloc(1, 64);
    return made(*(void **)handle);
}

static cusparseStatus_t end(const void *handle)
{
    free((void *)handle);
    return CUSPARSE_STATUS_SUCCESS;
}

EXPORT cusparseStatus_t cusparseCreate(cusparseHandle_t *handle) { return make(handle); }
EXPORT cusparseStatus_t cusparseDestroy(cusparseHandle_t handle) { return end(handle); }

EXPORT cusparseStatus_t cusparseGetVersion(cusparseHandle_t handle, int *version)
{
    (void)handle;
    *version = CUSPARSE_VERSION;
    return CUSPARSE_STATUS_SUCCESS;
}

EXPORT const char *cusparseGetErrorString(cusparseStatus_t status)
{
    return status == CUSPARSE_STATUS_SUCCESS ? "success" : "resource allocation failed";
}

EXPORT cusparseStatus_t cusparseSetStream(cusparseHandle_t handle, cudaStream_t stream)
{
    handle->stream = stream;
    return CUSPARSE_STATUS_SUCCESS;
}

EXPORT cusparseStatus_t cusparseGetPointerMode(cusparseHandle_t handle, cusparsePointerMode_t *mode)
{
    *mode = handle->pointer_mode;
    return CUSPARSE_STATUS_SUCCESS;
}

EXPORT cusparseStatus_t cusparseSetPointerMode(cusparseHandle_t handle, cusparsePointerMode_t mode)
{
    handle->pointer_mode = mode;
    return CUSPARSE_STATUS_SUCCESS;
}

/* ---- descriptors ---- */

static cusparseStatus_t make_matrix(cusparseSpMatDescr_t *matrix, int64_t rows, int64_t columns, int64_t nonzero)
{
    *matrix = malloc(sizeof **matrix);
    if (*matrix)
        **matrix = (struct cusparseSpMatDescr){rows, columns, nonzero};
    return made(*matrix);
}

EXPORT cusparseStatus_t cusparseCreateCsr(cusparseSpMatDescr_t *matrix, int64_t rows, int64_t columns, int64_t nonzero,
                                          void *offsets, void *places, void *values, cusparseIndexType_t offset_type,
                                          cusparseIndexType_t place_type, cusparseIndexBase_t base, cudaDataType type)
{
    (void)offsets, (void)places, (void)values, (void)offset_type, (void)place_type, (void)base, (void)type;
    return make_matrix(matrix, rows, columns, nonzero);
}

EXPORT cusparseStatus_t cusparseCreateCoo(cusparseSpMatDescr_t *matrix, int64_t rows, int64_t columns, int64_t nonzero,
                                          void *row_places, void *column_places, void *values,
                                          cusparseIndexType_t index, cusparseIndexBase_t base, cudaDataType type)
{
    (void)row_places, (void)column_places, (void)values, (void)index, (void)base, (void)type;
    return make_matrix(matrix, rows, columns, nonzero);
}

EXPORT cusparseStatus_t cusparseCreateDnMat(cusparseDnMatDescr_t *matrix, int64_t rows, int64_t columns, int64_t ld,
                                            void *values, cudaDataType type, cusparseOrder_t order)
{
    (void)rows, (void)columns, (void)ld, (void)values, (void)type, (void)order;
    return make(matrix);
}

EXPORT cusparseStatus_t cusparseCreateDnVec(cusparseDnVecDescr_t *vector, int64_t size, void *values, cudaDataType type)
{
    (void)size, (void)values, (void)type;
    return make(vector);
}

EXPORT cusparseStatus_t cusparseCreateMatDescr(cusparseMatDescr_t *it) { return make(it); }
EXPORT cusparseStatus_t cusparseDestroyMatDescr(cusparseMatDescr_t it) { return end(it); }
EXPORT cusparseStatus_t cusparseDestroyDnMat(cusparseConstDnMatDescr_t it) { return end(it); }
EXPORT cusparseStatus_t cusparseDestroyDnVec(cusparseConstDnVecDescr_t it) { return end(it); }
EXPORT cusparseStatus_t cusparseDestroySpMat(cusparseConstSpMatDescr_t it) { return end(it); }
EXPORT cusparseStatus_t cusparseSpGEMM_createDescr(cusparseSpGEMMDescr_t *it) { return make(it); }
EXPORT cusparseStatus_t cusparseSpGEMM_destroyDescr(cusparseSpGEMMDescr_t it) { return end(it); }
EXPORT cusparseStatus_t cusparseSpSM_createDescr(cusparseSpSMDescr_t *it) { return make(it); }
EXPORT cusparseStatus_t cusparseSpSM_destroyDescr(cusparseSpSMDescr_t it) { return end(it); }
EXPORT cusparseStatus_t cusparseSpSV_createDescr(cusparseSpSVDescr_t *it) { return make(it); }
EXPORT cusparseStatus_t cusparseSpSV_destroyDescr(cusparseSpSVDescr_t it) { return end(it); }
EXPORT cusparseStatus_t cusparseCreateBsrsm2Info(bsrsm2Info_t *it) { return make(it); }
EXPORT cusparseStatus_t cusparseDestroyBsrsm2Info(bsrsm2Info_t it) { return end(it); }
EXPORT cusparseStatus_t cusparseCreateBsrsv2Info(bsrsv2Info_t *it) { return make(it); }
EXPORT cusparseStatus_t cusparseDestroyBsrsv2Info(bsrsv2Info_t it) { return end(it); }

#define PROPERTY(Set, Get, type, field)                                                                               \
    EXPORT cusparseStatus_t Set(cusparseMatDescr_t it, type value)                                                   \
    {                                                                                                                \
        it->field = value;                                                                                           \
        return CUSPARSE_STATUS_SUCCESS;                                                                              \
    }                                                                                                                \
    EXPORT type Get(const cusparseMatDescr_t it) { return it->field; }

PROPERTY(cusparseSetMatType, cusparseGetMatType, cusparseMatrixType_t, type)
PROPERTY(cusparseSetMatFillMode, cusparseGetMatFillMode, cusparseFillMode_t, fill)
PROPERTY(cusparseSetMatDiagType, cusparseGetMatDiagType, cusparseDiagType_t, diagonal)
PROPERTY(cusparseSetMatIndexBase, cusparseGetMatIndexBase, cusparseIndexBase_t, base)

EXPORT cusparseStatus_t cusparseSpMatGetSize(cusparseConstSpMatDescr_t it, int64_t *rows, int64_t *columns,
                                             int64_t *nonzero)
{
    *rows = it->rows, *columns = it->columns, *nonzero = it->nonzero;
    return CUSPARSE_STATUS_SUCCESS;
}

/* ---- buffers ---- */

static cusparseStatus_t answer(int64_t indices, size_t *nbytes)
{
    *nbytes = vg_modelled(VG_SPARSE, (size_t)indices * INDEX_BYTES);
    return CUSPARSE_STATUS_SUCCESS;
}

static cusparseStatus_t by_row(cusparseConstSpMatDescr_t it, size_t *nbytes) { return answer(it->rows, nbytes); }

static cusparseStatus_t by_element(cusparseConstSpMatDescr_t it, size_t *nbytes)
{
    return answer(it->rows + it->nonzero, nbytes);
}

/* Arguments that nobody reads keep the names that they have in the header. */
#pragma GCC diagnostic ignored "-Wunused-parameter"

EXPORT cusparseStatus_t cusparseSpMM_bufferSize(cusparseHandle_t handle, cusparseOperation_t opA,
                                                cusparseOperation_t opB, const void *alpha,
                                                cusparseConstSpMatDescr_t A, cusparseConstDnMatDescr_t B,
                                                const void *beta, cusparseDnMatDescr_t C, cudaDataType type,
                                                cusparseSpMMAlg_t algorithm, size_t *nbytes)
{
    bool needs_none = algorithm == CUSPARSE_SPMM_COO_ALG1 || algorithm == CUSPARSE_SPMM_COO_ALG3;
    *nbytes = 0; /* as documented */
    return needs_none ? CUSPARSE_STATUS_SUCCESS : by_row(A, nbytes);
}

EXPORT cusparseStatus_t cusparseSpMV_bufferSize(cusparseHandle_t handle, cusparseOperation_t opA, const void *alpha,
                                                cusparseConstSpMatDescr_t A, cusparseConstDnVecDescr_t x,
                                                const void *beta, cusparseDnVecDescr_t y, cudaDataType type,
                                                cusparseSpMVAlg_t algorithm, size_t *nbytes)
{
    return by_row(A, nbytes);
}

EXPORT cusparseStatus_t cusparseSDDMM_bufferSize(cusparseHandle_t handle, cusparseOperation_t opA,
                                                 cusparseOperation_t opB, const void *alpha,
                                                 cusparseConstDnMatDescr_t A, cusparseConstDnMatDescr_t B,
                                                 const void *beta, cusparseSpMatDescr_t C, cudaDataType type,
                                                 cusparseSDDMMAlg_t algorithm, size_t *nbytes)
{
    return by_row(C, nbytes);
}

EXPORT cusparseStatus_t cusparseSpSM_bufferSize(cusparseHandle_t handle, cusparseOperation_t opA,
                                                cusparseOperation_t opB, const void *alpha,
                                                cusparseConstSpMatDescr_t A, cusparseConstDnMatDescr_t B,
                                                cusparseDnMatDescr_t C, cudaDataType type,
                                                cusparseSpSMAlg_t algorithm, cusparseSpSMDescr_t it, size_t *nbytes)
{
    return by_element(A, nbytes);
}

EXPORT cusparseStatus_t cusparseSpSV_bufferSize(cusparseHandle_t handle, cusparseOperation_t opA, const void *alpha,
                                                cusparseConstSpMatDescr_t A, cusparseConstDnVecDescr_t x,
                                                cusparseDnVecDescr_t y, cudaDataType type,
                                                cusparseSpSVAlg_t algorithm, cusparseSpSVDescr_t it, size_t *nbytes)
{
    return by_element(A, nbytes);
}

/* ---- products of two sparse matrices ---- */

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

EXPORT cusparseStatus_t cusparseSpGEMM_workEstimation(cusparseHandle_t handle, cusparseOperation_t opA,
                                                      cusparseOperation_t opB, const void *alpha,
                                                      cusparseConstSpMatDescr_t A, cusparseConstSpMatDescr_t B,
                                                      const void *beta, cusparseSpMatDescr_t C, cudaDataType type,
                                                      cusparseSpGEMMAlg_t algorithm, cusparseSpGEMMDescr_t it,
                                                      size_t *nbytes, void *buffer)
{
    double met = (double)A->nonzero * (double)B->nonzero / (double)(A->columns ? A->columns : 1);
    double dense = (double)A->rows * (double)B->columns;
    C->rows = A->rows, C->columns = B->columns;
    C->nonzero = (int64_t)(met < dense ? met : dense);
    return buffer ? CUSPARSE_STATUS_SUCCESS : by_element(A, nbytes);
}

EXPORT cusparseStatus_t cusparseSpGEMM_compute(cusparseHandle_t handle, cusparseOperation_t opA,
                                               cusparseOperation_t opB, const void *alpha, cusparseConstSpMatDescr_t A,
                                               cusparseConstSpMatDescr_t B, const void *beta, cusparseSpMatDescr_t C,
                                               cudaDataType type, cusparseSpGEMMAlg_t algorithm,
                                               cusparseSpGEMMDescr_t it, size_t *nbytes, void *buffer)
{
    return buffer ? CUSPARSE_STATUS_SUCCESS : answer(2 * C->nonzero, nbytes);
}

/* ---- sums, sorts ---- */

EXPORT cusparseStatus_t cusparseXcsrgeam2Nnz(cusparseHandle_t handle, int m, int n, const cusparseMatDescr_t A,
                                             int nonzero_A, const int *rows_A, const int *columns_A,
                                             const cusparseMatDescr_t B, int nonzero_B, const int *rows_B,
                                             const int *columns_B, const cusparseMatDescr_t C, int *rows_C, int *total,
                                             void *work)
{
    vg_ran();
    unsigned all = (unsigned)least((int64_t)m * n, (int64_t)nonzero_A + nonzero_B);
    vg_fill((uintptr_t)total, all, sizeof *total, 1);
    return CUSPARSE_STATUS_SUCCESS;
}

#define OF_TYPE(T, type)                                                                                              \
    EXPORT cusparseStatus_t cusparse##T##csrgeam2_bufferSizeExt(                                                     \
        cusparseHandle_t handle, int m, int n, const type *alpha, const cusparseMatDescr_t A, int nonzero_A,         \
        const type *values_A, const int *rows_A, const int *columns_A, const type *beta, const cusparseMatDescr_t B, \
        int nonzero_B, const type *values_B, const int *rows_B, const int *columns_B, const cusparseMatDescr_t C,    \
        const type *values_C, const int *rows_C, const int *columns_C, size_t *nbytes)                               \
    {                                                                                                                \
        return answer(m, nbytes);                                                                                    \
    }                                                                                                                \
    EXPORT cusparseStatus_t cusparse##T##bsrsm2_bufferSize(                                                          \
        cusparseHandle_t handle, cusparseDirection_t order, cusparseOperation_t opA, cusparseOperation_t opX,        \
        int blocks, int n, int nonzero, const cusparseMatDescr_t A, type *values, const int *rows,                   \
        const int *columns, int block, bsrsm2Info_t it, int *nbytes)                                                 \
    {                                                                                                                \
        *nbytes = (int)vg_modelled(VG_SPARSE, (size_t)(blocks + nonzero) * INDEX_BYTES);                             \
        return CUSPARSE_STATUS_SUCCESS;                                                                              \
    }                                                                                                                \
    EXPORT cusparseStatus_t cusparse##T##bsrsv2_bufferSize(                                                          \
        cusparseHandle_t handle, cusparseDirection_t order, cusparseOperation_t opA, int blocks, int nonzero,        \
        const cusparseMatDescr_t A, type *values, const int *rows, const int *columns, int block, bsrsv2Info_t it,   \
        int *nbytes)                                                                                                 \
    {                                                                                                                \
        *nbytes = (int)vg_modelled(VG_SPARSE, (size_t)(blocks + nonzero) * INDEX_BYTES);                             \
        return CUSPARSE_STATUS_SUCCESS;                                                                              \
    }

OF_TYPE(S, float)
OF_TYPE(D, double)
OF_TYPE(C, cuComplex)
OF_TYPE(Z, cuDoubleComplex)

EXPORT cusparseStatus_t cusparseXcoosort_bufferSizeExt(cusparseHandle_t handle, int m, int n, int nonzero,
                                                       const int *rows, const int *columns, size_t *nbytes)
{
    return answer(2 * (int64_t)nonzero, nbytes);
}

EXPORT cusparseStatus_t cusparseXcsrsort_bufferSizeExt(cusparseHandle_t handle, int m, int n, int nonzero,
                                                       const int *rows, const int *columns, size_t *nbytes)
{
    return answer(2 * (int64_t)nonzero, nbytes);
}
