/* libcudnn.so: handles, descriptors, and the graph interface as a store of attributes. Nothing executes. From cudnn.h.
 *
 * A query for engines finds one; the plan made of it needs no workspace: workspaces of convolutions are not modelled here.
 * What is not named here or in reviewed.py (recurrent networks, CTC losses, searches over algorithms) ends the process.
 */
#include "virtual_gpu.h"

#include <cudnn.h>
#include <stdlib.h>
#include <string.h>

struct cudnnContext {
    cudaStream_t stream;
};

/* ---- handles ---- */

EXPORT cudnnStatus_t cudnnCreate(cudnnHandle_t *handle)
{
    *handle = calloc(1, sizeof **handle);
    return *handle ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_INTERNAL_ERROR;
}

EXPORT cudnnStatus_t cudnnDestroy(cudnnHandle_t handle)
{
    free(handle);
    return CUDNN_STATUS_SUCCESS;
}

EXPORT cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream)
{
    handle->stream = stream;
    return CUDNN_STATUS_SUCCESS;
}

EXPORT cudnnStatus_t cudnnGetStream(cudnnHandle_t handle, cudaStream_t *stream)
{
    *stream = handle->stream;
    return CUDNN_STATUS_SUCCESS;
}

EXPORT size_t cudnnGetVersion(void) { return CUDNN_VERSION; }
EXPORT size_t cudnnGetCudartVersion(void) { return CUDART_VERSION; }

EXPORT cudnnStatus_t cudnnGetProperty(libraryPropertyType which, int *value)
{
    *value = which == MAJOR_VERSION ? CUDNN_MAJOR : which == MINOR_VERSION ? CUDNN_MINOR : CUDNN_PATCHLEVEL;
    return CUDNN_STATUS_SUCCESS;
}

EXPORT const char *cudnnGetErrorString(cudnnStatus_t status)
{
    return status == CUDNN_STATUS_SUCCESS ? "CUDNN_STATUS_SUCCESS" : "CUDNN_STATUS_NOT_SUPPORTED";
}

EXPORT void cudnnGetLastErrorString(char *text, size_t room)
{
    if (room)
        *text = 0;
}

/* ---- descriptors of the older interface: nobody reads them back ---- */

static cudnnStatus_t make(void *made)
{
    *(void **)made = calloc(1, 1024);
    return *(void **)made ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_INTERNAL_ERROR;
}

static cudnnStatus_t end(void *descriptor)
{
    free(descriptor);
    return CUDNN_STATUS_SUCCESS;
}

EXPORT cudnnStatus_t cudnnCreateTensorDescriptor(cudnnTensorDescriptor_t *made) { return make(made); }
EXPORT cudnnStatus_t cudnnDestroyTensorDescriptor(cudnnTensorDescriptor_t it) { return end(it); }
EXPORT cudnnStatus_t cudnnCreateFilterDescriptor(cudnnFilterDescriptor_t *made) { return make(made); }
EXPORT cudnnStatus_t cudnnDestroyFilterDescriptor(cudnnFilterDescriptor_t it) { return end(it); }
EXPORT cudnnStatus_t cudnnCreateConvolutionDescriptor(cudnnConvolutionDescriptor_t *made) { return make(made); }
EXPORT cudnnStatus_t cudnnDestroyConvolutionDescriptor(cudnnConvolutionDescriptor_t it) { return end(it); }
EXPORT cudnnStatus_t cudnnCreateActivationDescriptor(cudnnActivationDescriptor_t *made) { return make(made); }
EXPORT cudnnStatus_t cudnnDestroyActivationDescriptor(cudnnActivationDescriptor_t it) { return end(it); }
EXPORT cudnnStatus_t cudnnCreateSpatialTransformerDescriptor(cudnnSpatialTransformerDescriptor_t *made)
{
    return make(made);
}
EXPORT cudnnStatus_t cudnnDestroySpatialTransformerDescriptor(cudnnSpatialTransformerDescriptor_t it) { return end(it); }

/* ---- batch norm: without fused activations it keeps mean and variance in tensors of its caller and needs no more ---- */

EXPORT cudnnStatus_t cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
    cudnnHandle_t handle, cudnnBatchNormMode_t mode, cudnnBatchNormOps_t operation, const cudnnTensorDescriptor_t x,
    const cudnnTensorDescriptor_t z, const cudnnTensorDescriptor_t y, const cudnnTensorDescriptor_t scale,
    const cudnnActivationDescriptor_t activation, size_t *nbytes)
{
    (void)handle, (void)mode, (void)operation, (void)x, (void)z, (void)y, (void)scale, (void)activation;
    *nbytes = 0;
    return CUDNN_STATUS_SUCCESS;
}

EXPORT cudnnStatus_t cudnnGetBatchNormalizationBackwardExWorkspaceSize(
    cudnnHandle_t handle, cudnnBatchNormMode_t mode, cudnnBatchNormOps_t operation, const cudnnTensorDescriptor_t x,
    const cudnnTensorDescriptor_t y, const cudnnTensorDescriptor_t dy, const cudnnTensorDescriptor_t dz,
    const cudnnTensorDescriptor_t dx, const cudnnTensorDescriptor_t scale,
    const cudnnActivationDescriptor_t activation, size_t *nbytes)
{
    (void)handle, (void)mode, (void)operation, (void)x, (void)y, (void)dy, (void)dz, (void)dx, (void)scale;
    (void)activation;
    *nbytes = 0;
    return CUDNN_STATUS_SUCCESS;
}

EXPORT cudnnStatus_t cudnnGetBatchNormalizationTrainingExReserveSpaceSize(
    cudnnHandle_t handle, cudnnBatchNormMode_t mode, cudnnBatchNormOps_t operation,
    const cudnnActivationDescriptor_t activation, const cudnnTensorDescriptor_t x, size_t *nbytes)
{
    (void)handle, (void)mode, (void)operation, (void)activation, (void)x;
    *nbytes = 0;
    return CUDNN_STATUS_SUCCESS;
}

/* ---- the graph interface ---- */

typedef struct attribute {
    int name;
    int64_t count;
    void *values;
    struct attribute *next;
} attribute;

typedef struct {
    cudnnBackendDescriptorType_t type;
    attribute *first;
} descriptor;

static size_t bytes_of(cudnnBackendAttributeType_t type)
{
    switch ((int)type) {
    case CUDNN_TYPE_BOOLEAN:
    case CUDNN_TYPE_CHAR:
        return 1;
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_DOUBLE:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR:
        return 8;
    case CUDNN_TYPE_FRACTION:
        return 16;
    default:
        return 4; /* enumerations, int32, float */
    }
}

EXPORT cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *made)
{
    descriptor *it = calloc(1, sizeof *it);
    if (!it)
        return CUDNN_STATUS_INTERNAL_ERROR;
    it->type = type;
    *made = it;
    return CUDNN_STATUS_SUCCESS;
}

EXPORT cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t handle)
{
    descriptor *it = handle;
    for (attribute *a = it ? it->first : NULL, *next; a; a = next) {
        next = a->next;
        free(a->values);
        free(a);
    }
    free(it);
    return CUDNN_STATUS_SUCCESS;
}

EXPORT cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t handle, cudnnBackendAttributeName_t name,
                                              cudnnBackendAttributeType_t type, int64_t count, const void *values)
{
    size_t nbytes = bytes_of(type) * (size_t)count;
    attribute *made = malloc(sizeof *made);
    void *copy = malloc(nbytes + 1);
    if (!made || !copy)
        return CUDNN_STATUS_INTERNAL_ERROR;
    if (nbytes)
        memcpy(copy, values, nbytes);
    descriptor *it = handle;
    *made = (attribute){.name = (int)name, .count = count, .values = copy, .next = it->first};
    it->first = made;
    return CUDNN_STATUS_SUCCESS;
}

/* Write a number that the library would have worked out, if there is room for it. */
static cudnnStatus_t answer(int64_t value, size_t nbytes, int64_t room, int64_t *count, void *values)
{
    *count = 1;
    if (values && room > 0)
        memcpy(values, &value, nbytes);
    return CUDNN_STATUS_SUCCESS;
}

/* What was set, handed back; descriptors are filled in place by their owner and stay as they are. */
static cudnnStatus_t recall(const descriptor *it, int name, cudnnBackendAttributeType_t type, int64_t room,
                            int64_t *count, void *values)
{
    const attribute *a = it->first;
    while (a && a->name != name)
        a = a->next;
    *count = a ? a->count : 0;
    int64_t fits = room < *count ? room : *count;
    if (a && values && fits > 0 && type != CUDNN_TYPE_BACKEND_DESCRIPTOR)
        memcpy(values, a->values, bytes_of(type) * (size_t)fits);
    return CUDNN_STATUS_SUCCESS;
}

EXPORT cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t const handle, cudnnBackendAttributeName_t name,
                                              cudnnBackendAttributeType_t type, int64_t room, int64_t *count,
                                              void *values)
{
    int64_t unasked;
    count = count ? count : &unasked;
    switch ((int)name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS: /* the caller brings the descriptor of the one result */
    case CUDNN_ATTR_ENGINECFG_ENGINE:
        *count = 1;
        return CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_OPERATIONGRAPH_ENGINE_GLOBAL_COUNT:
        return answer(1, 8, room, count, values);
    case CUDNN_ATTR_ENGINE_GLOBAL_INDEX:
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE:
    case CUDNN_ATTR_ENGINECFG_WORKSPACE_SIZE:
        return answer(0, 8, room, count, values);
    case CUDNN_ATTR_ENGINECFG_SHARED_MEMORY_USED:
        return answer(0, 4, room, count, values);
    case CUDNN_ATTR_ENGINE_KNOB_INFO:
    case CUDNN_ATTR_ENGINECFG_KNOB_CHOICES:
    case CUDNN_ATTR_ENGINE_NUMERICAL_NOTE:
    case CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE:
        *count = 0;
        return CUDNN_STATUS_SUCCESS;
    default:
        return recall(handle, (int)name, type, room, count, values);
    }
}
