/* The lattice kernels against exact.c, on words chosen to mislead them. */
#include "check.h"
#include "key.h"

enum { LEVELS = 2 };

static int outside(uint64_t m) { return m < FAST_FROM || m >= FAST_END; }

/* The draw of these words continued by zeros, ones or random bits. */
static int exact(word_pair p, double sigma, int second, uint64_t kind, int64_t *draw) {
    uint64_t more[2 * LEVELS], seed = p.m ^ p.w;
    for (int i = 0; i < 2 * LEVELS; i++)
        more[i] = kind == 0 ? 0 : kind == 1 ? ~0ull : next_random(&seed);
    return dither_exact_draw(p.m, p.w, more, LEVELS, sigma, second, draw);
}

/* One pair in every lane: all are decided by the fast pass, or none. Returns whether none was. */
static int compare(word_pair pair, double sigma, uint64_t kind) {
    const path_list paths = every_path();
    int64_t draws[2] = {0, 0};
    int decided[2], open = 0;
    uint64_t words[DRAWS];
    double out[DRAWS];
    spread_pair(pair, words);
    for (int second = 0; second < 2; second++)
        decided[second] = exact(pair, sigma, second, kind, &draws[second]);
    for (size_t p = 0; p < paths.count; p++) {
        int said = paths.of[p]->simd->lattice(words, sigma, out);
        for (int i = 0; i < DRAWS; i++) {
            int second = i / 8 % 2;
            CHECK(said || !isnan(out[i]), "%s hides a NaN", dither_kernels_name(paths.of[p]));
            CHECK(isnan(out[i]) ||
                      (!outside(pair.m) && decided[second] && out[i] == (double)draws[second]),
                  "%s, m %#llx, w %#llx, σ %a: draw %d is %a, not %lld",
                  dither_kernels_name(paths.of[p]), (unsigned long long)pair.m,
                  (unsigned long long)pair.w, sigma, i, out[i], (long long)draws[second]);
        }
        open |= said;
    }
    return open;
}

static void test_words(const word_pair *pairs, size_t count) {
    const double sigmas[] = {0.3, 1000.5, 0x1p26, 0x1p40};
    size_t open = 0, inside = 0;
    for (size_t i = 0; i < count; i++) {
        int left = compare(pairs[i], sigmas[i / 4 % 4], i % 3);
        inside += !outside(pairs[i].m);
        open += left && !outside(pairs[i].m);
    }
    /* At 2^40 an eighth of the draws, else only the words beside the limits. */
    CHECK(inside > 3000 && open < inside / 5, "%zu of %zu were left open", open, inside);
}

/* σ for which one draw of the pair lies beside a half-integer, by less and more than the margin. */
static void test_halves(const word_pair *pairs, size_t count) {
    const dither_kernels *portable = dither_select(0);
    const double beside[] = {0, 0x1p-48, -0x1p-48, 0x1p-46, -0x1p-46, 0x1p-43, -0x1p-43, 0x1p-42};
    const double halves[] = {0.5, 3.5, 1000.5, 0x1p20 + 0.5, 0x1p37 + 0.5};
    uint64_t words[DRAWS];
    double normal[DRAWS];
    size_t open = 0, clear = 0;
    for (size_t i = 0; i < count; i++) {
        if (outside(pairs[i].m)) continue;
        spread_pair(pairs[i], words);
        portable->simd->gaussian_f64(words, normal);
        double x = fabs(normal[i % 2 * 8]), sigma = halves[i % 5] / x * (1 + beside[i % 8]);
        if (!(x > 0 && sigma <= DITHER_MAX_SIGMA)) continue;
        *(compare(pairs[i], sigma, i % 3) ? &open : &clear) += 1;
    }
    CHECK(open > 500 && clear > 500, "%zu pairs were left open and %zu not", open, clear);
}

/* Ordinary words are answered: the redo stays as rare as gauss64.h says. */
static void test_rate(void) {
    const double sigma = 0x1p36;
    const path_list paths = every_path();
    uint64_t words[DRAWS], seed = 3;
    double out[DRAWS];
    size_t open[4] = {0}, superblocks = 2000;
    for (size_t s = 0; s < superblocks; s++) {
        for (int i = 0; i < DRAWS; i++) words[i] = next_random(&seed);
        for (size_t p = 0; p < paths.count; p++) {
            (void)paths.of[p]->simd->lattice(words, sigma, out);
            for (int i = 0; i < DRAWS; i++) open[p] += isnan(out[i]) != 0;
        }
    }
    /* 256,000 draws, each open with probability 2 σ 2^-44 = 2^-7: 2000 ± 45, of fixed words. */
    for (size_t p = 0; p < paths.count; p++)
        CHECK(open[p] > 1730 && open[p] < 2270, "%s: %zu open", dither_kernels_name(paths.of[p]),
              open[p]);
}

/* Superblocks of `agreed_key` with a radius word below 2^38, found by search: at σ = 2^40 its 64
 * bits leave its draws open, so they take more words, which belong to this pair of draws alone. */
static const uint64_t OPEN_PLACES[] = {1499436, 2122002, 9936170, 12224819, 12833765, 14078660};

/* The draw in lane `at` of a superblock; counts those that need more words. */
static int64_t refined(dither_span span, const uint64_t words[DRAWS], uint64_t place, int at,
                       int *open) {
    const dither_kernels *k = dither_select(0);
    int second = at / 8 % 2, first = at - 8 * second;
    uint64_t more[DRAWS] = {0};
    int64_t draw = 0;
    if (dither_exact_draw(words[first], words[first + 8], more, 0, 0x1p40, second, &draw))
        return draw;
    ++*open;
    span.use = USE_REFINE;
    span.position = place * (DRAWS / 2) + (uint64_t)(first / 16 * 8 + first % 8);
    dither_span_next(k, &span, (uint32_t *)more, 1);
    CHECK(dither_exact_draw(words[first], words[first + 8], more, 1, 0x1p40, second, &draw),
          "still open");
    return draw;
}

static void test_refining(void) {
    const path_list paths = every_path();
    int open = 0;
    for (size_t i = 0; i < sizeof OPEN_PLACES / sizeof *OPEN_PLACES; i++)
        for (size_t p = 0; p < paths.count; p++) {
            const uint64_t place = OPEN_PLACES[i];
            dither_key *key = agreed_key(), *again = agreed_key();
            dither_span skipped, span;
            uint64_t words[DRAWS], redone = 0;
            int64_t draws[DRAWS];
            int small = 0;
            CHECK(dither_key_take(key, place, &skipped) == DITHER_OK, "no words");
            CHECK(dither_key_take(again, place, &skipped) == DITHER_OK, "no words");
            CHECK(dither_key_take(again, 1, &span) == DITHER_OK, "no words");
            CHECK(dither_lattice_i64(paths.of[p], key, 0x1p40, draws, DRAWS, &redone) == DITHER_OK,
                  "no draws");
            dither_span_next(paths.of[p], &span, (uint32_t *)words, 1);
            for (int at = 0; at < DRAWS; at++) {
                small += at / 8 % 2 == 0 && words[at] >> 38 == 0;
                int64_t want = refined(span, words, place, at, &open);
                CHECK(draws[at] == want, "%s: draw %d at %llu is %lld, not %lld",
                      dither_kernels_name(paths.of[p]), at, (unsigned long long)place,
                      (long long)draws[at], (long long)want);
            }
            CHECK(small == 1 && redone >= 2, "the place is another's");
            dither_key_free(key);
            dither_key_free(again);
        }
    CHECK(open >= 6 * (int)paths.count, "%d draws were open", open);
}

void test_lattice(void) {
    test_refining();
    word_pair *pairs;
    size_t count = adversarial_words(&pairs);
    test_words(pairs, count);
    test_halves(pairs, count);
    test_rate();
    free(pairs);
}
