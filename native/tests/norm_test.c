/* The norm against long double, at every size and address; the factor against the bound it keeps. */
#include "check.h"

#include <float.h>

enum { MOST = 9000 };

static double number(uint64_t *seed, int magnitude) {
    return ldexp((double)(int64_t)next_random(seed), magnitude - 63);
}

static void test_size(const dither_kernels *k, dither_float type, size_t count, int magnitude) {
    buffer values = buffer_new(count * type, count % 9);
    uint64_t seed = count;
    long double exact = 0;
    double norm, first;
    for (size_t i = 0; i < count; i++) {
        double wide = number(&seed, magnitude);
        float narrow = (float)wide;
        memcpy(values.at + i * type, type == DITHER_F32 ? (void *)&narrow : (void *)&wide, type);
        long double x = type == DITHER_F32 ? narrow : wide;
        exact += x * x;
    }
    exact = sqrtl(exact);
    CHECK(dither_norm(k, type, values.at, count, &norm) == DITHER_OK, "no norm");
    CHECK(fabsl(norm - exact) <= exact * (long double)dither_norm_error(count), "%s: %a, not %La",
          dither_kernels_name(k), norm, exact);
    CHECK(dither_norm(dither_select(0), type, values.at, count, &first) == DITHER_OK, "no norm");
    CHECK(memcmp(&norm, &first, sizeof norm) == 0, "%s: %a of %zu, not %a", dither_kernels_name(k),
          norm, count, first);
    buffer_free(&values);
}

/* Rounded products stay in the ball; the factor is not small without need. */
static void test_factor(const dither_kernels *k, size_t count, double bound) {
    static double values[MOST];
    uint64_t seed = count;
    long double kept = 0;
    double norm;
    for (size_t i = 0; i < count; i++) values[i] = number(&seed, 4);
    CHECK(dither_norm(k, DITHER_F64, values, count, &norm) == DITHER_OK, "no norm");
    const double factor = dither_clip_factor(norm, count, bound);
    for (size_t i = 0; i < count; i++) {
        volatile double product = values[i] * factor;
        kept += (long double)product * product;
    }
    kept = sqrtl(kept);
    CHECK(factor >= 0 && factor <= 1, "a factor of %a", factor);
    CHECK(kept <= bound, "%zu values: %La, above %a", count, kept, bound);
    CHECK(factor == 1 || kept >= bound * (1 - 1e-12L), "%La, far below %a", kept, bound);
}

static void test_not_finite(const dither_kernels *k, size_t count) {
    const double broken[] = {(double)NAN, (double)INFINITY, -(double)INFINITY};
    for (size_t at = 0; at < count; at += 1 + count / 7) {
        static double wide[MOST];
        static float narrow[MOST];
        double norm = 1;
        memset(wide, 0, sizeof wide);
        memset(narrow, 0, sizeof narrow);
        wide[at] = broken[at % 3];
        narrow[at] = (float)broken[at % 3];
        CHECK(dither_norm(k, DITHER_F64, wide, count, &norm) == DITHER_NOT_FINITE && norm == 0, "%zu", at);
        CHECK(dither_norm(k, DITHER_F32, narrow, count, &norm) == DITHER_NOT_FINITE, "%zu", at);
    }
}

static void test_edges(const dither_kernels *k) {
    const double largest[] = {DBL_MAX, 0}, pair[] = {0x1p900, -0x1p900}, tiny[] = {0x1p-500, 0};
    const float wide[] = {FLT_MAX, FLT_MAX, -FLT_MAX}, small[] = {0x1p-149f};
    double norm;
    CHECK(dither_norm(k, DITHER_F64, largest, 2, &norm) == DITHER_OK && fabs(norm / DBL_MAX - 1) < 1e-15, "%a", norm);
    CHECK(dither_norm(k, DITHER_F64, pair, 2, &norm) == DITHER_OK && fabs(norm / (sqrt(2.0) * 0x1p900) - 1) < 1e-15, "%a", norm);
    CHECK(dither_norm(k, DITHER_F64, tiny, 2, &norm) == DITHER_OK && norm == 0x1p-500, "%a", norm);
    CHECK(dither_norm(k, DITHER_F32, wide, 3, &norm) == DITHER_OK && fabs(norm / (sqrt(3.0) * FLT_MAX) - 1) < 1e-15, "%a", norm);
    CHECK(dither_norm(k, DITHER_F32, small, 1, &norm) == DITHER_OK && norm == 0x1p-149, "%a", norm);
    const double both[] = {DBL_MAX, DBL_MAX};
    CHECK(dither_norm(k, DITHER_F64, both, 2, &norm) == DITHER_NOT_FINITE, "%a", norm);
    CHECK(dither_norm(k, (dither_float)3, both, 2, &norm) == DITHER_BAD_ARGUMENT, "a type of 3");
}

static void test_bad_bounds(void) {
    const double bad[] = {0.0, -1.0, (double)NAN, (double)INFINITY, 0x1p401, 0x1p-401};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(dither_clip_factor(1.0, 1, bad[i]) == 0, "a bound of %a", bad[i]);
    CHECK(dither_clip_factor((double)NAN, 1, 1.0) == 0 && dither_clip_factor(-1.0, 1, 1.0) == 0, "a norm");
    CHECK(dither_clip_factor(0.0, 9, 1.0) == 1 && dither_clip_factor(0.5, 9, 1.0) == 1, "below");
    CHECK(dither_clip_factor(1.0, 9, 1.0) < 1, "at the bound a norm's error counts");
}

/* The factor in the encoder: as multiplying beforehand. */
static void test_encoder(const dither_kernels *k, size_t count, double factor) {
    const dither_grid grid = {40, 1ll << 45, 12, 1 << 30, 32};
    static double values[MOST], products[MOST];
    static int32_t got[MOST], want[MOST];
    dither_key *a = agreed_key(), *b = agreed_key();
    uint64_t seed = count, clamped = 0, expected = 0;
    for (size_t i = 0; i < count; i++) {
        values[i] = number(&seed, i % 10 ? 0 : 7);
        volatile double product = values[i] * factor;
        products[i] = product;
    }
    CHECK(dither_encode_factor(k, a, 0x1p20, &grid, factor, DITHER_F64, values, got, count, &clamped) == DITHER_OK &&
              dither_encode(k, b, 0x1p20, &grid, DITHER_F64, products, want, count, &expected) == DITHER_OK,
          "no message");
    CHECK(memcmp(got, want, count * sizeof *got) == 0 && clamped == expected, "%s: by %a",
          dither_kernels_name(k), factor);
    dither_key_free(a);
    dither_key_free(b);
}

static void test_bad_factors(const dither_kernels *k) {
    const double bad[] = {-0x1p-1074, nextafter(1, 2), (double)NAN, (double)INFINITY};
    const dither_grid grid = {0, 9, 0, 9, 32};
    double value = 1;
    int32_t message = 77;
    dither_key *key = agreed_key();
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(dither_encode_factor(k, key, 1.0, &grid, bad[i], DITHER_F64, &value, &message, 1, NULL) ==
                  DITHER_BAD_ARGUMENT,
              "%a was taken", bad[i]);
    value = (double)INFINITY;
    CHECK(dither_encode_factor(k, key, 1.0, &grid, 0.0, DITHER_F64, &value, &message, 1, NULL) ==
              DITHER_NOT_FINITE,
          "0 times infinity");
    dither_key_free(key);
}

void test_norm(void) {
    const path_list paths = every_path();
    for (size_t p = 0; p < paths.count; p++) {
        const dither_kernels *k = paths.of[p];
        for (size_t count = 0; count < MOST; count += count < 70 ? 1 : 911) {
            test_size(k, DITHER_F32, count, 0);
            test_size(k, DITHER_F64, count, count % 2 ? 400 : -400);
            test_size(k, DITHER_F64, count, count % 2 ? 700 : 0);
            test_factor(k, count, 0.5);
            test_factor(k, count, 1e6);
            test_encoder(k, count, 1.0 / 3);
            test_encoder(k, count, 0x1.fffffffffffffp-1);
        }
        test_encoder(k, 100, 0);
        test_encoder(k, 100, 1);
        test_not_finite(k, 40);
        test_not_finite(k, MOST);
        test_edges(k);
        test_bad_factors(k);
    }
    test_bad_bounds();
}
