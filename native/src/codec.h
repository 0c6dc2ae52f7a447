/* The parts of encoding that the pool shares. */
#ifndef DITHER_CODEC_H
#define DITHER_CODEC_H

#include "kernels/kernels.h"

dither_status codec_open(const dither_grid *grid, double factor, dither_float type,
                         codec_numbers *numbers);

/* What decoding multiplies a message by. */
dither_status codec_step(const dither_grid *grid, double factor, dither_float type, double *step);

/* Refuse a message in which a value was not finite, wiping it; else report the count. */
dither_status codec_close(const dither_grid *grid, const codec_counts *counts, void *message,
                          size_t count, uint64_t *saturated);

/* `dither_encode_ready` with a factor; wiping the noise may be left to the caller. */
dither_status codec_encode_ready(const dither_kernels *kernels, int32_t *noise, int wipe,
                                 const dither_grid *grid, double factor, dither_float type,
                                 const void *values, void *message, size_t count,
                                 uint64_t *saturated);

#endif
