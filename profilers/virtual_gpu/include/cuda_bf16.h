/* What the library headers want of cuda_bf16.h: that the type has a size. Nothing computes with it. */
#ifndef DNNMEM_CUDA_BF16_H
#define DNNMEM_CUDA_BF16_H
#define __CUDA_BF16_TYPES_EXIST__ 1 /* NCCL before 2.22 names its bfloat16 only then */
typedef struct { unsigned short bits; } __nv_bfloat16;
#endif
