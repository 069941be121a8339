/* What the stub libraries share: the virtual GPUs of this process. They live in libcuda.so.1 (identity.c, memory.c,
 * values.c, calls.c).
 *
 * Addresses of device memory are reserved and have no memory behind them, except where a small copy or memset went
 * (values.c). All functions here are safe to call from any thread.
 */
#ifndef DNNMEM_VIRTUAL_GPU_H
#define DNNMEM_VIRTUAL_GPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The build reads the names of the functions that are written by hand after this word; it generates all others. */
#define EXPORT __attribute__((visibility("default")))

#define VG_MAX_DEVICES 64
#define VG_MIB ((size_t)1 << 20)
#define VG_PAGE_BYTES (2 * VG_MIB) /* the driver's granularity of device memory */

/* ---- identity: what the environment says of the GPUs (identity.py writes it) ---- */
EXPORT void vg_read_identity(void);          /* done when the library is loaded */
EXPORT int vg_device_count(void);            /* that this process sees: CUDA_VISIBLE_DEVICES hides the others */
EXPORT int vg_present_count(void);           /* in the machine */
EXPORT int vg_present_index(int device);     /* place in the machine of a device that this process sees */
EXPORT int vg_visible_index(int present);    /* the other way; -1: hidden */
EXPORT const char *vg_device_name(void);
EXPORT size_t vg_total_bytes(void);
size_t vg_context_bytes(void);
EXPORT int vg_attribute(int number, int device); /* CU_DEVICE_ATTRIBUTE_number; 0 where the identity has none */
EXPORT int vg_kernel_version(void);              /* 10 * major + minor of the code that kernels run */
EXPORT bool vg_peers(void);                      /* can the GPUs read each other's memory? */
EXPORT void vg_uuid(int device, char bytes[16]);

/* ---- memory ---- */
typedef enum { VG_DEVICE_MEMORY, VG_ADDRESSES, VG_HOST_MEMORY, VG_REGISTERED, VG_MANAGED } vg_kind;

typedef struct {
    uintptr_t start;
    size_t nbytes;  /* as asked for */
    size_t charged; /* bytes of the GPU that it holds by itself: 0 for host memory and for pieces of a page */
    vg_kind kind;
    int device;     /* -1: host */
    int page;       /* index of the page that a small allocation is a piece of, else -1 */
} vg_range;

EXPORT bool vg_open(int device);                /* the context appears and takes its bytes; false: they do not fit */
EXPORT bool vg_is_open(int device);
EXPORT size_t vg_used_bytes(int device);        /* context included */
EXPORT bool vg_charge(int device, size_t nbytes); /* false: out of memory */
EXPORT void vg_discharge(int device, size_t nbytes);
EXPORT uintptr_t vg_allocate(int device, size_t nbytes); /* 0: out of memory */
EXPORT uintptr_t vg_reserve(int device, size_t nbytes);  /* addresses alone; 0: there are none left */
EXPORT void vg_track(vg_range range);
EXPORT bool vg_forget(uintptr_t start, vg_range *was); /* false: nothing begins there; device memory is given back */
EXPORT bool vg_find(uintptr_t address, vg_range *found);
EXPORT int vg_device_of(uintptr_t address); /* -1: not an address of a virtual GPU */

/* ---- values ---- */
EXPORT void vg_copy(uintptr_t to, uintptr_t from, size_t nbytes);
EXPORT void vg_fill(uintptr_t to, unsigned value, size_t width, size_t count);
EXPORT void vg_ran(void); /* a kernel, a product or a collective ran: what it wrote is not known */
EXPORT void vg_drop_values(uintptr_t start, size_t nbytes); /* they read as 0 */
/* For whoever keeps the values of small tensors true: */
#define VG_MAX_COUNTS 16
EXPORT void vg_keep_values(size_t largest); /* kernels forget nothing from now on; largest copy or memset that happens */
EXPORT void vg_move(uintptr_t to, uintptr_t from, size_t nbytes); /* of any size */
EXPORT void vg_expect(const int64_t *values, int count); /* what this thread's host code reads next; -1: what is there */
/* Values that are still to come from other ranks (waits.c): */
EXPORT void vg_on_touch(void (*then)(uintptr_t start, size_t nbytes)); /* who brings them in; 0 bytes: vg_waited */
EXPORT void vg_touched(uintptr_t start, size_t nbytes); /* somebody is about to read or write there */
EXPORT void vg_waited(void);                            /* the host waits for the GPU */
EXPORT void vg_carry_any_size(bool any);                /* copies and payloads of this thread are all small */
EXPORT bool vg_carries_any_size(void);

/* ---- what a GPU has to do (queue.c): places in its queue count from 1 ---- */
unsigned long vg_room(void); /* in a queue */
void vg_put(void);           /* something more, for the current one */
bool vg_works(void);         /* has this thread put something? */
unsigned long vg_last_put(int device);
unsigned long vg_last_complete(int device);
void vg_finish(int device, unsigned long upto); /* this thread has waited for it, and works */
bool vg_is_complete(int device, unsigned long which); /* 0: nothing to wait for */

/* ---- collectives, and the thread that watches them (watch.c) ---- */
struct CUstream_st;
EXPORT void vg_collective(const void *group, struct CUstream_st *stream); /* one goes there */
EXPORT void vg_end_collectives(const void *group); /* a communicator ends */

/* ---- calls ---- */
EXPORT void vg_give_up(const char *message, const char *hint) __attribute__((noreturn));
EXPORT int vg_unreviewed(const char *symbol); /* a call that nobody has reviewed: ends the process, or returns 0 */

/* Sizes that are not certain, for notes (certainty.py): a library tells them only to a process with a GPU, so that a model
 * gives them; or the memory may lie on the host as well. */
typedef enum { VG_FFT, VG_SOLVER, VG_SPARSE, VG_CTC, VG_MANAGED_BYTES, VG_TOPICS } vg_topic;
EXPORT size_t vg_modelled(vg_topic topic, size_t nbytes); /* counts an answer of `nbytes`, and returns it */
EXPORT long vg_modelled_calls(vg_topic topic);
EXPORT size_t vg_modelled_most(vg_topic topic); /* bytes of the largest answer */

#endif
