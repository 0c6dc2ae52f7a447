/* The bare stream: cipher, fresh words, words at a place, masks. */
#include "kernels/kernels.h"
#include "key.h"
#include "wipe.h"

/* Superblocks worked on at once: 8 KiB, so that stream and data stay in the first-level cache. */
enum { BATCH = 8 };

static uint64_t superblocks(uint64_t words) { return (words + SUPERBLOCK - 1) / SUPERBLOCK; }

void dither_chacha(const dither_kernels *kernels, const uint32_t state[16], unsigned rounds,
                   uint32_t *out, size_t count) {
    kernels->chacha(state, rounds, out, count);
}

static void fill(const dither_kernels *kernels, dither_span *span, uint32_t *out, size_t words) {
    size_t whole = words / SUPERBLOCK;
    kernels->chacha(span->state, span->rounds, out, whole);
    if (words % SUPERBLOCK) {
        uint32_t last[SUPERBLOCK];
        dither_span_advance(span, whole);
        kernels->chacha(span->state, span->rounds, last, 1);
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
    dither_status status = dither_key_at(key, USE_SEEK, stream, position, &span);
    if (status == DITHER_OK) fill(kernels, &span, out, words);
    return status;
}

dither_status dither_mask(const dither_kernels *kernels, dither_key *key, void *values,
                          size_t count, unsigned width, int subtract) {
    const size_t step = BATCH * SUPERBLOCK * sizeof(uint32_t) / width;
    uint32_t stream[BATCH * SUPERBLOCK];
    dither_span span;
    dither_status status = dither_key_take(key, superblocks((count * width + 3) / 4), &span);
    if (status != DITHER_OK) return status;
    for (size_t done = 0; done < count; done += step) {
        size_t now = count - done < step ? count - done : step;
        size_t blocks = (size_t)superblocks((now * width + 3) / 4);
        kernels->chacha(span.state, span.rounds, stream, blocks);
        kernels->mask((unsigned char *)values + done * width, stream, now, width, subtract);
        dither_span_advance(&span, blocks);
    }
    dither_wipe(stream, sizeof stream);
    dither_wipe(&span, sizeof span);
    return DITHER_OK;
}
