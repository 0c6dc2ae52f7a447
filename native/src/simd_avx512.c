/* 512-bit vectors: AVX-512 F, BW, DQ and VL. */
#include <immintrin.h>

#include "kernels/kernels.h"
#include "wipe.h"

#define BITS 512
#define NAME "avx512"
#define TABLE dither_simd_avx512
#define V_ROTL(x, n) ((u32v)_mm512_rol_epi32((__m512i)(x), (n)))
#define V_SQRT(x) ((f64v)_mm512_sqrt_pd((__m512d)(x)))
#define VF_SQRT(x) ((f32v)_mm512_sqrt_ps((__m512)(x)))
#define V_ROUND(x) \
    ((f64v)_mm512_roundscale_pd((__m512d)(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))
#define V_FLOOR(x) ((f64v)_mm512_floor_pd((__m512d)(x)))
#define V_MIN(x, y) ((f64v)_mm512_min_pd((__m512d)(x), (__m512d)(y)))
#define V_MAX(x, y) ((f64v)_mm512_max_pd((__m512d)(x), (__m512d)(y)))
/* The smaller magnitude, with the sign of x: one instruction in the place of two. */
#define V_CLAMP(x, limit) ((f64v)_mm512_range_pd((__m512d)(x), (__m512d)(limit), 2))
#define V_FROM_F32(x) ((f64v)_mm512_cvtps_pd((__m256)(x)))
#define V_FROM_I32(x) ((f64v)_mm512_cvtepi32_pd((__m256i)(x)))
#define V_TO_I32(x) ((i32h)_mm512_cvtpd_epi32((__m512d)(x)))
#define V_FLOOR_TO_I32(x) \
    ((i32h)_mm512_cvt_roundpd_epi32((__m512d)(x), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC))
/* (yes) and (no) are float64, chosen by integers. */
#define V_IF_EQUAL(x, y, yes, no)                                                                  \
    ((f64v)_mm512_mask_blend_pd(_mm512_cmpeq_epi64_mask((__m512i)(x), (__m512i)(y)),               \
                                (__m512d)(no), (__m512d)(yes)))
#define V_IF_SIGN(x, yes, no)                                                                      \
    ((f64v)_mm512_mask_blend_pd(_mm512_movepi64_mask((__m512i)(x)), (__m512d)(no), (__m512d)(yes)))
#define V_STREAM_F32(to, x) _mm256_stream_ps((to), (__m256)(x))
#define V_STREAM_F64(to, x) _mm512_stream_pd((to), (__m512d)(x))
#define V_STREAM(to, x) _mm512_stream_ps((to), (__m512)(x))
#define V_FENCE() _mm_sfence()
#include "kernels/vectors.h"
#include "kernels/all.h"
