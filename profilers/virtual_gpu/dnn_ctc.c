/* libcudnn.so: the CTC loss. It computes nothing. From cudnn_adv.h.
 *
 * cuDNN tells the size of its workspace only to a process that has a GPU. The model is what the algorithm holds in any
 * form, and torch's own kernel too: the forward and the backward variables, T x B x (2 L + 1) numbers of 4 bytes each, L
 * the longest label; and the probabilities once more, where they have to be made of the input.
 */
#include "dnn_tensor.h"
#include "virtual_gpu.h"

#include <cudnn.h>
#include <stdlib.h>

struct cudnnCTCLossStruct {
    int longest; /* label, if it was told */
};

EXPORT cudnnStatus_t cudnnCreateCTCLossDescriptor(cudnnCTCLossDescriptor_t *made)
{
    *made = calloc(1, sizeof **made);
    return *made ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_INTERNAL_ERROR;
}

EXPORT cudnnStatus_t cudnnDestroyCTCLossDescriptor(cudnnCTCLossDescriptor_t it)
{
    free(it);
    return CUDNN_STATUS_SUCCESS;
}

EXPORT cudnnStatus_t cudnnSetCTCLossDescriptor_v9(cudnnCTCLossDescriptor_t it, cudnnDataType_t type,
                                                  cudnnLossNormalizationMode_t mode, cudnnCTCGradMode_t gradient,
                                                  int longest)
{
    (void)type, (void)mode, (void)gradient;
    it->longest = longest;
    return CUDNN_STATUS_SUCCESS;
}

EXPORT cudnnStatus_t cudnnSetCTCLossDescriptor_v8(cudnnCTCLossDescriptor_t it, cudnnDataType_t type,
                                                  cudnnLossNormalizationMode_t mode, cudnnNanPropagation_t gradient,
                                                  int longest)
{
    (void)type, (void)mode, (void)gradient;
    it->longest = longest;
    return CUDNN_STATUS_SUCCESS;
}

/* Sizes are read back of the tensors of this loss alone. */
EXPORT cudnnStatus_t cudnnSetTensorNdDescriptor(cudnnTensorDescriptor_t it, cudnnDataType_t type, int rank,
                                                const int sizes[], const int strides[])
{
    (void)strides;
    *it = (struct cudnnTensorStruct){.type = type, .rank = rank < 3 ? rank : 3};
    for (int i = 0; i < it->rank; i++)
        it->sizes[i] = sizes[i];
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t answer(cudnnTensorDescriptor_t x, int longest, size_t *nbytes)
{
    size_t rows = (size_t)x->sizes[0] * (size_t)x->sizes[1];
    *nbytes = vg_modelled(VG_CTC, 4 * rows * (2 * (2 * (size_t)longest + 1) + (size_t)x->sizes[2]));
    return CUDNN_STATUS_SUCCESS;
}

EXPORT cudnnStatus_t cudnnGetCTCLossWorkspaceSize_v8(cudnnHandle_t handle, cudnnCTCLossAlgo_t algorithm,
                                                     cudnnCTCLossDescriptor_t it, const cudnnTensorDescriptor_t x,
                                                     const cudnnTensorDescriptor_t dx, size_t *nbytes)
{
    (void)handle, (void)algorithm, (void)dx;
    return answer(x, it->longest, nbytes);
}

/* The lengths lie on the host here. */
EXPORT cudnnStatus_t cudnnGetCTCLossWorkspaceSize(cudnnHandle_t handle, const cudnnTensorDescriptor_t x,
                                                  const cudnnTensorDescriptor_t dx, const int *labels,
                                                  const int *label_lengths, const int *input_lengths,
                                                  cudnnCTCLossAlgo_t algorithm, cudnnCTCLossDescriptor_t it,
                                                  size_t *nbytes)
{
    (void)handle, (void)dx, (void)labels, (void)input_lengths, (void)algorithm, (void)it;
    int longest = 0;
    for (int i = 0; i < x->sizes[1]; i++)
        longest = label_lengths[i] > longest ? label_lengths[i] : longest;
    return answer(x, longest, nbytes);
}
