/* What one instruction set provides. Internal to the core. */
#ifndef DITHER_KERNELS_H
#define DITHER_KERNELS_H

#include "aes.h"
#include "dither.h"

/* A superblock is 16 ChaCha blocks: 128 lattice draws, or 256 float32 normals. */
enum { SUPERBLOCK = DITHER_SUPERBLOCK_WORDS, DRAWS = SUPERBLOCK / 2 };

/* A grid as the codec's arithmetic wants it: everything in float64, where all of it is exact. */
typedef struct {
    double scale;      /* factor / fine step */
    double clamp;      /* fine steps */
    double wire_scale; /* 2^-wire_shift */
    double wire_limit; /* wire steps */
} codec_numbers;

typedef struct {
    uint64_t saturated; /* clamped before noise */
    uint64_t broken;    /* not zero if a value was not finite */
} codec_counts;

/* Encode; input and message need no alignment. */
typedef void codec_kernel(const codec_numbers *grid, const void *values, const double *noise,
                          void *message, size_t count, codec_counts *counts);
/* `wipe`: overwrite the noise with zeros behind the pass. */
typedef void codec_ready_kernel(const codec_numbers *grid, const void *values, int32_t *noise,
                                int wipe, void *message, size_t count, codec_counts *counts);

/* Element types of sums. Unsigned, so that they wrap. */
enum sum_type { SUM_U8, SUM_U16, SUM_U32, SUM_U64, SUM_F32, SUM_F64, SUM_TYPES };

/* out[i] = from[0][i] + from[1][i] + …, from the left, by element; `out` may be one of `from`. */
typedef void sum_kernel(void *out, const void *const *from, unsigned parts, size_t count);

typedef struct {
    const char *name;
    void (*chacha)(const uint32_t state[16], unsigned rounds, uint32_t *out, size_t superblocks);
    /* 128 words of 64 bits → 128 rounded draws as float64; a draw that float64 cannot decide is
     * NaN. Returns whether there is one. */
    int (*lattice)(const uint64_t words[DRAWS], double sigma, double out[DRAWS]);
    void (*gaussian_f64)(const uint64_t words[DRAWS], double out[DRAWS]);
    void (*gaussian_f32)(const uint32_t words[SUPERBLOCK], float out[SUPERBLOCK]);
    /* Rounded draws as int32; they must fit. */
    void (*narrow)(const double *draws, int32_t *out, size_t count);
    /* to[i] = from[i] ± stream[i]; `to` may be `from`. */
    void (*mask)(void *to, const void *from, const void *stream, size_t count, unsigned width,
                 int subtract);
    codec_kernel *encode[2][2];             /* [float64?][32 bits?] */
    codec_ready_kernel *encode_ready[2][2]; /* [float64?][32 bits?] */
    void (*decode)(const void *message, int wide, double step, int to_double, void *values,
                   size_t count);
    /* `decode` of the sum of messages, mod 2^16 or 2^32. `past_cache`: store past the caches, if
     * `values` has an element's alignment; `fence` then comes before others may read them. */
    void (*decode_sum)(const void *const *messages, unsigned parts, int wide, double step,
                       int to_double, int past_cache, void *values, size_t count);
    void (*fence)(void);
    sum_kernel *sum[SUM_TYPES];
    /* Sum of squares in a fixed order (kernels/norm.h). */
    double (*squares)(const void *values, int from_double, size_t count);
} simd_kernels;

/* One choice of vector code and of AES code. */
struct dither_kernels {
    const simd_kernels *simd;
    aes_stream *aes;
    const char *aes_name;
    dither_cipher preferred;
};

extern const simd_kernels dither_simd_portable;
#ifdef DITHER_HAVE_AVX2
extern const simd_kernels dither_simd_avx2;
#endif
#ifdef DITHER_HAVE_AVX512
extern const simd_kernels dither_simd_avx512;
#endif
#ifdef DITHER_HAVE_NEON
extern const simd_kernels dither_simd_neon;
#endif

#endif
