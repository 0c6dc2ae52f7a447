/* round(σ Z), exactly.
 *
 * A draw is a function of two uniform numbers of infinitely many bits (kernels/gauss64.h says
 * which). The fast path knows their first 64 bits and bounds its own error; if the whole interval
 * of outcomes rounds to one integer, that is the draw. Otherwise exact.c decides from the same
 * bits, and from as many more as it takes, in arbitrary precision: interval refining, after Haney
 * et al. 2207.13793. The result is exactly a rounded Gaussian for ideal bits, with no error term to
 * multiply by dimensions and steps, and the same integer for every instruction set. The bits are a
 * cipher's, so the guarantee is computational. */
#include "lattice.h"

#include <math.h>

#include "wipe.h"

/* Draws come in pairs, LEVELS a superblock. The refining stream has a superblock for each pair: 64
 * levels of two words, of which the last is reached with probability below 2^-3900. */
enum { LEVELS = DRAWS / 2 };

dither_status lattice_open(lattice_source *source, const dither_kernels *kernels, dither_key *key,
                           double sigma, size_t count) {
    if (!(sigma > 0 && sigma <= DITHER_MAX_SIGMA)) return DITHER_BAD_SIGMA;
    source->kernels = kernels;
    source->sigma = sigma;
    source->redone = 0;
    return dither_key_take(key, (count + DRAWS - 1) / DRAWS, &source->span);
}

void lattice_close(lattice_source *source) { dither_wipe(source, sizeof *source); }

/* More bits of a pair of draws, counted from the start of the key's stream. */
static void more_words(const lattice_source *source, uint64_t pair, uint64_t more[DRAWS]) {
    dither_span span = source->span;
    span.use = USE_REFINE;
    span.position = pair;
    dither_span_next(source->kernels, &span, (uint32_t *)more, 1);
    dither_wipe(&span, sizeof span);
}

/* Decide draw `at` of superblock `position`, whose words these are. */
static double redo(lattice_source *source, uint64_t position, const uint64_t words[DRAWS], int at) {
    int second = at / 8 % 2, first = at - 8 * second;
    uint64_t radius = words[first], angle = words[first + 8], more[DRAWS] = {0};
    int64_t draw = 0;
    int decided = dither_exact_draw(radius, angle, more, 0, source->sigma, second, &draw);
    if (!decided) more_words(source, position * LEVELS + (uint64_t)(first / 16 * 8 + first % 8), more);
    for (unsigned levels = 1; !decided && levels <= LEVELS; levels *= 2)
        decided = dither_exact_draw(radius, angle, more, levels, source->sigma, second, &draw);
    dither_wipe(more, sizeof more);
    source->redone++;
    return (double)draw;
}

static void lattice_next(lattice_source *source, double *out, size_t superblocks) {
    uint64_t words[LATTICE_BATCH * DRAWS];
    uint64_t position = source->span.position;
    dither_span_next(source->kernels, &source->span, (uint32_t *)words, superblocks);
    for (size_t s = 0; s < superblocks; s++) {
        const uint64_t *mine = words + s * DRAWS;
        double *draws = out + s * DRAWS;
        if (source->kernels->simd->lattice(mine, source->sigma, draws))
            for (int i = 0; i < DRAWS; i++)
                if (isnan(draws[i])) draws[i] = redo(source, position + s, mine, i);
    }
    dither_wipe(words, superblocks * DRAWS * sizeof *words);
}

size_t lattice_some(lattice_source *source, double out[LATTICE_BATCH * DRAWS], size_t wanted) {
    size_t superblocks = (wanted + DRAWS - 1) / DRAWS;
    if (superblocks > LATTICE_BATCH) superblocks = LATTICE_BATCH;
    lattice_next(source, out, superblocks);
    return wanted < superblocks * DRAWS ? wanted : superblocks * DRAWS;
}

void lattice_fill_i32(lattice_source *source, int32_t *out, size_t count) {
    double draws[LATTICE_BATCH * DRAWS];
    for (size_t done = 0, now; done < count; done += now) {
        now = lattice_some(source, draws, count - done);
        source->kernels->simd->narrow(draws, out + done, now);
    }
    dither_wipe(draws, sizeof draws);
}

dither_status dither_lattice_i32(const dither_kernels *kernels, dither_key *key, double sigma,
                                 int32_t *out, size_t count, uint64_t *redone) {
    lattice_source source;
    if (!(sigma <= DITHER_MAX_SIGMA_I32)) return DITHER_BAD_SIGMA;
    dither_status status = lattice_open(&source, kernels, key, sigma, count);
    if (status != DITHER_OK) return status;
    lattice_fill_i32(&source, out, count);
    if (redone) *redone += source.redone;
    lattice_close(&source);
    return DITHER_OK;
}

dither_status dither_lattice_i64(const dither_kernels *kernels, dither_key *key, double sigma,
                                 int64_t *out, size_t count, uint64_t *redone) {
    lattice_source source;
    double draws[LATTICE_BATCH * DRAWS];
    dither_status status = lattice_open(&source, kernels, key, sigma, count);
    if (status != DITHER_OK) return status;
    for (size_t done = 0, now; done < count; done += now) {
        now = lattice_some(&source, draws, count - done);
        for (size_t i = 0; i < now; i++) {
            int64_t draw = (int64_t)draws[i];
            memcpy(out + done + i, &draw, sizeof draw); /* at any address */
        }
    }
    if (redone) *redone += source.redone;
    dither_wipe(draws, sizeof draws);
    lattice_close(&source);
    return DITHER_OK;
}
