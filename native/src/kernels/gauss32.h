/* Box-Muller in float32, for speed comparisons and uses that release nothing. */

INLINE f32v vf_poly(f32v x, const float *coefficients, int count) {
    f32v sum = vf_set(coefficients[count - 1]);
    for (int i = count - 2; i >= 0; i--) sum = sum * x + coefficients[i];
    return sum;
}

/* As in gauss64.h, to 2^-28, 2^-32 and 2^-28. */
static const float LOGF_POLY[] = {0x1.55555cp-1f, 0x1.997c2p-2f, 0x1.2ee8d2p-2f};
static const float COSF_POLY[] = {-0x1.3bd3ccp-2f, 0x1.03c1eap-6f, -0x1.55cb98p-12f, 0x1.db6492p-19f};
static const float SINF_POLY[] = {0x1.921fb6p-1f, -0x1.4abbbap-4f, 0x1.465ec4p-9f, -0x1.2d9b4p-15f};

/* sqrt(-2 ln((m + ½)/2^32)). */
INLINE f32v radius_f32(u32v m) {
    /* 2^-32 (m + ½) from the two halves of m; the sum is rounded once. */
    f32v high = __builtin_convertvector((i32v)(m >> 16), f32v) * 0x1p-16f;
    f32v low = __builtin_convertvector((i32v)(m & 0xffffu), f32v) * 0x1p-32f + 0x1p-33f;
    f32v value = high + low;
    u32v bits = (u32v)value - 0x3f3504f3u;
    f32v f = (f32v)((bits & 0x007fffffu) + 0x3f3504f3u);
    f32v e = __builtin_convertvector((i32v)bits >> 23, f32v);
    f32v g = vf_select((u32v)(e == 0.0f), (high - 1.0f) + low, f - 1.0f);
    f32v s = g / (g + 2.0f);
    f32v z = s * s;
    f32v log = e * 0x1.62e43p-1f + s * (z * vf_poly(z, LOGF_POLY, 3) + 2.0f);
    return VF_SQRT(-2.0f * log);
}

static void gaussian_f32(const uint32_t words[SUPERBLOCK], float out[SUPERBLOCK]) {
    for (int row = 0; row < SUPERBLOCK; row += 32)
        for (int lane = row; lane < row + 16; lane += LANES32) {
            f32v radius = radius_f32(LOAD(u32v, words + lane));
            u32v w = LOAD(u32v, words + lane + 16);
            f32v t = (f32v)(((w & 0x1fffffffu) >> 6) | 0x3f800000u) - 0x1.fffffep-1f;
            f32v z = t * t;
            f32v cosine = z * vf_poly(z, COSF_POLY, 4) + 1.0f;
            f32v sine = t * vf_poly(z, SINF_POLY, 4);
            u32v swap = 0 - ((w >> 29) & 1);
            f32v first = vf_select(swap, sine, cosine), second = vf_select(swap, cosine, sine);
            STORE(out + lane, radius * (f32v)((u32v)first ^ (w & 0x80000000u)));
            STORE(out + lane + 16, radius * (f32v)((u32v)second ^ ((w << 1) & 0x80000000u)));
        }
}
