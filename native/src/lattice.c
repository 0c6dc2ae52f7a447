/* round(σ Z), exactly.
 *
 * A draw is a function of two uniform numbers of infinitely many bits (kernels/gauss64.h says
 * which). The fast path knows their first 64 bits and bounds its own error; if the whole interval
 * of outcomes rounds to one integer, that is the draw. Otherwise exact.c decides from the same
 * bits, and from as many more as it takes, in arbitrary precision: interval refining, after Haney
 * et al. 2207.13793. The result is exactly a rounded Gaussian for ideal bits, with no error term to
 * multiply by dimensions and steps, and the same integer for every instruction set. The bits are
 * ChaCha's, so the guarantee is computational. */
#include "lattice.h"

#include <math.h>

#include "wipe.h"

/* The refining stream has one superblock for each pair of draws: 64 levels of two words, of which
 * the last is reached with probability below 2^-3900. */
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

/* More bits of pair number `pair` of the current superblock. */
static void more_words(const lattice_source *source, uint64_t pair, uint64_t more[DRAWS]) {
    dither_span span = source->span;
    uint64_t block = (dither_span_position(&span) * (DRAWS / 2) + pair) * 16;
    span.state[12] = (uint32_t)block;
    span.state[13] = (uint32_t)(block >> 32);
    span.state[14] = USE_REFINE;
    source->kernels->chacha(span.state, span.rounds, (uint32_t *)more, 1);
    dither_wipe(&span, sizeof span);
}

/* Decide draw `at` of the superblock whose words these are. */
static double redo(lattice_source *source, const uint64_t words[DRAWS], int at) {
    int second = at / 8 % 2, first = at - 8 * second;
    uint64_t radius = words[first], angle = words[first + 8], more[DRAWS] = {0};
    int64_t draw = 0;
    int decided = dither_exact_draw(radius, angle, more, 0, source->sigma, second, &draw);
    if (!decided) more_words(source, (uint64_t)(first / 16 * 8 + first % 8), more);
    for (unsigned levels = 1; !decided && levels <= LEVELS; levels *= 2)
        decided = dither_exact_draw(radius, angle, more, levels, source->sigma, second, &draw);
    dither_wipe(more, sizeof more);
    source->redone++;
    return (double)draw;
}

void lattice_next(lattice_source *source, double out[DRAWS]) {
    uint64_t words[DRAWS];
    source->kernels->chacha(source->span.state, source->span.rounds, (uint32_t *)words, 1);
    if (source->kernels->lattice(words, source->sigma, out))
        for (int i = 0; i < DRAWS; i++)
            if (isnan(out[i])) out[i] = redo(source, words, i);
    dither_span_advance(&source->span, 1);
    dither_wipe(words, sizeof words);
}

void lattice_fill_i32(lattice_source *source, int32_t *out, size_t count) {
    double draws[DRAWS];
    for (size_t done = 0; done < count; done += DRAWS) {
        size_t now = count - done < DRAWS ? count - done : DRAWS;
        lattice_next(source, draws);
        source->kernels->narrow(draws, out + done, now);
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
    double draws[DRAWS];
    dither_status status = lattice_open(&source, kernels, key, sigma, count);
    if (status != DITHER_OK) return status;
    for (size_t done = 0; done < count; done += DRAWS) {
        lattice_next(&source, draws);
        for (size_t i = 0; i < DRAWS && done + i < count; i++) out[done + i] = (int64_t)draws[i];
    }
    if (redone) *redone += source.redone;
    dither_wipe(draws, sizeof draws);
    lattice_close(&source);
    return DITHER_OK;
}
