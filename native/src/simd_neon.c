/* 128-bit vectors: NEON of 64-bit Arm. */
#include <arm_neon.h>

#include "kernels/kernels.h"
#include "wipe.h"

#define BITS 128
#define NAME "neon"
#define TABLE dither_simd_neon
#include "kernels/vectors.h"

#define V_ROTL(x, n)                                                                               \
    ((n) == 16 ? (u32v)vrev32q_u16((uint16x8_t)(x))                                                \
               : (u32v)vsriq_n_u32(vshlq_n_u32((uint32x4_t)(x), (n)), (uint32x4_t)(x), 32 - (n)))
#define V_SQRT(x) ((f64v)vsqrtq_f64((float64x2_t)(x)))
#define VF_SQRT(x) ((f32v)vsqrtq_f32((float32x4_t)(x)))
#define V_ROUND(x) ((f64v)vrndnq_f64((float64x2_t)(x)))
#define V_FLOOR(x) ((f64v)vrndmq_f64((float64x2_t)(x)))
#include "kernels/all.h"
