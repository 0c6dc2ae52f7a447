/* Every instruction set writes what portable C writes, at every size, inside its array. */
#include "check.h"

enum { SIZES = 24 };
static const size_t COUNTS[SIZES] = {0,   1,   2,    3,    7,    8,    9,    15,
                                     16,  17,  31,   33,   127,  128,  129,  255,
                                     256, 257, 1023, 1025, 2047, 2049, 2053, 4099};

typedef dither_status filler(const dither_kernels *k, dither_key *key, void *out, size_t count);

static dither_status words(const dither_kernels *k, dither_key *key, void *out, size_t count) {
    return dither_stream(k, key, out, count);
}
static dither_status words_at(const dither_kernels *k, dither_key *key, void *out, size_t count) {
    /* The block counter crosses 2^32 in the first superblock's end. */
    return dither_stream_at(k, key, 5, (1u << 28) - 1, out, count);
}
static dither_status mask_16(const dither_kernels *k, dither_key *key, void *out, size_t count) {
    return dither_mask(k, key, out, count, 2, 0);
}
static dither_status mask_32(const dither_kernels *k, dither_key *key, void *out, size_t count) {
    return dither_mask(k, key, out, count, 4, 1);
}
static dither_status mask_64(const dither_kernels *k, dither_key *key, void *out, size_t count) {
    return dither_mask(k, key, out, count, 8, 0);
}
static dither_status narrow(const dither_kernels *k, dither_key *key, void *out, size_t count) {
    return dither_lattice_i32(k, key, 0x1p25, out, count, NULL);
}
static dither_status wide(const dither_kernels *k, dither_key *key, void *out, size_t count) {
    return dither_lattice_i64(k, key, 0x1p38, out, count, NULL);
}
static dither_status f32(const dither_kernels *k, dither_key *key, void *out, size_t count) {
    return dither_gaussian_f32(k, key, out, count);
}
static dither_status f64(const dither_kernels *k, dither_key *key, void *out, size_t count) {
    return dither_gaussian_f64(k, key, out, count);
}

static const struct {
    const char *name;
    filler *fill;
    size_t width;
    int same; /* floating-point normals may differ in the last bits */
} FILLS[] = {
    {"stream", words, 4, 1},     {"stream_at", words_at, 4, 1}, {"mask 16", mask_16, 2, 1},
    {"mask 32", mask_32, 4, 1},  {"mask 64", mask_64, 8, 1},    {"lattice i32", narrow, 4, 1},
    {"lattice i64", wide, 8, 1}, {"gaussian f32", f32, 4, 0},   {"gaussian f64", f64, 8, 0}};

static void test_fill(size_t which, const path_list *paths, size_t count, size_t offset) {
    const size_t size = count * FILLS[which].width;
    buffer first = buffer_new(size, 0);
    memset(first.at, 1, size);
    for (size_t p = 0; p < paths->count; p++) {
        buffer out = buffer_new(size, offset);
        dither_key *key = agreed_key();
        memset(out.at, 1, size);
        CHECK(FILLS[which].fill(paths->of[p], key, out.at, count) == DITHER_OK, "%s failed",
              FILLS[which].name);
        if (p == 0) memcpy(first.at, out.at, size);
        CHECK(!FILLS[which].same || memcmp(first.at, out.at, size) == 0, "%s: %s of %zu differs",
              dither_kernels_name(paths->of[p]), FILLS[which].name, count);
        buffer_free(&out);
        dither_key_free(key);
    }
    buffer_free(&first);
}

/* Draws beyond int32 saturate, whatever their place in the vector. */
static void test_narrow(const dither_kernels *k) {
    const double limits[] = {2147483646.0,  2147483647.0,  2147483648.0, -2147483647.0,
                             -2147483648.0, -2147483649.0, 0x1p45,       -0x1p45,
                             0.0,           -0.0,          1.0,          -1.0};
    double draws[64];
    for (size_t count = 0; count <= 64; count++) {
        buffer out = buffer_new(4 * count, count % 3);
        for (size_t i = 0; i < count; i++) draws[i] = limits[(i + count) % 12];
        k->simd->narrow(draws, (int32_t *)(void *)out.at, count);
        for (size_t i = 0; i < count; i++) {
            int32_t got;
            double want = fmax(fmin(draws[i], 2147483647.0), -2147483647.0);
            memcpy(&got, out.at + 4 * i, 4);
            CHECK((double)got == want, "%s: %a became %d", dither_kernels_name(k), draws[i], got);
        }
        buffer_free(&out);
    }
}

/* Adding and subtracting one stream leaves the values as they were. */
static void test_masks(const dither_kernels *k, unsigned width) {
    unsigned char values[8 * 300], kept[8 * 300];
    dither_key *adds = agreed_key(), *takes = agreed_key();
    uint64_t seed = width;
    for (size_t i = 0; i < sizeof values; i++) values[i] = (unsigned char)next_random(&seed);
    memcpy(kept, values, sizeof values);
    CHECK(dither_mask(k, adds, values, 300, width, 0) == DITHER_OK, "no mask");
    CHECK(memcmp(values, kept, 300 * width) != 0, "nothing was masked");
    CHECK(memcmp(values + 300 * width, kept + 300 * width, sizeof values - 300 * width) == 0,
          "too much was masked");
    CHECK(dither_mask(k, takes, values, 300, width, 1) == DITHER_OK, "no mask");
    CHECK(memcmp(values, kept, sizeof values) == 0, "%s: the mask of %u bytes stayed",
          dither_kernels_name(k), width);
    dither_key_free(adds);
    dither_key_free(takes);
}

void test_paths(void) {
    const path_list paths = every_path();
    for (size_t which = 0; which < sizeof FILLS / sizeof *FILLS; which++)
        for (size_t i = 0; i < SIZES; i++) test_fill(which, &paths, COUNTS[i], i % 9);
    for (size_t p = 0; p < paths.count; p++) {
        test_narrow(paths.of[p]);
        for (unsigned width = 2; width <= 8; width *= 2) test_masks(paths.of[p], width);
    }
}
