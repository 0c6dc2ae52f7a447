/* Blocks through slots.
 *
 * Each rank writes block b of its own into one of its slots and posts it; when all have, it reads
 * the block of all of them. It writes one block ahead of what it reads, so that a rank that is held
 * up for a moment holds up nobody. A slot is written again when everybody has read it.
 *
 * Few ranks: each sums for itself, straight into its result. More: each sums one section of the
 * block into its own slot, where nobody else reads that section; when all have, each collects the
 * sections: each reads two blocks in the place of R. Measured on two cores: as fast at R = 3, 1.6 times
 * as fast at R = 4, 2.3 times at R = 8; not worth its second meeting for short arrays. */
#include "shm_blocks.h"

#ifdef __linux__

enum { BLOCK = DITHER_SHM_BLOCK, MOST_ALONE = 3, SHORT = 4096, CACHE_LINE = 64 };

typedef struct {
    dither_shm *shm;
    const dither_kernels *kernels;
    const shm_work *work;
    size_t count;
    uint32_t base; /* number of the call's first block */
    int sections;  /* whether ranks sum sections */
} run;

static size_t length_of(const run *r, size_t block) {
    const size_t left = r->count - block * BLOCK;
    return left < BLOCK ? left : BLOCK;
}

/* Section `q` of `length` elements; whole cache lines. */
static size_t section(const run *r, size_t length, unsigned q) {
    const size_t lines = (length * r->work->width + CACHE_LINE - 1) / CACHE_LINE;
    const size_t at = lines * q / r->shm->ranks * CACHE_LINE / r->work->width;
    return at < length ? at : length;
}

static void tell(dither_shm *shm, _Atomic uint32_t *counter, uint32_t value) {
    shm_set(counter, value);
    for (unsigned q = 0; q < shm->ranks; q++)
        if (q != shm->rank) shm_ring_bell(shm, q);
}

/* Wait until a counter of every other rank reaches a block. */
static dither_status all_reach(const run *r, size_t counter, uint32_t target) {
    dither_shm *shm = r->shm;
    for (unsigned i = 1; i < shm->ranks; i++) {
        const unsigned q = (shm->rank + i) % shm->ranks;
        char *at = (char *)&shm->rank_of[q] + counter;
        const shm_event reached = {&((shm_counter *)at)->count, target, q};
        dither_status status = shm_wait(shm, &reached, 1);
        if (status != DITHER_OK) return status;
    }
    return DITHER_OK;
}

static dither_status write_block(const run *r, size_t block) {
    dither_shm *shm = r->shm;
    const uint32_t number = r->base + (uint32_t)block;
    dither_status status = all_reach(r, offsetof(shm_rank, done), number + 1 - SHM_SLOTS);
    if (status != DITHER_OK) return status;
    const size_t length = length_of(r, block);
    if (length > 0)
        status = r->work->write(r->work->context, block * BLOCK, length,
                                shm_slot(shm, shm->rank, number));
    if (status != DITHER_OK) return status;
    shm->rank_of[shm->rank].digest[number % SHM_SLOTS] = r->work->digest;
    tell(shm, &shm->rank_of[shm->rank].posted.count, number + 1);
    return DITHER_OK;
}

/* Wait until all have written it, as part of the same call. */
static dither_status written(const run *r, size_t block) {
    dither_shm *shm = r->shm;
    const uint32_t number = r->base + (uint32_t)block;
    dither_status status = all_reach(r, offsetof(shm_rank, posted), number + 1);
    for (unsigned q = 0; q < shm->ranks && status == DITHER_OK; q++)
        if (shm->rank_of[q].digest[number % SHM_SLOTS] != r->work->digest) {
            shm->culprit = (int)q;
            status = DITHER_MISMATCH;
        }
    return status;
}

static dither_status sum_section(const run *r, size_t block) {
    dither_shm *shm = r->shm;
    const void *from[DITHER_SHM_RANKS];
    const uint32_t number = r->base + (uint32_t)block;
    dither_status status = written(r, block);
    if (status != DITHER_OK) return status;
    const size_t length = length_of(r, block), first = section(r, length, shm->rank),
                 end = section(r, length, shm->rank + 1), at = first * r->work->width;
    for (unsigned q = 0; q < shm->ranks; q++) from[q] = shm_slot(shm, q, number) + at;
    r->kernels->simd->sum[r->work->type](shm_slot(shm, shm->rank, number) + at, from, shm->ranks,
                                         end - first);
    tell(shm, &shm->rank_of[shm->rank].reduced.count, number + 1);
    return DITHER_OK;
}

static void read_sections(const run *r, size_t block) {
    const uint32_t number = r->base + (uint32_t)block;
    const size_t length = length_of(r, block);
    for (unsigned q = 0; q < r->shm->ranks; q++) {
        const size_t first = section(r, length, q), end = section(r, length, q + 1);
        const void *from = shm_slot(r->shm, q, number) + first * r->work->width;
        if (first < end)
            r->work->read(r->work->context, block * BLOCK + first, end - first, &from, 1);
    }
}

static dither_status read_block(const run *r, size_t block) {
    dither_shm *shm = r->shm;
    const void *from[DITHER_SHM_RANKS];
    const uint32_t number = r->base + (uint32_t)block;
    dither_status status = r->sections ? all_reach(r, offsetof(shm_rank, reduced), number + 1)
                                       : written(r, block);
    if (status != DITHER_OK) return status;
    for (unsigned q = 0; q < shm->ranks; q++) from[q] = shm_slot(shm, q, number);
    if (r->sections)
        read_sections(r, block);
    else if (length_of(r, block) > 0)
        r->work->read(r->work->context, block * BLOCK, length_of(r, block), from, shm->ranks);
    tell(shm, &shm->rank_of[shm->rank].done.count, number + 1);
    return DITHER_OK;
}

dither_status shm_run(dither_shm *shm, const dither_kernels *kernels, const shm_work *work,
                      size_t count) {
    const run r = {shm, kernels, work, count, shm->blocks, shm->ranks > MOST_ALONE && count > SHORT};
    /* Ranks meet for no elements too: a call is a call, and lengths are compared. */
    const size_t blocks = count ? (count + BLOCK - 1) / BLOCK : 1, stages = r.sections ? 3 : 2;
    for (size_t b = 0; b < blocks + stages - 1; b++) {
        dither_status status = b < blocks ? write_block(&r, b) : DITHER_OK;
        if (status == DITHER_OK && r.sections && b >= 1 && b - 1 < blocks)
            status = sum_section(&r, b - 1);
        if (status == DITHER_OK && b + 1 >= stages) status = read_block(&r, b + 1 - stages);
        if (status != DITHER_OK) return status;
    }
    shm->blocks += (uint32_t)blocks;
    return DITHER_OK;
}

uint64_t shm_mix(uint64_t digest, uint64_t number) {
    uint64_t z = (digest ^ number) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    return z ^ z >> 27;
}
#else
typedef int dither_shm_needs_linux;
#endif
