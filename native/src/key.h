/* What the core itself does with keys. */
#ifndef DITHER_KEY_H
#define DITHER_KEY_H

#include "kernels/kernels.h"

/* Streams of one key: numbers of different uses never meet. */
enum dither_use { USE_STREAM = 0, USE_REFINE = 1, USE_SEEK = 2 };

/* A span of unused superblocks: all the cipher needs to make them. Wipe after use. */
typedef struct {
    dither_cipher cipher;
    uint64_t position; /* superblock */
    uint32_t use, stream;
    const uint8_t *bytes; /* on the key's page, so that no copy of a key lies about */
    const aes_keys *expanded;
} dither_span;

/* Hand out the next `superblocks`; two calls never get the same ones. */
dither_status dither_key_take(dither_key *key, uint64_t superblocks, dither_span *span);

/* An explicit place of a stream for seeking. */
dither_status dither_key_at(dither_key *key, uint32_t stream, uint64_t position, dither_span *span);

/* Write the next superblocks of a span and move on. */
void dither_span_next(const dither_kernels *kernels, dither_span *span, uint32_t *out,
                      size_t superblocks);

#endif
