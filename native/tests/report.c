/* What Python compares: with mpmath, or with the same calls of the extension module. */
#include "check.h"

/* A line a pair and path: path, radius word, angle word, the two normals' bits; all in hex. */
void report_normals(FILE *to) {
    const path_list paths = every_path();
    word_pair *pairs;
    size_t count = adversarial_words(&pairs);
    uint64_t words[DRAWS], bits[DRAWS];
    double normals[DRAWS];
    for (size_t i = 0; i < count; i++) {
        if (pairs[i].m < FAST_FROM || pairs[i].m >= FAST_END) continue;
        pairs[i].m |= 1; /* as gaussian_f64 does */
        spread_pair(pairs[i], words);
        for (size_t p = 0; p < paths.count; p++) {
            paths.of[p]->simd->gaussian_f64(words, normals);
            memcpy(bits, normals, sizeof bits);
            for (int lane = 16; lane < DRAWS; lane++)
                CHECK(bits[lane] == bits[lane - 16], "%s: lanes differ",
                      dither_kernels_name(paths.of[p]));
            fprintf(to, "%s %016llx %016llx %016llx %016llx\n", dither_kernels_name(paths.of[p]),
                    (unsigned long long)pairs[i].m, (unsigned long long)pairs[i].w,
                    (unsigned long long)bits[i % 8], (unsigned long long)bits[8 + i % 8]);
        }
    }
    free(pairs);
}

enum { COUNT = 4099 };

static void write_all(FILE *to, const void *from, size_t size) {
    CHECK(fwrite(from, 1, size, to) == size, "cannot write");
}

static void report_lattices(FILE *to, const dither_kernels *k, dither_key *key) {
    static int32_t narrow[COUNT];
    static int64_t wide[COUNT];
    const double small[] = {0.01, 0.3, 1.0, 4.0, 1000.5, 0x1p20, 0x1p22, 0x1p26},
                 large[] = {1.0, 0x1p32, 0x1p40};
    for (size_t i = 0; i < sizeof small / sizeof *small; i++) {
        CHECK(dither_lattice_i32(k, key, small[i], narrow, COUNT, NULL) == DITHER_OK, "no draws");
        write_all(to, narrow, sizeof narrow);
    }
    for (size_t i = 0; i < sizeof large / sizeof *large; i++) {
        CHECK(dither_lattice_i64(k, key, large[i], wide, COUNT, NULL) == DITHER_OK, "no draws");
        write_all(to, wide, sizeof wide);
    }
}

static void report_codec(FILE *to, const dither_kernels *k, dither_key *key) {
    const dither_grid grids[] = {{4, 3000, 3, 900, 16}, {12, 1 << 30, 5, 1 << 20, 32}};
    static int32_t noise[COUNT], wide[COUNT];
    static int16_t narrow[COUNT];
    static double f64[COUNT];
    static float f32[COUNT];
    for (int i = 0; i < COUNT; i++) f32[i] = (float)(f64[i] = (i - 2000) * 0.3125);
    for (int g = 0; g < 2; g++) {
        void *message = g ? (void *)wide : (void *)narrow;
        size_t size = g ? sizeof wide : sizeof narrow;
        CHECK(dither_encode(k, key, 0x1p20, &grids[g], DITHER_F32, f32, message, COUNT, NULL) ==
                  DITHER_OK,
              "f32");
        write_all(to, message, size);
        CHECK(dither_encode(k, key, 40.5, &grids[g], DITHER_F64, f64, message, COUNT, NULL) ==
                  DITHER_OK,
              "f64");
        write_all(to, message, size);
        CHECK(dither_lattice_i32(k, key, 77.0, noise, COUNT, NULL) == DITHER_OK, "noise");
        CHECK(dither_encode_ready(k, noise, &grids[g], DITHER_F32, f32, message, COUNT, NULL) ==
                  DITHER_OK,
              "ready");
        write_all(to, message, size);
        CHECK(dither_decode_scaled(k, &grids[g], 1.0 / 3, message, DITHER_F32, f32, COUNT) ==
                  DITHER_OK,
              "scaled");
        write_all(to, f32, sizeof f32);
        CHECK(dither_decode(k, &grids[g], message, DITHER_F32, f32, COUNT) == DITHER_OK, "decode");
        write_all(to, f32, sizeof f32);
    }
}

/* For each path its name in 16 bytes, then its outputs one after another, all from one key. */
void report_draws(FILE *to) {
    const path_list paths = every_path();
    static uint32_t words[COUNT];
    for (size_t p = 0; p < paths.count; p++) {
        const dither_kernels *k = paths.of[p];
        char name[16] = {0};
        dither_key *key = agreed_key();
        strncpy(name, dither_kernels_name(k), sizeof name - 1);
        write_all(to, name, sizeof name);
        CHECK(dither_stream(k, key, words, COUNT) == DITHER_OK, "no words");
        write_all(to, words, sizeof words);
        CHECK(dither_stream_at(k, key, 9, (1u << 28) - 2, words, COUNT) == DITHER_OK, "no words");
        write_all(to, words, sizeof words);
        for (unsigned width = 2; width <= 8; width *= 2) {
            size_t count = sizeof words / width;
            CHECK(dither_mask(k, key, words, count, width, width == 4) == DITHER_OK, "no mask");
            write_all(to, words, sizeof words);
        }
        dither_key *aes = agreed_key_for(DITHER_AES256);
        CHECK(dither_stream(k, aes, words, COUNT) == DITHER_OK, "no words");
        write_all(to, words, sizeof words);
        dither_key_free(aes);
        report_lattices(to, k, key);
        report_codec(to, k, key);
        dither_key_free(key);
    }
}
