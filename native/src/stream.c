/* The bare stream: cipher, fresh words, words at a place, masks. */
#include "kernels/kernels.h"
#include "key.h"
#include "wipe.h"

/* Superblocks worked on at once: 8 KiB, so that stream and data stay in the first-level cache. */
enum { BATCH = 8 };

static uint64_t superblocks(uint64_t words) { return (words + SUPERBLOCK - 1) / SUPERBLOCK; }

void dither_chacha(const dither_kernels *kernels, const uint32_t state[16], unsigned rounds,
                   uint32_t *out, size_t count) {
    kernels->simd->chacha(state, rounds, out, count);
}

void dither_aes256(const dither_kernels *kernels, const uint8_t key[DITHER_KEY_BYTES],
                   const uint8_t counter[16], uint8_t *out, size_t count) {
    aes_keys keys;
    aes_expand(key, &keys);
    kernels->aes(&keys, counter, out, count);
    dither_wipe(&keys, sizeof keys);
}

static void fill(const dither_kernels *kernels, dither_span *span, uint32_t *out, size_t words) {
    size_t whole = words / SUPERBLOCK;
    dither_span_next(kernels, span, out, whole);
    if (words % SUPERBLOCK) {
        uint32_t last[SUPERBLOCK];
        dither_span_next(kernels, span, last, 1);
        memcpy(out + whole * SUPERBLOCK, last, words % SUPERBLOCK * sizeof *out);
        dither_wipe(last, sizeof last);
    }
    dither_wipe(span, sizeof *span);
}

dither_status dither_stream(const dither_kernels *kernels, dither_key *key, uint32_t *out,
                            size_t words) {
    dither_span span;
    dither_status status = dither_key_take(key, superblocks(words), &span);
    if (status == DITHER_OK) fill(kernels, &span, out, words);
    return status;
}

dither_status dither_stream_at(const dither_kernels *kernels, dither_key *key, uint32_t stream,
                               uint64_t position, uint32_t *out, size_t words) {
    dither_span span;
    dither_status status = dither_key_at(key, stream, position, &span);
    if (status == DITHER_OK) fill(kernels, &span, out, words);
    return status;
}

dither_status dither_mask(const dither_kernels *kernels, dither_key *key, void *values,
                          size_t count, unsigned width, int subtract) {
    if (width != 2 && width != 4 && width != 8) return DITHER_BAD_ARGUMENT;
    const size_t step = BATCH * SUPERBLOCK * sizeof(uint32_t) / width;
    uint32_t stream[BATCH * SUPERBLOCK];
    dither_span span;
    dither_status status = dither_key_take(key, superblocks((count * width + 3) / 4), &span);
    if (status != DITHER_OK) return status;
    for (size_t done = 0; done < count; done += step) {
        size_t now = count - done < step ? count - done : step;
        size_t blocks = (size_t)superblocks((now * width + 3) / 4);
        dither_span_next(kernels, &span, stream, blocks);
        kernels->simd->mask((unsigned char *)values + done * width, stream, now, width, subtract);
    }
    dither_wipe(stream, sizeof stream);
    dither_wipe(&span, sizeof span);
    return DITHER_OK;
}
