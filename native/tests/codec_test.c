/* Encoding and decoding against plain C, at every size and address, and refusals. */
#include "check.h"

#include <float.h>
#include <limits.h>

enum { MOST = 300, FILL = 0x5a };

static const dither_grid GRIDS[] = {
    {3, 1000, 0, 32767, 16},
    {10, 1 << 20, 7, 300, 16},
    {0, 0, 48, 0, 16},
    {20, 1ll << 26, 0, 2147483647, 32},
    {-500, 1ll << 50, 48, 40, 32},
    {500, 1ll << 50, 20, 2147483647, 32},
    {33, 1ll << 40, 12, 1 << 30, 32},
};
enum { GRID_COUNT = sizeof GRIDS / sizeof *GRIDS };

static size_t width(const dither_grid *grid) { return (size_t)grid->wire_bits / 8; }

/* Values around the grid's scale, some beyond its clamp, some beside a tie. */
static void make_values(const dither_grid *grid, dither_float type, unsigned char *to,
                        size_t count) {
    uint64_t seed = count;
    for (size_t i = 0; i < count; i++) {
        double unit = (double)(int64_t)next_random(&seed) * 0x1p-63;
        double reach = i % 7 == 0 ? 0x1p52 : i % 5 == 0 ? 8 : 1.5 * ((double)grid->clamp + 1);
        double fine = i % 3 ? unit * reach : nearbyint(unit * 100) + 0.5;
        double value = ldexp(fine, -grid->scale_exponent);
        float narrow = (float)(fabs(value) < FLT_MAX ? value : copysign(FLT_MAX, value));
        double wide = value;
        memcpy(to + i * type, type == DITHER_F32 ? (void *)&narrow : (void *)&wide, type);
    }
}

static double value_at(const unsigned char *from, dither_float type, size_t i) {
    float narrow;
    double wide;
    if (type == DITHER_F32) return memcpy(&narrow, from + i * type, type), narrow;
    return memcpy(&wide, from + i * type, type), wide;
}

static int64_t message_at(const unsigned char *from, const dither_grid *grid, size_t i) {
    int16_t narrow;
    int32_t wide;
    if (grid->wire_bits == 16) return memcpy(&narrow, from + 2 * i, 2), narrow;
    return memcpy(&wide, from + 4 * i, 4), wide;
}

static int64_t clamped(int64_t x, int64_t limit) {
    return x > limit ? limit : x < -limit ? -limit : x;
}

/* The codec in integers. */
static int64_t expected(double value, int64_t noise, const dither_grid *grid, uint64_t *saturated) {
    double scaled = ldexp(value, grid->scale_exponent), bound = 0x1p53;
    int64_t fine = (int64_t)nearbyint(scaled > bound ? bound : scaled < -bound ? -bound : scaled);
    int64_t kept = clamped(fine, grid->clamp);
    *saturated += kept != fine;
    int64_t noisy = kept + noise;
    /* floor(noisy / 2^shift + ½); >> of a negative number is arithmetic in gcc and clang. */
    if (grid->wire_shift) noisy = (noisy + (1ll << (grid->wire_shift - 1))) >> grid->wire_shift;
    return clamped(noisy, grid->wire_limit);
}

static void check_message(const dither_kernels *k, const dither_grid *grid, dither_float type,
                          const buffer *values, const buffer *message, const int64_t *noise,
                          size_t count, uint64_t saturated) {
    uint64_t found = 0;
    for (size_t i = 0; i < count; i++) {
        int64_t want = expected(value_at(values->at, type, i), noise[i], grid, &found);
        int64_t got = message_at(message->at, grid, i);
        CHECK(got == want, "%s, %d bytes to %d bits, shift %d: %a of %zu/%zu gave %lld, not %lld",
              dither_kernels_name(k), type, grid->wire_bits, grid->wire_shift,
              value_at(values->at, type, i), i, count, (long long)got, (long long)want);
    }
    CHECK(found == saturated, "%s: %llu saturated, not %llu", dither_kernels_name(k),
          (unsigned long long)saturated, (unsigned long long)found);
}

/* Fresh noise: the same as `dither_lattice_i64` of the same key. */
static void test_encode(const dither_kernels *k, const dither_grid *grid, dither_float type,
                        size_t count, double sigma) {
    buffer values = buffer_new(count * type, count % 9),
           message = buffer_new(count * width(grid), count % 5);
    dither_key *key = agreed_key(), *again = agreed_key();
    int64_t noise[MOST];
    uint64_t saturated = 0;
    make_values(grid, type, values.at, count);
    CHECK(dither_lattice_i64(k, again, sigma, noise, count, NULL) == DITHER_OK, "no noise");
    CHECK(dither_encode(k, key, sigma, grid, type, values.at, message.at, count, &saturated) ==
              DITHER_OK,
          "no message");
    CHECK(dither_key_position(key) == dither_key_position(again), "other numbers were used");
    check_message(k, grid, type, &values, &message, noise, count, saturated);
    buffer_free(&values);
    buffer_free(&message);
    dither_key_free(key);
    dither_key_free(again);
}

static void test_ready(const dither_kernels *k, const dither_grid *grid, dither_float type,
                       size_t count) {
    buffer values = buffer_new(count * type, count % 7),
           message = buffer_new(count * width(grid), count % 3);
    buffer ready = buffer_new(4 * count, 4 * (count % 3));
    int64_t noise[MOST];
    uint64_t saturated = 0, seed = count;
    make_values(grid, type, values.at, count);
    for (size_t i = 0; i < count; i++) {
        int32_t draw = i % 11 == 0   ? INT32_MIN
                       : i % 13 == 0 ? INT32_MAX
                                     : (int32_t)(next_random(&seed) >> 40);
        noise[i] = draw;
        memcpy(ready.at + 4 * i, &draw, 4);
    }
    CHECK(dither_encode_ready(k, (int32_t *)(void *)ready.at, grid, type, values.at, message.at,
                              count, &saturated) == DITHER_OK,
          "no message");
    check_message(k, grid, type, &values, &message, noise, count, saturated);
    for (size_t i = 0; i < ready.size; i++) CHECK(ready.at[i] == 0, "noise is left at byte %zu", i);
    buffer_free(&values);
    buffer_free(&message);
    buffer_free(&ready);
}

static void test_decode(const dither_kernels *k, const dither_grid *grid, dither_float type,
                        size_t count) {
    buffer message = buffer_new(count * width(grid), count % 5),
           values = buffer_new(count * type, count % 9);
    uint64_t seed = count;
    for (size_t i = 0; i < message.size; i++) message.at[i] = (unsigned char)next_random(&seed);
    CHECK(dither_decode(k, grid, message.at, type, values.at, count) == DITHER_OK, "no values");
    for (size_t i = 0; i < count; i++) {
        double want =
            ldexp((double)message_at(message.at, grid, i), grid->wire_shift - grid->scale_exponent);
        if (type == DITHER_F32) want = (float)want;
        CHECK(value_at(values.at, type, i) == want, "%s: value %zu of %zu is %a, not %a",
              dither_kernels_name(k), i, count, value_at(values.at, type, i), want);
    }
    buffer_free(&message);
    buffer_free(&values);
}

/* By a factor: the product in float64, then in float, and nothing else. */
static void test_scaled(const dither_kernels *k, const dither_grid *grid, dither_float type,
                        size_t count, double factor) {
    buffer message = buffer_new(count * width(grid), count % 3),
           values = buffer_new(count * type, count % 7);
    uint64_t seed = count;
    for (size_t i = 0; i < message.size; i++) message.at[i] = (unsigned char)next_random(&seed);
    CHECK(dither_decode_scaled(k, grid, factor, message.at, type, values.at, count) == DITHER_OK,
          "no values");
    for (size_t i = 0; i < count; i++) {
        double want = factor * ldexp((double)message_at(message.at, grid, i),
                                     grid->wire_shift - grid->scale_exponent);
        if (type == DITHER_F32) want = (float)want;
        CHECK(value_at(values.at, type, i) == want, "%s: value %zu of %zu by %a is %a, not %a",
              dither_kernels_name(k), i, count, factor, value_at(values.at, type, i), want);
    }
    buffer_free(&message);
    buffer_free(&values);
}

static void all_bytes(const buffer *b, int value, const char *what) {
    for (size_t i = 0; i < b->size; i++)
        CHECK(b->at[i] == value, "%s: byte %zu is %d", what, i, b->at[i]);
}

/* One value in any place that is not finite: nothing of the message leaves, the noise is used. */
static void test_not_finite(const dither_kernels *k, const dither_grid *grid, dither_float type,
                            size_t count) {
    const double broken[] = {(double)NAN, (double)INFINITY, -(double)INFINITY};
    for (size_t at = 0; at < count; at += 1 + count / 5) {
        buffer values = buffer_new(count * type, 0), message = buffer_new(count * width(grid), 1);
        buffer ready = buffer_new(4 * count, 4);
        double wide = broken[at % 3];
        float narrow = (float)wide;
        dither_key *key = agreed_key();
        uint64_t saturated = 17;
        make_values(grid, type, values.at, count);
        memcpy(values.at + at * type, type == DITHER_F32 ? (void *)&narrow : (void *)&wide, type);
        memset(message.at, FILL, message.size);
        memset(ready.at, FILL, ready.size);
        CHECK(dither_encode(k, key, 9.0, grid, type, values.at, message.at, count, &saturated) ==
                  DITHER_NOT_FINITE,
              "%s let value %zu of %zu pass", dither_kernels_name(k), at, count);
        all_bytes(&message, 0, "a message with a hole");
        memset(message.at, FILL, message.size);
        CHECK(dither_encode_ready(k, (int32_t *)(void *)ready.at, grid, type, values.at, message.at,
                                  count, &saturated) == DITHER_NOT_FINITE,
              "%s let it pass", dither_kernels_name(k));
        all_bytes(&message, 0, "a message with a hole");
        all_bytes(&ready, 0, "the noise of a message with a hole");
        CHECK(saturated == 17, "a refused message was counted");
        buffer_free(&values);
        buffer_free(&message);
        buffer_free(&ready);
        dither_key_free(key);
    }
}

/* Factors that leave float64's normal numbers, by themselves or with the wire step. */
static void test_bad_factors(const dither_kernels *k) {
    const struct {
        double factor;
        int scale_exponent;
    } bad[] = {{0.0, 0},         {-0.0, 0},           {(double)NAN, 0}, {(double)INFINITY, 0},
               {0x1p-1030, 0},   {0x1p-1030, -500},   {0x1p600, -500},  {0x1p-600, 500},
               {-0x1p600, -500}, {(double)-INFINITY, 0}};
    int32_t message[MOST] = {0};
    buffer values = buffer_new(8 * MOST, 0);
    memset(values.at, FILL, values.size);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const dither_grid grid = {bad[i].scale_exponent, 9, 0, 9, 32};
        CHECK(dither_decode_scaled(k, &grid, bad[i].factor, message, DITHER_F64, values.at, MOST) ==
                  DITHER_BAD_ARGUMENT,
              "%a was taken", bad[i].factor);
    }
    all_bytes(&values, FILL, "what a refused factor gave");
    buffer_free(&values);
}

static const dither_grid BAD_GRIDS[] = {
    {501, 1, 0, 1, 16},       {-501, 1, 0, 1, 16},
    {0, -1, 0, 1, 16},        {0, (1ll << 50) + 1, 0, 1, 16},
    {0, INT64_MIN, 0, 1, 16}, {0, 1, -1, 1, 16},
    {0, 1, 49, 1, 16},        {0, 1, 0, 32768, 16},
    {0, 1, 0, -1, 16},        {0, 1, 0, 1ll << 31, 32},
    {0, 1, 0, INT64_MIN, 32}, {0, 1, 0, 1, 8},
    {0, 1, 0, 1, 0},          {0, 1, 0, 1, 64},
    {INT_MIN, 1, 0, 1, 16},   {INT_MAX, 1, 0, 1, 16},
    {0, INT64_MAX, 0, 1, 32}, {0, 1, INT_MIN, 1, 16},
    {0, 1, 0, INT64_MAX, 32},
};

/* A refusal before the work touches nothing and uses no numbers. */
static void test_bad_grids(const dither_kernels *k) {
    double values[MOST] = {0};
    buffer message = buffer_new(8 * MOST, 0), ready = buffer_new(4 * MOST, 0);
    dither_key *key = agreed_key();
    memset(message.at, FILL, message.size);
    memset(ready.at, FILL, ready.size);
    for (size_t i = 0; i < sizeof BAD_GRIDS / sizeof *BAD_GRIDS; i++) {
        const dither_grid *grid = &BAD_GRIDS[i];
        CHECK(dither_encode(k, key, 1.0, grid, DITHER_F64, values, message.at, MOST, NULL) ==
                  DITHER_BAD_GRID,
              "grid %zu was taken", i);
        CHECK(dither_encode_ready(k, (int32_t *)(void *)ready.at, grid, DITHER_F64, values,
                                  message.at, MOST, NULL) == DITHER_BAD_GRID,
              "grid %zu was taken", i);
        CHECK(dither_decode(k, grid, values, DITHER_F32, message.at, MOST) == DITHER_BAD_GRID,
              "grid %zu was taken", i);
    }
    all_bytes(&message, FILL, "a refused message");
    all_bytes(&ready, FILL, "the noise of a refused message");
    CHECK(dither_key_position(key) == 0, "numbers were used");
    buffer_free(&message);
    buffer_free(&ready);
    dither_key_free(key);
}

static void test_bad_sigmas(const dither_kernels *k) {
    const double bad[] = {
        0.0, -0.0, -1.0, -5e-324, (double)NAN, (double)INFINITY, nextafter(0x1p40, 0x1p41)};
    double values[MOST] = {0};
    buffer out = buffer_new(8 * MOST, 0);
    dither_key *key = agreed_key();
    memset(out.at, FILL, out.size);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK(dither_lattice_i32(k, key, bad[i], (int32_t *)(void *)out.at, MOST, NULL) ==
                  DITHER_BAD_SIGMA,
              "%a was taken", bad[i]);
        CHECK(dither_lattice_i64(k, key, bad[i], (int64_t *)(void *)out.at, MOST, NULL) ==
                  DITHER_BAD_SIGMA,
              "%a was taken", bad[i]);
        CHECK(dither_encode(k, key, bad[i], &GRIDS[0], DITHER_F64, values, out.at, MOST, NULL) ==
                  DITHER_BAD_SIGMA,
              "%a was taken", bad[i]);
    }
    CHECK(dither_lattice_i32(k, key, nextafter(DITHER_MAX_SIGMA_I32, 1e9),
                             (int32_t *)(void *)out.at, MOST, NULL) == DITHER_BAD_SIGMA,
          "2^26 and more");
    all_bytes(&out, FILL, "a refused fill");
    CHECK(dither_key_position(key) == 0, "numbers were used");
    buffer_free(&out);
    dither_key_free(key);
}

static void test_grid(const dither_kernels *k, const dither_grid *grid, size_t count) {
    const dither_float types[] = {DITHER_F32, DITHER_F64};
    for (int t = 0; t < 2; t++) {
        test_encode(k, grid, types[t], count, count % 2 ? 3.25 : 0x1p33);
        test_ready(k, grid, types[t], count);
        test_decode(k, grid, types[t], count);
        test_scaled(k, grid, types[t], count, count % 2 ? 1.0 / 3 : -0x1.23456789abcdfp-40);
        test_not_finite(k, grid, types[t], count);
    }
}

void test_codec(void) {
    const path_list paths = every_path();
    for (size_t p = 0; p < paths.count; p++) {
        for (size_t count = 0; count < MOST; count += count < 40 ? 1 : 19)
            test_grid(paths.of[p], &GRIDS[count % GRID_COUNT], count);
        for (size_t g = 0; g < GRID_COUNT; g++) test_grid(paths.of[p], &GRIDS[g], MOST - 3);
        test_bad_factors(paths.of[p]);
        test_bad_grids(paths.of[p]);
        test_bad_sigmas(paths.of[p]);
    }
}
