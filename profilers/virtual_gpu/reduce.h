/* Sums, products and the like over the small payloads of several ranks. */
#ifndef DNNMEM_REDUCE_H
#define DNNMEM_REDUCE_H

#include <nccl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

size_t reduce_size(ncclDataType_t type); /* bytes of one number */
bool reduce_is_float(ncclDataType_t type);
bool reduce_can(ncclDataType_t type); /* is it of a type that is computed here? */
/* `count` parts of `nbytes` each into the first one; how[0] is the type, how[1] the operation. */
void reduce_parts(void *parts, int count, size_t nbytes, const void *how);

#endif
