/* Box-Muller in float64, with the error bound that makes the lattice draw exact.
 *
 * One pair of draws uses two words. With fractions of infinitely many bits, of which the words are
 * the first ones (exact.c reads on):
 *   radius: u = (m + 0.…)/2^64,  R = sqrt(-2 ln u)
 *   angle:  bit 63, 62 the signs, bit 61 the swap, the rest a: φ = π/4 · (a + 0.…)/2^61
 *   X1, X2 = ±R cos φ, ±R sin φ, exchanged when swap is set: independent standard normals.
 *
 * Bound. Lanes with m < 2^44 or m ≥ 2^64 - 2^30 are left to exact.c. For the others R ≤ 5.27 and,
 * with ε = 2^-53, the computed x differs from X by less than 2^-45.7, of which
 *   unknown bits of u      ≤ 2^-46.4  dR = du/(u R), largest at m = 2^44
 *   ln: polynomial 2^-50.4 relative, 10 roundings, halved by the root      ≤ 2^-47.8
 *   angle's unknown bits, polynomials 2^-52 and 2^-55, 8 roundings         ≤ 2^-48.4
 *   the products                                                           ≤ 2^-49.6
 * MARGIN = 2^-44 leaves a factor of 3; a test holds the computed x against mpmath. */

#define MARGIN 0x1p-44

typedef struct { f64v cosine, sine, radius; u64v unsure; } polar;

INLINE f64v v_poly(f64v x, const double *coefficients, int count) {
    f64v sum = v_set(coefficients[count - 1]);
    for (int i = count - 2; i >= 0; i--) sum = sum * x + coefficients[i];
    return sum;
}

/* (ln((1+s)/(1-s)) - 2s) / s^3 in s², |s| ≤ 0.1717; fitted at Chebyshev nodes. */
static const double LOG_POLY[] = {
    0x1.55555555553b6p-1, 0x1.9999999b89040p-2, 0x1.24924627cf73ep-2,
    0x1.c71fcf88b3ea2p-3, 0x1.738266a7b9de6p-3, 0x1.54711d0fc9743p-3};
/* (cos(πt/4) - 1)/t² and sin(πt/4)/t in t², 0 ≤ t ≤ 1. */
static const double COS_POLY[] = {
    -0x1.3bd3cc9be45dbp-2, 0x1.03c1f081b4b74p-6, -0x1.55d3c7e10153fp-12,
    0x1.e1f50093e4c8fp-19, -0x1.a6cc32d07dc97p-26, 0x1.f4b536b457d44p-34};
static const double SIN_POLY[] = {
    0x1.921fb54442d18p-1, -0x1.4abbce625be41p-4, 0x1.466bc677587f8p-9, -0x1.32d2cce2e5b19p-15,
    0x1.50782fda12d96p-22, -0x1.e30071afc3e57p-30, 0x1.e3f3839955167p-38};

/* -2 ln(m/2^64). */
INLINE f64v minus_two_log(u64v m) {
    /* The two halves of m as float64, by writing them into the mantissas of 2^84 and 2^52. */
    f64v high = (f64v)((m >> 32) | 0x4530000000000000u);
    f64v low = (f64v)((m & 0xffffffffu) | 0x4330000000000000u);
    f64v value = (high - 0x1.00000001p84) + low;        /* m, rounded once */
    f64v below = (high - 0x1.00001001p84) + low;        /* m - 2^64, rounded once */
    /* value = 2^e f, f in [√½, √2). */
    u64v bits = (u64v)value - 0x3fe6a09e667f3bcdu;
    u64v exponent = bits >> 52;
    f64v f = (f64v)((bits & 0x000fffffffffffffu) + 0x3fe6a09e667f3bcdu);
    u64v top = (u64v)(exponent == 64);
    /* Near u = 1 the distance to 1 must be relatively exact: take it from m itself. */
    f64v g = v_select(top, below * 0x1p-64, f - 1.0);
    f64v s = g / (g + 2.0);
    f64v z = s * s;
    f64v series = z * v_poly(z, LOG_POLY, 6) + 2.0;
    /* exponent - 64 as float64, through the mantissa of 2^52. */
    f64v e = (f64v)(exponent | 0x4330000000000000u) - (0x1p52 + 64.0);
    return -2.0 * (e * 0x1.62e42fefa39efp-1 + s * series);
}

INLINE polar box_muller(u64v m, u64v w) {
    polar p;
    p.unsure = (u64v)(m - (1ull << 44) >= v_setu(0ull - (1ull << 30) - (1ull << 44)));
    p.radius = V_SQRT(minus_two_log(m));
    /* t in (0, 1): 52 bits of the angle and half a unit, exactly. */
    f64v t = (f64v)(((w & 0x1fffffffffffffffu) >> 9) | 0x3ff0000000000000u) - 0x1.ffffffffffffep-1;
    f64v z = t * t;
    f64v cosine = z * v_poly(z, COS_POLY, 6) + 1.0;
    f64v sine = t * v_poly(z, SIN_POLY, 7);
    u64v swap = 0 - ((w >> 61) & 1);
    f64v first = v_select(swap, sine, cosine), second = v_select(swap, cosine, sine);
    p.cosine = (f64v)((u64v)first ^ (w & 0x8000000000000000u));
    p.sine = (f64v)((u64v)second ^ ((w << 1) & 0x8000000000000000u));
    return p;
}

/* Round, or NaN where [x - bound, x + bound] holds a half-integer (or x is NaN). */
INLINE f64v round_surely(f64v x, f64v limit, u64v unsure, u64v *any) {
    f64v nearest = V_ROUND(x);
    f64v distance = (f64v)((u64v)(x - nearest) & 0x7fffffffffffffffu);
    unsure |= ~(u64v)(distance < limit);
    *any |= unsure;
    return (f64v)((u64v)nearest | (unsure & 0x7ff8000000000000u));
}

static int lattice(const uint64_t words[DRAWS], double sigma, double out[DRAWS]) {
    f64v limit = v_set(0.5 - sigma * MARGIN);
    u64v any = {0};
    for (int row = 0; row < DRAWS; row += 16)
        for (int lane = row; lane < row + 8; lane += LANES64) {
            polar p = box_muller(LOAD(u64v, words + lane), LOAD(u64v, words + lane + 8));
            f64v scaled = p.radius * sigma;
            STORE(out + lane, round_surely(scaled * p.cosine, limit, p.unsure, &any));
            STORE(out + lane + 8, round_surely(scaled * p.sine, limit, p.unsure, &any));
        }
    return v_any(any) != 0;
}

static void gaussian_f64(const uint64_t words[DRAWS], double out[DRAWS]) {
    for (int row = 0; row < DRAWS; row += 16)
        for (int lane = row; lane < row + 8; lane += LANES64) {
            /* A zero radius word would be an infinite normal. */
            u64v m = LOAD(u64v, words + lane);
            polar p = box_muller(m | 1, LOAD(u64v, words + lane + 8));
            STORE(out + lane, p.radius * p.cosine);
            STORE(out + lane + 8, p.radius * p.sine);
        }
}
