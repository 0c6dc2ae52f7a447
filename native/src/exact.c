/* One draw in arbitrary precision: what the fast path leaves open.
 *
 * Fixed point: `f` limbs of 32 bits after the point and two before it, least significant first.
 * Every operation truncates; what that can add up to is far below SLACK units in the last place
 * (the longest series has 1400 terms of a few units each, and e·ln 2 repeats one error 4200 times).
 * The interval of outcomes has ends computed from the ends of the known bits: all functions are
 * monotone there. Slow and plain on purpose: it runs for about one draw in a million. */
#include <math.h>

#include "kernels/kernels.h"
#include "wipe.h"

enum { MAX_LEVELS = 64, GUARD = 2, WHOLE = 2, LIMBS = 2 * (MAX_LEVELS + 1) + GUARD + WHOLE };
#define SLACK (1u << 28)

typedef uint32_t fixed[LIMBS];
typedef struct { fixed low, high; } interval;

static void set(fixed x, uint32_t whole, int f) {
    memset(x, 0, sizeof(fixed));
    x[f] = whole;
}

static void copy(fixed to, const fixed from) { memcpy(to, from, sizeof(fixed)); }

static int is_zero(const fixed x, int f) {
    for (int i = 0; i < f + WHOLE; i++)
        if (x[i]) return 0;
    return 1;
}

static int compare(const uint32_t *a, const uint32_t *b, int limbs) {
    for (int i = limbs - 1; i >= 0; i--)
        if (a[i] != b[i]) return a[i] < b[i] ? -1 : 1;
    return 0;
}

static void add(uint32_t *a, const uint32_t *b, int limbs) {
    uint64_t carry = 0;
    for (int i = 0; i < limbs; i++) {
        carry += (uint64_t)a[i] + b[i];
        a[i] = (uint32_t)carry;
        carry >>= 32;
    }
}

static void subtract(uint32_t *a, const uint32_t *b, int limbs) {
    uint64_t borrow = 0;
    for (int i = 0; i < limbs; i++) {
        uint64_t difference = (uint64_t)a[i] - b[i] - borrow;
        a[i] = (uint32_t)difference;
        borrow = difference >> 63;
    }
}

static void add_units(fixed x, uint32_t units, int f) {
    fixed y;
    set(y, 0, f);
    y[0] = units;
    add(x, y, f + WHOLE);
}

/* x - units, or zero. */
static void subtract_units(fixed x, uint32_t units, int f) {
    fixed y;
    set(y, 0, f);
    y[0] = units;
    if (compare(x, y, f + WHOLE) <= 0)
        set(x, 0, f);
    else
        subtract(x, y, f + WHOLE);
}

static void multiply(fixed a, const fixed b, int f) {
    uint32_t product[2 * LIMBS] = {0};
    int limbs = f + WHOLE;
    for (int i = 0; i < limbs; i++) {
        uint64_t carry = 0;
        for (int j = 0; j < limbs; j++) {
            carry += (uint64_t)a[i] * b[j] + product[i + j];
            product[i + j] = (uint32_t)carry;
            carry >>= 32;
        }
        product[i + limbs] = (uint32_t)carry;
    }
    memcpy(a, product + f, (size_t)limbs * sizeof *a);
}

static void multiply_small(fixed x, uint32_t factor, int f) {
    uint64_t carry = 0;
    for (int i = 0; i < f + WHOLE; i++) {
        carry += (uint64_t)x[i] * factor;
        x[i] = (uint32_t)carry;
        carry >>= 32;
    }
}

static void divide_small(fixed x, uint32_t divisor, int f) {
    uint64_t rest = 0;
    for (int i = f + WHOLE - 1; i >= 0; i--) {
        rest = rest << 32 | x[i];
        x[i] = (uint32_t)(rest / divisor);
        rest %= divisor;
    }
}

static void shift_left(uint32_t *x, unsigned bits, int limbs) {
    uint32_t carry = 0;
    for (int i = 0; i < limbs; i++) {
        uint32_t next = x[i] >> (32 - bits);
        x[i] = x[i] << bits | carry;
        carry = next;
    }
}

static void shift_right(fixed x, unsigned bits, int f) {
    unsigned whole = bits / 32, part = bits % 32;
    unsigned limbs = (unsigned)(f + WHOLE);
    for (unsigned i = 0; i < limbs; i++) {
        uint32_t low = i + whole < limbs ? x[i + whole] : 0;
        uint32_t high = i + whole + 1 < limbs ? x[i + whole + 1] : 0;
        x[i] = part ? low >> part | high << (32 - part) : low;
    }
}

/* a / b for a < b. */
static void divide(fixed a, const fixed b, int f) {
    fixed quotient;
    set(quotient, 0, f);
    for (int bit = 32 * f - 1; bit >= 0; bit--) {
        shift_left(a, 1, f + WHOLE);
        if (compare(a, b, f + WHOLE) >= 0) {
            subtract(a, b, f + WHOLE);
            quotient[bit / 32] |= 1u << bit % 32;
        }
    }
    copy(a, quotient);
}

static void square_root(fixed x, int f) {
    uint32_t root[LIMBS + 1] = {0}, rest[LIMBS + 1] = {0}, trial[LIMBS + 1];
    int limbs = f + WHOLE + 1;
    /* The radicand is x·2^32f as an integer: its two-bit digits, from the top. */
    for (int digit = 16 * (2 * f + WHOLE) - 1; digit >= 0; digit--) {
        int at = digit / 16 - f;
        uint32_t bits = at < 0 ? 0 : x[at] >> (2 * (digit % 16)) & 3u;
        shift_left(rest, 2, limbs);
        rest[0] |= bits;
        shift_left(root, 1, limbs);
        memcpy(trial, root, sizeof trial);
        shift_left(trial, 1, limbs);
        trial[0] |= 1;
        if (compare(rest, trial, limbs) >= 0) {
            subtract(rest, trial, limbs);
            root[0] |= 1;
        }
    }
    memcpy(x, root, sizeof(fixed));
}

/* Σ x^(2k+1)/(2k+1), all terms positive: artanh x. Alternating: arctan x. */
static void inverse_series(fixed x, int alternating, int f) {
    fixed square, power, term, minus;
    copy(square, x);
    multiply(square, x, f);
    copy(power, x);
    set(minus, 0, f);
    for (uint32_t k = 1; !is_zero(power, f); k++) {
        multiply(power, square, f);
        copy(term, power);
        divide_small(term, 2 * k + 1, f);
        add(alternating && k % 2 ? minus : x, term, f + WHOLE);
    }
    subtract(x, minus, f + WHOLE);
}

/* artanh(1/n) or arctan(1/n). */
static void inverse_series_of(fixed x, uint32_t n, int alternating, int f) {
    set(x, 1, f);
    divide_small(x, n, f);
    inverse_series(x, alternating, f);
}

/* 2π, Machin: π = 16 arctan(1/5) - 4 arctan(1/239). */
static void two_pi(fixed x, int f) {
    fixed second;
    inverse_series_of(x, 5, 1, f);
    multiply_small(x, 32, f);
    inverse_series_of(second, 239, 1, f);
    multiply_small(second, 8, f);
    subtract(x, second, f + WHOLE);
}

/* -ln x for 0 < x ≤ 1: e ln 2 + 2 artanh((1-g)/(1+g)), g = 2^e x in [½, 1]. */
static void minus_log(fixed x, int f) {
    uint32_t e = 0;
    fixed one, below, log2;
    set(one, 1, f);
    while (x[f] == 0 && !(x[f - 1] >> 31)) {
        shift_left(x, 1, f + WHOLE);
        e++;
    }
    copy(below, one);
    subtract(below, x, f + WHOLE);
    add(x, one, f + WHOLE);
    divide(below, x, f);
    inverse_series(below, 0, f);
    inverse_series_of(log2, 3, 0, f);
    multiply_small(log2, e, f);
    add(below, log2, f + WHOLE);
    multiply_small(below, 2, f);
    copy(x, below);
}

/* cos x or sin x for 0 ≤ x ≤ π/4. */
static void trigonometric(fixed x, int sine, int f) {
    fixed square, term, plus, minus;
    copy(square, x);
    multiply(square, x, f);
    if (sine)
        copy(term, x);
    else
        set(term, 1, f);
    copy(plus, term);
    set(minus, 0, f);
    for (uint32_t k = 1; !is_zero(term, f); k++) {
        multiply(term, square, f);
        divide_small(term, sine ? 2 * k * (2 * k + 1) : 2 * k * (2 * k - 1), f);
        add(k % 2 ? minus : plus, term, f + WHOLE);
    }
    subtract(plus, minus, f + WHOLE);
    copy(x, plus);
}

/* The known bits as a fraction: the first word, then every second of `more`. */
static void fraction(fixed x, uint64_t first, const uint64_t *more, unsigned levels, int f) {
    set(x, 0, f);
    for (unsigned i = 0; i <= levels; i++) {
        uint64_t word = i ? more[2 * (i - 1)] : first;
        x[f - 1 - 2 * (int)i] = (uint32_t)(word >> 32);
        x[f - 2 - 2 * (int)i] = (uint32_t)word;
    }
}

/* One unit of the last known bit. */
static void step(fixed x, int f) {
    fixed unit;
    set(unit, 0, f);
    unit[GUARD] = 1;
    add(x, unit, f + WHOLE);
}

/* R = sqrt(-2 ln u): falls as u grows. Returns 0 if it may be infinite. */
static int radius_of(interval *out, uint64_t word, const uint64_t *more, unsigned levels, int f) {
    fraction(out->high, word, more, levels, f);
    if (is_zero(out->high, f)) return 0;
    copy(out->low, out->high);
    step(out->low, f);
    uint32_t *ends[] = {out->low, out->high};
    for (int i = 0; i < 2; i++) {
        minus_log(ends[i], f);
        multiply_small(ends[i], 2, f);
        i ? add_units(ends[i], SLACK, f) : subtract_units(ends[i], SLACK, f);
        square_root(ends[i], f);
    }
    add_units(out->high, 1, f);
    return 1;
}

/* cos φ falls, sin φ grows. The word's top three bits are cleared, so φ = 2π · fraction. */
static void ratio_of(interval *out, int sine, uint64_t word, const uint64_t *more, unsigned levels,
                     int f) {
    fixed turn;
    two_pi(turn, f);
    fraction(out->low, word, more, levels, f);
    copy(out->high, out->low);
    step(sine ? out->high : out->low, f);
    uint32_t *ends[] = {out->low, out->high};
    for (int i = 0; i < 2; i++) {
        multiply(ends[i], turn, f);
        trigonometric(ends[i], sine, f);
        i ? add_units(ends[i], SLACK, f) : subtract_units(ends[i], SLACK, f);
    }
}

/* floor(σ r c + ½), σ = mantissa · 2^-shift. */
static uint64_t rounded(const fixed r, const fixed c, int up, uint64_t mantissa, unsigned shift, int f) {
    fixed x, low, half;
    copy(x, r);
    multiply(x, c, f);
    if (up) add_units(x, 1, f);
    copy(low, x);
    /* r c < 2^7 and the mantissa has 53 bits: the whole part holds the product. */
    multiply_small(low, (uint32_t)mantissa, f);
    multiply_small(x, (uint32_t)(mantissa >> 32), f);
    memmove(x + 1, x, (size_t)(f + WHOLE - 1) * sizeof *x);
    x[0] = 0;
    add(x, low, f + WHOLE);
    shift_right(x, shift, f);
    if (up) add_units(x, 1, f);
    set(half, 0, f);
    half[f - 1] = 1u << 31;
    add(x, half, f + WHOLE);
    return (uint64_t)x[f + 1] << 32 | x[f];
}

int dither_exact_draw(uint64_t radius, uint64_t angle, const uint64_t *more, unsigned levels,
                      double sigma, int second, int64_t *out) {
    const uint64_t known = 0x1fffffffffffffffu;
    int swap = (int)(angle >> 61 & 1), negative = (int)(angle >> (second ? 62 : 63) & 1);
    int f = 2 * ((int)levels + 1) + GUARD, exponent;
    interval r, c;
    if (levels > MAX_LEVELS || !radius_of(&r, radius, more, levels, f)) return 0;
    ratio_of(&c, second != swap, angle & known, more + 1, levels, f);
    uint64_t mantissa = (uint64_t)ldexp(frexp(sigma, &exponent), 53);
    unsigned shift = (unsigned)(53 - exponent);
    uint64_t low = rounded(r.low, c.low, 0, mantissa, shift, f);
    uint64_t high = rounded(r.high, c.high, 1, mantissa, shift, f);
    dither_wipe(&r, sizeof r);
    dither_wipe(&c, sizeof c);
    *out = negative ? -(int64_t)low : (int64_t)low;
    return low == high;
}
