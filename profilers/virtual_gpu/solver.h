/* What the files of libcusolver.so share: the model of its scratch memory, in elements, and how a decomposition ends. */
#ifndef DNNMEM_SOLVER_H
#define DNNMEM_SOLVER_H

#include <cusolverDn.h>
#include <stddef.h>
#include <stdint.h>

size_t sv_blocks(int64_t columns);             /* a block of columns */
size_t sv_svd(int64_t m, int64_t n);           /* gesvd */
size_t sv_jacobi(int64_t m, int64_t n);        /* gesvdj, gesvda */
size_t sv_eigen(cusolverEigMode_t mode, int64_t n); /* syevd, syevj */

cusolverStatus_t sv_elements(size_t wanted, size_t element_bytes, int *answer);
cusolverStatus_t sv_done(int *info, int64_t batch); /* all went well */

#endif
