/* Draws some superblocks at a time, for the fills, the codec and the pool. */
#ifndef DITHER_LATTICE_H
#define DITHER_LATTICE_H

#include "kernels/kernels.h"
#include "key.h"

/* Superblocks at once: words and draws together fill half of a first-level cache. */
enum { LATTICE_BATCH = 8 };

typedef struct {
    const dither_kernels *kernels;
    dither_span span;
    double sigma;
    uint64_t redone; /* draws that exact.c decided */
} lattice_source;

/* Reserve numbers for `count` draws. */
dither_status lattice_open(lattice_source *source, const dither_kernels *kernels, dither_key *key,
                           double sigma, size_t count);

/* Draw at most `wanted`, at least one, as integers in float64; returns how many. */
size_t lattice_some(lattice_source *source, double out[LATTICE_BATCH * DRAWS], size_t wanted);

/* The next draws, σ ≤ DITHER_MAX_SIGMA_I32. */
void lattice_fill_i32(lattice_source *source, int32_t *out, size_t count);

void lattice_close(lattice_source *source);

#endif
