/* What nccl.h wants of cuda_runtime.h: the C half of it. */
#ifndef DNNMEM_CUDA_RUNTIME_H
#define DNNMEM_CUDA_RUNTIME_H
#include "cuda_runtime_api.h"
#endif
