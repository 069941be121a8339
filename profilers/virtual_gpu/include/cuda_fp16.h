/* What the library headers want of cuda_fp16.h: that the type has a size. Nothing computes with it. */
#ifndef DNNMEM_CUDA_FP16_H
#define DNNMEM_CUDA_FP16_H
typedef struct { unsigned short bits; } __half;
typedef struct { __half x, y; } __half2;
#endif
