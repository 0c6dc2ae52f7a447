/* Vector types of BITS bits. Compiler vector extensions: one source for every width.
 *
 * An instruction-set file defines BITS and the operations that the language has no operator for
 * (V_ROTL, V_SQRT, V_ROUND, V_FLOOR, VF_SQRT), and those it does better than the compiler (below),
 * then includes the kernel files. */
#include <float.h>
#if FLT_EVAL_METHOD != 0
#error "the error bounds need float64 arithmetic without excess precision"
#endif
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "the error bounds and the refusal of NaN need IEEE 754 arithmetic: no -ffast-math"
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "words of 64 bits are read from pairs of 32, little-endian"
#endif

#ifndef DITHER_VECTORS_H
#define DITHER_VECTORS_H

#include <stdint.h>
#include <string.h>

#define BYTES (BITS / 8)
enum { LANES32 = BITS / 32, LANES64 = BITS / 64 };

typedef uint32_t u32v __attribute__((vector_size(BYTES)));
typedef int32_t i32v __attribute__((vector_size(BYTES)));
typedef uint64_t u64v __attribute__((vector_size(BYTES)));
typedef int64_t i64v __attribute__((vector_size(BYTES)));
typedef double f64v __attribute__((vector_size(BYTES)));
typedef float f32v __attribute__((vector_size(BYTES)));
/* As many lanes as f64v. */
typedef int32_t i32h __attribute__((vector_size(BYTES / 2)));
typedef float f32h __attribute__((vector_size(BYTES / 2)));
typedef int16_t i16q __attribute__((vector_size(BYTES / 4)));
/* The same, wrapping. */
typedef uint32_t u32h __attribute__((vector_size(BYTES / 2)));
typedef uint16_t u16q __attribute__((vector_size(BYTES / 4)));
/* As many lanes as f32v. */
typedef int16_t i16h __attribute__((vector_size(BYTES / 2)));
typedef uint16_t u16h __attribute__((vector_size(BYTES / 2)));

#define INLINE static inline __attribute__((always_inline))

/* Unaligned loads and stores. */
#define LOAD(type, from) __extension__({ type v_; memcpy(&v_, (from), sizeof v_); v_; })
#define STORE(to, value) do { __typeof__(value) v_ = (value); memcpy((to), &v_, sizeof v_); } while (0)

/* The rounded value of an expression: keeps the compiler from contracting it into a fused
 * multiply-add, which rounds once where other instruction sets round twice. */
#if defined(__x86_64__) && BITS == 512
#define V_KEEP(x) __asm__("" : "+v"(x))
#elif defined(__x86_64__)
#define V_KEEP(x) __asm__("" : "+x"(x))
#elif defined(__aarch64__)
#define V_KEEP(x) __asm__("" : "+w"(x))
#else
#define V_KEEP(x) __asm__("" : "+m"(x))
#endif

INLINE f64v v_set(double x) { return x - (f64v){0}; }
INLINE u64v v_setu(uint64_t x) { return x - (u64v){0}; }
INLINE f32v vf_set(float x) { return x - (f32v){0}; }

/* Lanes of `mask` are all ones or all zeros. */
INLINE f64v v_select(u64v mask, f64v yes, f64v no) {
    return (f64v)((mask & (u64v)yes) | (~mask & (u64v)no));
}
INLINE f32v vf_select(u32v mask, f32v yes, f32v no) {
    return (f32v)((mask & (u32v)yes) | (~mask & (u32v)no));
}

#ifndef V_MIN
#define V_MIN(x, y) v_select((u64v)((x) < (y)), (x), (y))
#define V_MAX(x, y) v_select((u64v)((x) > (y)), (x), (y))
#endif
#ifndef V_FROM_F32
#define V_FROM_F32(x) __builtin_convertvector((x), f64v)
#define V_FROM_I32(x) __builtin_convertvector((x), f64v)
#define V_TO_I32(x) __builtin_convertvector((x), i32h)
#endif
/* yes where the integers are equal; where the top bit is set. */
#ifndef V_IF_EQUAL
#define V_IF_EQUAL(x, y, yes, no) v_select((u64v)((x) == (y)), (yes), (no))
#define V_IF_SIGN(x, yes, no) v_select(0 - ((x) >> 63), (yes), (no))
#endif

INLINE uint64_t v_any(u64v mask) {
    uint64_t any = 0;
    for (int i = 0; i < LANES64; i++) any |= mask[i];
    return any;
}

/* Number of all-ones lanes. */
INLINE uint64_t v_sum(u64v counts) {
    uint64_t sum = 0;
    for (int i = 0; i < LANES64; i++) sum += counts[i];
    return sum;
}

#endif
