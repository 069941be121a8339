/* What the files of libcudnn.so know of a tensor: the beginning of what cudnnCreateTensorDescriptor (dnn.c) gives. */
#ifndef DNNMEM_DNN_TENSOR_H
#define DNNMEM_DNN_TENSOR_H

#include <cudnn.h>

struct cudnnTensorStruct {
    cudnnDataType_t type;
    int rank, sizes[3]; /* no more than three of them */
};

#endif
