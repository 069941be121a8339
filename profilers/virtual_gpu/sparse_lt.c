/* libcusparseLt.so: products with matrices of which half is zero (2:4). Its descriptors are 512 bytes or more that the
 * caller brings. Types are those of the public cusparseLt.h, which not every torch brings along.
 *
 * A compressed matrix holds half of the values, and two bits for each of them (four where an element has one byte). What
 * the library wants beside it to compress and to multiply it tells only to a process that has a GPU; it is counted as 0.
 */
#include "virtual_gpu.h"

#include <library_types.h>

enum { SUCCESS = 0 };

typedef struct {
    int64_t rows, columns;
    size_t element_bytes;
} matrix;

static size_t element_bytes(cudaDataType type)
{
    switch ((int)type) {
    case CUDA_R_32F:
    case CUDA_R_32I:
        return 4;
    case CUDA_R_16F:
    case CUDA_R_16BF:
        return 2;
    default:
        return 1;
    }
}

EXPORT int cusparseLtDenseDescriptorInit(const void *handle, void *made, int64_t rows, int64_t columns, int64_t ld,
                                         uint32_t alignment, cudaDataType type, int order)
{
    (void)handle, (void)ld, (void)alignment, (void)order;
    *(matrix *)made = (matrix){rows, columns, element_bytes(type)};
    return SUCCESS;
}

EXPORT int cusparseLtStructuredDescriptorInit(const void *handle, void *made, int64_t rows, int64_t columns, int64_t ld,
                                              uint32_t alignment, cudaDataType type, int order, int sparsity)
{
    (void)sparsity;
    return cusparseLtDenseDescriptorInit(handle, made, rows, columns, ld, alignment, type, order);
}

EXPORT int cusparseLtSpMMACompressedSize2(const void *handle, const void *it, size_t *nbytes, size_t *buffer)
{
    (void)handle;
    const matrix *m = it;
    size_t kept = (size_t)(m->rows * m->columns) / 2;
    *nbytes = kept * m->element_bytes + kept / (m->element_bytes == 1 ? 2 : 4);
    *buffer = vg_modelled(VG_SPARSE, 0);
    return SUCCESS;
}

EXPORT int cusparseLtMatmulGetWorkspace(const void *handle, const void *plan, size_t *nbytes)
{
    (void)handle, (void)plan;
    *nbytes = vg_modelled(VG_SPARSE, 0);
    return SUCCESS;
}

/* An attribute of an algorithm: number 0, no split, of one there is. */
EXPORT int cusparseLtMatmulAlgGetAttribute(const void *handle, const void *algorithm, int name, void *value, size_t size)
{
    (void)handle, (void)algorithm;
    enum { MAX_ID = 1 };
    if (size >= sizeof(int))
        *(int *)value = name == MAX_ID;
    return SUCCESS;
}
