/* exact.c within its arrays, at every number of levels. Its values: tests/native/test_exact.py. */
#include "check.h"

void test_exact(void) {
    const double sigmas[] = {5e-324, 0x1p-1022, 0.3, 1.0, 0x1.fffffffffffffp-1, 0x1p40};
    const uint64_t ends[] = {0, 1, 1ull << 63, ~0ull};
    for (unsigned levels = 0; levels <= 66; levels += levels < 4 ? 1 : 31) {
        /* Exactly as many words as promised: one more read is a fault under ASan. */
        buffer more = buffer_new(2 * levels * sizeof(uint64_t), 0);
        for (size_t fill = 0; fill < 2; fill++) {
            memset(more.at, fill ? 0xff : 0, more.size);
            /* Many levels are slow: a few cases then. */
            for (size_t i = 0; i < 6 * 4 * 4 * 2; i += levels < 4 ? 1 : 61) {
                int64_t draw = 0;
                uint64_t m = ends[i / 2 % 4], w = ends[i / 8 % 4];
                int decided = dither_exact_draw(m, w, (const uint64_t *)(const void *)more.at,
                                                levels, sigmas[i / 32], (int)(i % 2), &draw);
                CHECK(!decided || levels <= 64, "%u levels were answered", levels);
                CHECK(!decided || m || (levels && fill), "a radius without an end was answered");
            }
        }
        buffer_free(&more);
    }
}
