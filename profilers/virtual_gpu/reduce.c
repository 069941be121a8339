/* Reduces small payloads on the CPU, as NCCL would on the GPU; 16-bit numbers by way of float. */
#include "reduce.h"
#include "virtual_gpu.h"

#include <string.h>

#define MAX_FACTORS 256

static double factors[MAX_FACTORS]; /* of ncclRedOpCreatePreMulSum, by operation */
static int factor_count;

size_t reduce_size(ncclDataType_t type)
{
    switch ((int)type) {
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64:
        return 8;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
        return 4;
    case ncclFloat16:
    case ncclBfloat16:
        return 2;
    default:
        return 1;
    }
}

bool reduce_is_float(ncclDataType_t type) { return (int)type >= ncclFloat16; }
bool reduce_can(ncclDataType_t type) { return (int)type <= ncclBfloat16; }

/* ---- 16-bit numbers ---- */

static float float_of(uint32_t bits)
{
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

static uint32_t bits_of(float number)
{
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits;
}

static float from_half(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    if (rest >= 0x7c00)
        return float_of(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    float size = float_of(rest << 13) * 0x1p112f; /* 2^112: the difference of the exponents' biases */
    return sign ? -size : size;
}

static uint16_t to_half(float number)
{
    uint16_t sign = (uint16_t)(bits_of(number) >> 16 & 0x8000);
    float size = sign ? -number : number;
    if (!(size < 65520.0f)) /* infinite, too large or no number */
        return sign | (size == size ? 0x7c00 : 0x7e00);
    if (size < 0x1p-14f) /* its steps are all alike: a float adds up to the nearest one */
        return sign | (uint16_t)(bits_of(size + 0x1p-1f) - bits_of(0x1p-1f));
    uint32_t bits = bits_of(size);
    return sign | (uint16_t)((bits + 0xfff + (bits >> 13 & 1) - (112u << 23)) >> 13);
}

static float from_brain(uint16_t brain) { return float_of((uint32_t)brain << 16); }

static uint16_t to_brain(float number)
{
    uint32_t bits = bits_of(number);
    return number == number ? (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : 0x7fc0;
}

/* ---- operations ---- */

static double factor_of(int operation, int count)
{
    if (operation == ncclAvg)
        return 1.0 / count;
    return operation >= ncclNumOps ? factors[(operation - ncclNumOps) % MAX_FACTORS] : 1.0;
}

/* All parts into the first, as numbers of the C type T that LOAD reads and STORE writes. */
#define REDUCE(T, STORED, LOAD, STORE)                                                                                 \
    for (size_t i = 0; i < nbytes / sizeof(STORED); i++) {                                                             \
        T all = LOAD(((STORED *)parts)[i]);                                                                            \
        for (int part = 1; part < count; part++) {                                                                     \
            T one = LOAD(((STORED *)(parts + (size_t)part * nbytes))[i]);                                              \
            all = operation == ncclProd ? all * one                                                                    \
                : operation == ncclMax  ? (one > all ? one : all)                                                      \
                : operation == ncclMin  ? (one < all ? one : all)                                                      \
                                        : all + one;                                                                   \
        }                                                                                                              \
        ((STORED *)parts)[i] = STORE(factor == 1.0 ? all : (T)((double)all * factor));                                 \
    }                                                                                                                  \
    break

#define SAME(number) (number)

void reduce_parts(void *first, int count, size_t nbytes, const void *how)
{
    char *parts = first;
    int type = (int)((const uint64_t *)how)[0], operation = (int)((const uint64_t *)how)[1];
    double factor = factor_of(operation, count);
    switch (type) {
    case ncclInt8:
        REDUCE(int8_t, int8_t, SAME, (int8_t)SAME);
    case ncclUint8:
        REDUCE(uint8_t, uint8_t, SAME, (uint8_t)SAME);
    case ncclInt32:
        REDUCE(int32_t, int32_t, SAME, SAME);
    case ncclUint32:
        REDUCE(uint32_t, uint32_t, SAME, SAME);
    case ncclInt64:
        REDUCE(int64_t, int64_t, SAME, SAME);
    case ncclUint64:
        REDUCE(uint64_t, uint64_t, SAME, SAME);
    case ncclFloat16:
        REDUCE(float, uint16_t, from_half, to_half);
    case ncclBfloat16:
        REDUCE(float, uint16_t, from_brain, to_brain);
    case ncclFloat32:
        REDUCE(float, float, SAME, SAME);
    case ncclFloat64:
        REDUCE(double, double, SAME, SAME);
    }
}

static double number_at(const void *scalar, ncclDataType_t type)
{
    uint16_t brief;
    float single;
    double number = 1.0;
    memcpy(&brief, scalar, sizeof brief);
    switch ((int)type) {
    case ncclFloat16:
        return from_half(brief);
    case ncclBfloat16:
        return from_brain(brief);
    case ncclFloat32:
        memcpy(&single, scalar, sizeof single);
        return single;
    case ncclFloat64:
        memcpy(&number, scalar, sizeof number);
    }
    return number;
}

EXPORT ncclResult_t ncclRedOpCreatePreMulSum(ncclRedOp_t *operation, void *scalar, ncclDataType_t type,
                                             ncclScalarResidence_t residence, ncclComm_t group)
{
    (void)group;
    char bytes[8] = {0};
    vg_move((uintptr_t)bytes, (uintptr_t)scalar, reduce_size(type) < 2 ? 2 : reduce_size(type));
    (void)residence; /* the address says where it is */
    int place = __atomic_fetch_add(&factor_count, 1, __ATOMIC_RELAXED) % MAX_FACTORS;
    factors[place] = number_at(bytes, type);
    *operation = (ncclRedOp_t)(ncclNumOps + place);
    return ncclSuccess;
}
