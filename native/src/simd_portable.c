/* 128-bit vectors in the compiler's own words: SSE2 on x86-64, scalar where nothing else is. */
#include <math.h>

#include "kernels/kernels.h"
#include "wipe.h"

#define BITS 128
#define NAME "portable"
#define TABLE dither_simd_portable
#include "kernels/vectors.h"

#define V_ROTL(x, n) ((x) << (n) | (x) >> (32 - (n)))

INLINE f64v v_sqrt(f64v x) {
    for (int i = 0; i < LANES64; i++) x[i] = sqrt(x[i]);
    return x;
}
INLINE f32v vf_sqrt(f32v x) {
    for (int i = 0; i < LANES32; i++) x[i] = sqrtf(x[i]);
    return x;
}
/* Adding 1.5·2^52 leaves no room for a fraction. Above 2^51 the lattice has no use for one. */
INLINE f64v v_round(f64v x) {
    f64v nearest = (x + 0x1.8p52) - 0x1.8p52;
    f64v size = (f64v)((u64v)x & 0x7fffffffffffffffu);
    return v_select((u64v)(size < v_set(0x1p51)), nearest, x);
}
INLINE f64v v_floor(f64v x) {
    f64v nearest = v_round(x);
    return nearest - (f64v)((u64v)(nearest > x) & (u64v)v_set(1.0));
}

#define V_SQRT v_sqrt
#define VF_SQRT vf_sqrt
#define V_ROUND v_round
#define V_FLOOR v_floor
#include "kernels/all.h"
