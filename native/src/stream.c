/* The bare stream: cipher, fresh words, words at a place, masks. */
#include "kernels/kernels.h"
#include "key.h"
#include "mask.h"
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

dither_status mask_open(mask_pad *pad, dither_key *key, size_t count, unsigned width, int subtract) {
    if (width != 2 && width != 4 && width != 8) return DITHER_BAD_ARGUMENT;
    pad->width = width;
    pad->subtract = subtract;
    return dither_key_take(key, superblocks((count * width + 3) / 4), &pad->span);
}

void mask_some(const dither_kernels *kernels, mask_pad *pad, void *to, const void *from,
               size_t count) {
    const size_t step = BATCH * SUPERBLOCK * sizeof(uint32_t) / pad->width;
    uint32_t stream[BATCH * SUPERBLOCK];
    for (size_t done = 0; done < count; done += step) {
        size_t now = count - done < step ? count - done : step, at = done * pad->width;
        dither_span_next(kernels, &pad->span, stream,
                         (size_t)superblocks((now * pad->width + 3) / 4));
        kernels->simd->mask((unsigned char *)to + at, (const unsigned char *)from + at, stream, now,
                            pad->width, pad->subtract);
    }
    dither_wipe(stream, sizeof stream);
}

dither_status dither_mask(const dither_kernels *kernels, dither_key *key, void *values,
                          size_t count, unsigned width, int subtract) {
    mask_pad pad;
    dither_status status = mask_open(&pad, key, count, width, subtract);
    if (status != DITHER_OK) return status;
    mask_some(kernels, &pad, values, values, count);
    dither_wipe(&pad, sizeof pad);
    return DITHER_OK;
}
