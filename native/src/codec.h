/* The parts of encoding that the pool shares. */
#ifndef DITHER_CODEC_H
#define DITHER_CODEC_H

#include "kernels/kernels.h"

dither_status codec_open(const dither_grid *grid, codec_numbers *numbers);

/* Refuse a message in which a value was not finite, wiping it; else report the count. */
dither_status codec_close(const dither_grid *grid, const codec_counts *counts, void *message,
                          size_t count, uint64_t *saturated);

#endif
