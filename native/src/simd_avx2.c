/* 256-bit vectors: AVX2 and FMA. */
#include <immintrin.h>

#include "kernels/kernels.h"
#include "wipe.h"

#define BITS 256
#define NAME "avx2"
#define TABLE dither_simd_avx2
#define V_ROTL(x, n) ((n) % 8 ? (x) << (n) | (x) >> (32 - (n)) : rotate_bytes((x), (n)))
#define V_SQRT(x) ((f64v)_mm256_sqrt_pd((__m256d)(x)))
#define VF_SQRT(x) ((f32v)_mm256_sqrt_ps((__m256)(x)))
#define V_ROUND(x) ((f64v)_mm256_round_pd((__m256d)(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))
#define V_FLOOR(x) ((f64v)_mm256_floor_pd((__m256d)(x)))
#define V_MIN(x, y) ((f64v)_mm256_min_pd((__m256d)(x), (__m256d)(y)))
#define V_MAX(x, y) ((f64v)_mm256_max_pd((__m256d)(x), (__m256d)(y)))
#define V_FROM_F32(x) ((f64v)_mm256_cvtps_pd((__m128)(x)))
#define V_FROM_I32(x) ((f64v)_mm256_cvtepi32_pd((__m128i)(x)))
#define V_TO_I32(x) ((i32h)_mm256_cvtpd_epi32((__m256d)(x)))
#define V_IF_EQUAL(x, y, yes, no) V_IF_SIGN(_mm256_cmpeq_epi64((__m256i)(x), (__m256i)(y)), (yes), (no))
#define V_IF_SIGN(x, yes, no)                                                                      \
    ((f64v)_mm256_blendv_pd((__m256d)(no), (__m256d)(yes), (__m256d)(x)))
#define V_STREAM_F32(to, x) _mm_stream_ps((to), (__m128)(x))
#define V_STREAM_F64(to, x) _mm256_stream_pd((to), (__m256d)(x))
#define V_STREAM(to, x) _mm256_stream_ps((to), (__m256)(x))
#define V_FENCE() _mm_sfence()
#include "kernels/vectors.h"
/* Rotations by whole bytes are one shuffle. */
INLINE u32v rotate_bytes(u32v x, int bits) {
    const __m256i by16 = _mm256_setr_epi8(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13,
                                          2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    const __m256i by8 = _mm256_setr_epi8(3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14,
                                         3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14);
    return (u32v)_mm256_shuffle_epi8((__m256i)x, bits == 16 ? by16 : by8);
}
#include "kernels/all.h"
