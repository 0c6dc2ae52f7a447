/* One sum over ranks, block by block. */
#ifndef DITHER_SHM_BLOCKS_H
#define DITHER_SHM_BLOCKS_H

#include "kernels/kernels.h"
#include "shm.h"

/* What a call does with blocks. */
typedef struct {
    enum sum_type type;  /* of what lies in slots */
    unsigned width;      /* its bytes */
    uint64_t digest;     /* the same on all ranks, or the call is refused */
    /* Make this rank's elements [first, first + count). */
    dither_status (*write)(void *context, size_t first, size_t count, void *slot);
    /* Use the elements, which are the sum of `parts` arrays. */
    void (*read)(void *context, size_t first, size_t count, const void *const *from,
                 unsigned parts);
    void *context;
} shm_work;

/* Run it over `count` elements. Between `shm_enter` and `shm_leave`. */
dither_status shm_run(dither_shm *shm, const dither_kernels *kernels, const shm_work *work,
                      size_t count);

/* Mixes numbers that ranks must agree on. */
uint64_t shm_mix(uint64_t digest, uint64_t number);

#endif
