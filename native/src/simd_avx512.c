/* 512-bit vectors: AVX-512 F, BW, DQ and VL. */
#include <immintrin.h>

#include "kernels/kernels.h"
#include "wipe.h"

#define BITS 512
#define NAME "avx512"
#define TABLE dither_kernels_avx512
#include "kernels/vectors.h"

#define V_ROTL(x, n) ((u32v)_mm512_rol_epi32((__m512i)(x), (n)))
#define V_SQRT(x) ((f64v)_mm512_sqrt_pd((__m512d)(x)))
#define VF_SQRT(x) ((f32v)_mm512_sqrt_ps((__m512)(x)))
#define V_ROUND(x) \
    ((f64v)_mm512_roundscale_pd((__m512d)(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))
#define V_FLOOR(x) ((f64v)_mm512_floor_pd((__m512d)(x)))
#define V_MIN(x, y) ((f64v)_mm512_min_pd((__m512d)(x), (__m512d)(y)))
#define V_MAX(x, y) ((f64v)_mm512_max_pd((__m512d)(x), (__m512d)(y)))
#define V_FROM_F32(x) ((f64v)_mm512_cvtps_pd((__m256)(x)))
#define V_FROM_I32(x) ((f64v)_mm512_cvtepi32_pd((__m256i)(x)))
#define V_TO_I32(x) ((i32h)_mm512_cvtpd_epi32((__m512d)(x)))
#include "kernels/all.h"
