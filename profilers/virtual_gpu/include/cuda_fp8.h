/* What nccl.h wants of cuda_fp8.h: nothing, in C. */
#ifndef DNNMEM_CUDA_FP8_H
#define DNNMEM_CUDA_FP8_H
#endif
