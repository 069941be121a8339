/* libcudnn.so, recurrent networks: the sizes that torch asks for. From cudnn_adv.h.
 *
 * The parameters' layout is exact: all matrices, layer by layer, then all biases (pytorch/pytorch#57632 shows the sum).
 * The scratch memory is modelled, because cuDNN tells it only to a process that has a GPU. The measurement published in
 * pytorch/pytorch#2895 (a P100 in 2017, 4 layers, T*B = 25,000, H = 320; LSTM 736,000,000 B and 17,730,560 B, GRU
 * 864,000,000 B and 13,169,920 B) is met to the byte by
 *
 *     reserve   = T B D (L H k + (L-1) P) e            k: LSTM 5 (gates, cell), GRU 6, plain 1; P: a layer's output
 *     workspace = matrices + L D B H (10 g + 2 s) e    g: gates 4, 3, 1; s: states 2, 1, 1
 *
 * (T steps, B batch, D directions, L layers, H hidden, e bytes of an element). The plain network's k is inferred from
 * the sizes of the processes there. How far a later cuDNN is from all this is not known. States of dropout: 48 bytes
 * for each thread that the GPU can hold, the size of cuRAND's generator.
 */
#include "dnn_tensor.h"
#include "virtual_gpu.h"

#include <cudnn.h>
#include <stdatomic.h>
#include <stdlib.h>

#define MULTIPROCESSORS 16 /* CU_DEVICE_ATTRIBUTE_... */
#define THREADS_PER_MULTIPROCESSOR 39
#define GENERATOR_BYTES 48

struct cudnnRNNStruct {
    int gates, states, kept; /* kept: what the reserve holds of each hidden unit, a step */
    size_t input, hidden, output, layers, directions, element_bytes, biases;
    bool projects;
};

struct cudnnRNNDataStruct {
    size_t steps, batch;
};

static atomic_long modelled;

/* How often scratch memory was asked for that is modelled. */
EXPORT long vg_dnn_modelled(void) { return modelled; }

EXPORT cudnnStatus_t cudnnCreateRNNDescriptor(cudnnRNNDescriptor_t *made)
{
    *made = calloc(1, sizeof **made);
    return *made ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_INTERNAL_ERROR;
}

EXPORT cudnnStatus_t cudnnDestroyRNNDescriptor(cudnnRNNDescriptor_t it)
{
    free(it);
    return CUDNN_STATUS_SUCCESS;
}

EXPORT cudnnStatus_t cudnnCreateRNNDataDescriptor(cudnnRNNDataDescriptor_t *made)
{
    *made = calloc(1, sizeof **made);
    return *made ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_INTERNAL_ERROR;
}

EXPORT cudnnStatus_t cudnnDestroyRNNDataDescriptor(cudnnRNNDataDescriptor_t it)
{
    free(it);
    return CUDNN_STATUS_SUCCESS;
}

static size_t element_bytes(cudnnDataType_t type)
{
    return type == CUDNN_DATA_DOUBLE ? 8 : type == CUDNN_DATA_FLOAT ? 4 : 2;
}

EXPORT cudnnStatus_t cudnnSetRNNDescriptor_v8(cudnnRNNDescriptor_t it, cudnnRNNAlgo_t algorithm, cudnnRNNMode_t mode,
                                              cudnnRNNBiasMode_t bias, cudnnDirectionMode_t direction,
                                              cudnnRNNInputMode_t input_mode, cudnnDataType_t type,
                                              cudnnDataType_t math_type, cudnnMathType_t math, int32_t input,
                                              int32_t hidden, int32_t projection, int32_t layers,
                                              cudnnDropoutDescriptor_t dropout, uint32_t flags)
{
    (void)algorithm, (void)input_mode, (void)math_type, (void)math, (void)dropout, (void)flags;
    bool lstm = mode == CUDNN_LSTM, gru = mode == CUDNN_GRU;
    *it = (struct cudnnRNNStruct){
        .gates = lstm ? 4 : gru ? 3 : 1,
        .states = lstm ? 2 : 1,
        .kept = lstm ? 5 : gru ? 6 : 1,
        .input = (size_t)input,
        .hidden = (size_t)hidden,
        .output = (size_t)projection,
        .layers = (size_t)layers,
        .directions = direction == CUDNN_BIDIRECTIONAL ? 2 : 1,
        .element_bytes = element_bytes(type),
        .biases = bias == CUDNN_RNN_NO_BIAS ? 0 : bias == CUDNN_RNN_DOUBLE_BIAS ? 2 : 1,
        .projects = projection != hidden,
    };
    return CUDNN_STATUS_SUCCESS;
}

EXPORT cudnnStatus_t cudnnSetRNNDataDescriptor(cudnnRNNDataDescriptor_t it, cudnnDataType_t type,
                                               cudnnRNNDataLayout_t layout, int steps, int batch, int width,
                                               const int lengths[], void *padding)
{
    (void)type, (void)layout, (void)width, (void)lengths, (void)padding;
    *it = (struct cudnnRNNDataStruct){.steps = (size_t)steps, .batch = (size_t)batch};
    return CUDNN_STATUS_SUCCESS;
}

/* ---- parameters ---- */

/* What one direction of a layer reads. */
static size_t input_of(const struct cudnnRNNStruct *it, size_t layer)
{
    return layer ? it->directions * it->output : it->input;
}

/* Elements of the matrices of one direction of a layer. */
static size_t matrices_of(const struct cudnnRNNStruct *it, size_t layer)
{
    size_t gates = (size_t)it->gates * it->hidden * (input_of(it, layer) + it->output);
    return gates + (it->projects ? it->output * it->hidden : 0);
}

/* Elements of the matrices of all directions before number `end`. */
static size_t matrices_before(const struct cudnnRNNStruct *it, size_t end)
{
    size_t sum = 0;
    for (size_t i = 0; i < end; i++)
        sum += matrices_of(it, i / it->directions);
    return sum;
}

static size_t biases_of(const struct cudnnRNNStruct *it) { return it->biases * (size_t)it->gates * it->hidden; }

EXPORT cudnnStatus_t cudnnGetRNNWeightSpaceSize(cudnnHandle_t handle, cudnnRNNDescriptor_t it, size_t *nbytes)
{
    (void)handle;
    size_t directions = it->layers * it->directions;
    *nbytes = (matrices_before(it, directions) + directions * biases_of(it)) * it->element_bytes;
    return CUDNN_STATUS_SUCCESS;
}

static void describe(cudnnTensorDescriptor_t it, const struct cudnnRNNStruct *rnn, size_t rows, size_t columns)
{
    if (!it)
        return;
    cudnnDataType_t type = rnn->element_bytes == 8 ? CUDNN_DATA_DOUBLE : CUDNN_DATA_FLOAT;
    if (rnn->element_bytes == 2)
        type = CUDNN_DATA_HALF; /* bfloat16 has the same size, and nobody reads more */
    *it = (struct cudnnTensorStruct){.type = type, .rank = 3, .sizes = {1, (int)rows, (int)columns}};
}

/* One matrix and one bias of the direction `which`: number 0.. of the input's, then of the hidden state's, then the
 * projection. What does not exist has no address; torch asks for one of the two and gives no room for the other. */
EXPORT cudnnStatus_t cudnnGetRNNWeightParams(cudnnHandle_t handle, cudnnRNNDescriptor_t it, int32_t which,
                                             size_t nbytes, const void *space, int32_t number,
                                             cudnnTensorDescriptor_t matrix, void **matrix_address,
                                             cudnnTensorDescriptor_t bias, void **bias_address)
{
    (void)handle, (void)nbytes;
    size_t gates = (size_t)it->gates, place = (size_t)number, e = it->element_bytes;
    size_t input = input_of(it, (size_t)which / it->directions);
    bool recurrent = place >= gates, projection = place == 2 * gates;
    size_t before = matrices_before(it, (size_t)which);
    before += it->hidden * (recurrent ? gates * input + (place - gates) * it->output : place * input);
    if (projection)
        describe(matrix, it, it->output, it->hidden);
    else
        describe(matrix, it, it->hidden, recurrent ? it->output : input);
    if (matrix_address)
        *matrix_address = (char *)space + before * e;
    bool has_bias = !projection && place < it->biases * gates;
    before = matrices_before(it, it->layers * it->directions) + (size_t)which * biases_of(it) + place * it->hidden;
    describe(bias, it, has_bias ? it->hidden : 0, has_bias);
    if (bias_address)
        *bias_address = has_bias ? (char *)space + before * e : NULL;
    return CUDNN_STATUS_SUCCESS;
}

/* Only the descriptors that were filled in above are read back. */
EXPORT cudnnStatus_t cudnnGetTensorNdDescriptor(const cudnnTensorDescriptor_t it, int room, cudnnDataType_t *type,
                                                int *rank, int sizes[], int strides[])
{
    *type = it->type;
    *rank = it->rank;
    for (int i = it->rank - 1, step = 1; i >= 0; step *= it->sizes[i], i--) {
        if (i >= room)
            continue;
        sizes[i] = it->sizes[i];
        strides[i] = step;
    }
    return CUDNN_STATUS_SUCCESS;
}

/* ---- scratch memory ---- */

EXPORT cudnnStatus_t cudnnGetRNNTempSpaceSizes(cudnnHandle_t handle, cudnnRNNDescriptor_t it, cudnnForwardMode_t mode,
                                               cudnnRNNDataDescriptor_t x, size_t *workspace, size_t *reserve)
{
    (void)handle;
    modelled++;
    size_t T = x->steps, B = x->batch, L = it->layers, D = it->directions, H = it->hidden, e = it->element_bytes;
    size_t g = (size_t)it->gates, s = (size_t)it->states, k = (size_t)it->kept;
    *workspace = (matrices_before(it, L * D) + L * D * B * H * (10 * g + 2 * s)) * e;
    if (reserve)
        *reserve = mode == CUDNN_FWD_MODE_TRAINING ? T * B * D * (L * H * k + (L - 1) * it->output) * e : 0;
    return CUDNN_STATUS_SUCCESS;
}

EXPORT cudnnStatus_t cudnnDropoutGetStatesSize(cudnnHandle_t handle, size_t *nbytes)
{
    (void)handle;
    size_t threads = (size_t)vg_attribute(MULTIPROCESSORS, 0) * (size_t)vg_attribute(THREADS_PER_MULTIPROCESSOR, 0);
    *nbytes = threads * GENERATOR_BYTES;
    return CUDNN_STATUS_SUCCESS;
}

EXPORT cudnnStatus_t cudnnCreateDropoutDescriptor(cudnnDropoutDescriptor_t *made)
{
    *made = calloc(1, 64);
    return *made ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_INTERNAL_ERROR;
}

EXPORT cudnnStatus_t cudnnDestroyDropoutDescriptor(cudnnDropoutDescriptor_t it)
{
    free(it);
    return CUDNN_STATUS_SUCCESS;
}
