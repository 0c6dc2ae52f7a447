/* What the core itself does with keys. */
#ifndef DITHER_KEY_H
#define DITHER_KEY_H

#include "dither.h"

/* Streams of one key, in word 14 of the state: numbers of different uses never meet. */
enum dither_use { USE_STREAM = 0, USE_REFINE = 1, USE_SEEK = 2 };

/* A span of unused superblocks: the cipher's state at its start. Wipe after use. */
typedef struct {
    uint32_t state[16];
    unsigned rounds;
} dither_span;

/* Hand out the next `superblocks`; two calls never get the same ones. */
dither_status dither_key_take(dither_key *key, uint64_t superblocks, dither_span *span);

/* The state for an explicit place of stream `use`, `stream`. */
dither_status dither_key_at(dither_key *key, enum dither_use use, uint32_t stream,
                            uint64_t position, dither_span *span);

/* Where a span starts, in superblocks. */
uint64_t dither_span_position(const dither_span *span);

/* Move on by `superblocks` inside a span. */
void dither_span_advance(dither_span *span, uint64_t superblocks);

#endif
