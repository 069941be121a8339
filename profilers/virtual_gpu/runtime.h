/* What the files of libcudart.so share. */
#ifndef DNNMEM_RUNTIME_H
#define DNNMEM_RUNTIME_H

#include <cuda.h>
#include <cuda_runtime_api.h>

int rt_device(void);                /* of this thread */
cudaError_t rt_result(CUresult from); /* as the runtime calls it; remembered as the last error */
CUresult rt_enter(void); /* makes the context of the thread's device current; it appears with the first call that needs it */

/* The result of `call`, made in the context. */
#define IN_CONTEXT(call)                                                                                             \
    do {                                                                                                             \
        CUresult failure = rt_enter();                                                                                  \
        return rt_result(failure ? failure : (call));                                                                   \
    } while (0)

#endif
