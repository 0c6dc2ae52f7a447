/* Radius and angle words near everything that the fast path treats apart. */
#include "check.h"

enum { EACH = 4, MOST = 4096 };

/* √½ · 2^64 */
#define ROOT_HALF 0xb504f333f9de6484u

static const int64_t NEAR[] = {-2048, -1025, -1024, -1023, -3,   -2,   -1,
                               0,     1,     2,     3,     1023, 1024, 1025};
enum { NEARS = sizeof NEAR / sizeof *NEAR };

static size_t radius_words(uint64_t *out) {
    uint64_t seed = 1;
    size_t n = 0;
    for (int k = 0; k < 64; k++)
        for (int i = 0; i < NEARS; i++) {
            out[n++] = (1ull << k) + (uint64_t)NEAR[i];
            if (k >= 40) out[n++] = (ROOT_HALF >> (63 - k)) + (uint64_t)NEAR[i];
        }
    for (int i = 0; i < NEARS; i++) {
        out[n++] = FAST_END + (uint64_t)NEAR[i];
        out[n++] = (uint64_t)NEAR[i];
    }
    /* The largest errors are just inside the limits. */
    for (int i = 0; i < 128; i++) {
        out[n++] = FAST_FROM + (next_random(&seed) >> 26);
        out[n++] = FAST_END - 1 - (next_random(&seed) >> 30);
        out[n++] = next_random(&seed);
    }
    CHECK(n <= MOST, "%zu words", n);
    return n;
}

static uint64_t angle_word(uint64_t i, uint64_t *seed) {
    const uint64_t known = 0x1fffffffffffffffu;
    const uint64_t fractions[] = {0,
                                  1,
                                  511,
                                  512,
                                  known,
                                  known - 511,
                                  known - 512,
                                  known / 2,
                                  known / 2 + 1,
                                  next_random(seed),
                                  next_random(seed)};
    uint64_t octant = i % 8;
    return octant << 61 | (fractions[i % (sizeof fractions / sizeof *fractions)] & known);
}

size_t adversarial_words(word_pair **pairs) {
    uint64_t radius[MOST], seed = 2;
    size_t n = radius_words(radius);
    *pairs = malloc(n * EACH * sizeof **pairs);
    CHECK(*pairs, "no memory");
    for (size_t i = 0; i < n * EACH; i++)
        (*pairs)[i] = (word_pair){radius[i / EACH], angle_word(i, &seed)};
    return n * EACH;
}

void spread_pair(word_pair pair, uint64_t words[DRAWS]) {
    for (int i = 0; i < DRAWS; i++) words[i] = i / 8 % 2 ? pair.w : pair.m;
}
