/* Box-Muller in float64, with the error bound that makes the lattice draw exact.
 *
 * One pair of draws uses two words. With fractions of infinitely many bits, of which the words are
 * the first ones (exact.c reads on):
 *   radius: u = (m + 0.…)/2^64,  R = sqrt(-2 ln u)
 *   angle:  bit 63, 62 the signs, bit 61 the swap, the rest a: φ = π/4 · (a + 0.…)/2^61
 *   X1, X2 = ±R cos φ, ±R sin φ, exchanged when swap is set: independent standard normals.
 *
 * Bound. Lanes with m < 2^44 or m ≥ 2^64 - 2^30 are left to exact.c. For the others R < 5.27 and,
 * with ε = 2^-53, the computed x differs from X by less than 139 ε = 2^-45.88, of which
 *   R         ≤ 109 ε   unknown bits of u, dR = du/(u R): 97.3 at m = 2^44; then 11 roundings of
 *                       -2 ln u, halved by the root; its polynomial, 2^-50.4 relative
 *   R · angle ≤ 19 ε    unknown bits: ½ unit of 2^-52; polynomials 2^-52.2 and 2^-55; 4 roundings
 *   products  ≤ 10.6 ε  two roundings
 * MARGIN = 2^-44 leaves a factor of 3. tests/native/test_error_bound.py derives the parts anew and
 * holds the computed x against mpmath. */

#define MARGIN 0x1p-44

INLINE f64v v_poly(f64v x, const double *coefficients, int count) {
    f64v sum = v_set(coefficients[count - 1]);
    for (int i = count - 2; i >= 0; i--) sum = sum * x + coefficients[i];
    return sum;
}

/* -2 (ln((1+s)/(1-s)) - 2s) / s^3 in s², |s| ≤ 0.1717; fitted at Chebyshev nodes. */
static const double LOG_POLY[] = {
    -0x1.55555555553b6p+0, -0x1.9999999b89040p-1, -0x1.24924627cf73ep-1,
    -0x1.c71fcf88b3ea2p-2, -0x1.738266a7b9de6p-2, -0x1.54711d0fc9743p-2};
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
    /* Near u = 1 the distance to 1 must be relatively exact: take it from m itself. */
    f64v g = V_IF_EQUAL(exponent, v_setu(64), below * 0x1p-64, f - 1.0);
    f64v s = g / (g + 2.0);
    f64v z = s * s;
    f64v series = z * v_poly(z, LOG_POLY, 6) - 4.0;
    /* exponent - 64 as float64, through the mantissa of 2^52. */
    f64v e = (f64v)(exponent | 0x4330000000000000u) - (0x1p52 + 64.0);
    return e * -0x1.62e42fefa39efp+0 + s * series;
}

/* X1 / R and X2 / R. */
typedef struct { f64v first, second; } direction;

INLINE direction turn(u64v w) {
    /* t in (0, 1): 52 bits of the angle and half a unit, exactly. */
    f64v t = (f64v)(((w & 0x1fffffffffffffffu) >> 9) | 0x3ff0000000000000u) - 0x1.fffffffffffffp-1;
    f64v z = t * t;
    f64v cosine = z * v_poly(z, COS_POLY, 6) + 1.0;
    f64v sine = t * v_poly(z, SIN_POLY, 7);
    u64v swap = w << 2, sign = w << 1;
    f64v first = V_IF_SIGN(swap, sine, cosine), second = V_IF_SIGN(swap, cosine, sine);
    return (direction){(f64v)((u64v)first ^ (w & 0x8000000000000000u)),
                       (f64v)((u64v)second ^ (sign & 0x8000000000000000u))};
}

/* What a pass has met: the largest distance from an integer, the range of -2 ln u. */
typedef struct { f64v distance, least, most; } extremes;

INLINE f64v v_abs(f64v x) { return (f64v)((u64v)x & 0x7fffffffffffffffu); }

INLINE f64v rounded(f64v x, extremes *met) {
    f64v nearest = V_ROUND(x);
    met->distance = V_MAX(met->distance, v_abs(x - nearest));
    return nearest;
}

/* The same with NaN where [x - bound, x + bound] holds a half-integer, or the lane is left out. */
INLINE f64v rounded_or_nan(f64v x, f64v limit, u64v left_out) {
    f64v nearest = V_ROUND(x);
    u64v unsure = left_out | ~(u64v)(v_abs(x - nearest) < limit);
    return (f64v)((u64v)nearest | (unsure & 0x7ff8000000000000u));
}

/* -2 ln u at the ends of the lanes that the bound covers, brought in by far more than its error. */
#define LEAST 0x1.00001p-33
#define MOST 0x1.bb9d1p+4

/* One word in a million is unsure, so the fast pass only finds out whether any is. */
static void lattice_marked(const uint64_t words[DRAWS], double sigma, double out[DRAWS]) {
    f64v limit = v_set(0.5 - sigma * MARGIN);
    for (int row = 0; row < DRAWS; row += 16)
        for (int lane = row; lane < row + 8; lane += LANES64) {
            f64v y = minus_two_log(LOAD(u64v, words + lane));
            direction d = turn(LOAD(u64v, words + lane + 8));
            u64v left_out = ~((u64v)(y >= v_set(LEAST)) & (u64v)(y <= v_set(MOST)));
            f64v radius = V_SQRT(y) * sigma;
            STORE(out + lane, rounded_or_nan(radius * d.first, limit, left_out));
            STORE(out + lane + 8, rounded_or_nan(radius * d.second, limit, left_out));
        }
}

static int lattice(const uint64_t words[DRAWS], double sigma, double out[DRAWS]) {
    extremes met = {v_set(0), v_set(1), v_set(1)};
    for (int row = 0; row < DRAWS; row += 16)
        for (int lane = row; lane < row + 8; lane += LANES64) {
            f64v y = minus_two_log(LOAD(u64v, words + lane));
            direction d = turn(LOAD(u64v, words + lane + 8));
            met.least = V_MIN(met.least, y);
            met.most = V_MAX(met.most, y);
            f64v radius = V_SQRT(y) * sigma;
            STORE(out + lane, rounded(radius * d.first, &met));
            STORE(out + lane + 8, rounded(radius * d.second, &met));
        }
    u64v sure = (u64v)(met.distance < v_set(0.5 - sigma * MARGIN)) &
                (u64v)(met.least >= v_set(LEAST)) & (u64v)(met.most <= v_set(MOST));
    if (!v_any(~sure)) return 0;
    lattice_marked(words, sigma, out);
    return 1;
}

static void gaussian_f64(const uint64_t words[DRAWS], double out[DRAWS]) {
    for (int row = 0; row < DRAWS; row += 16)
        for (int lane = row; lane < row + 8; lane += LANES64) {
            /* A zero radius word would be an infinite normal. */
            f64v radius = V_SQRT(minus_two_log(LOAD(u64v, words + lane) | 1));
            direction d = turn(LOAD(u64v, words + lane + 8));
            STORE(out + lane, radius * d.first);
            STORE(out + lane + 8, radius * d.second);
        }
}
