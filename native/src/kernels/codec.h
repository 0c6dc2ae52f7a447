/* Encode and decode. All in float64, where each step is exact: integers stay below 2^52, steps are
 * powers of two; only a factor rounds. For one vector of values:
 *   clamp(factor · x / fine step), round half to even, + noise, floor(· / 2^shift + ½), clamp, narrow. */

typedef struct { f64v scale, clamp, wire_scale, wire_limit; } codec_vectors;

INLINE codec_vectors spread(const codec_numbers *grid) {
    return (codec_vectors){v_set(grid->scale), v_set(grid->clamp), v_set(grid->wire_scale),
                           v_set(grid->wire_limit)};
}

#ifndef V_CLAMP
#define V_CLAMP(x, limit) V_MAX(V_MIN((x), (limit)), -(limit))
#endif
INLINE f64v v_clamp(f64v x, f64v limit) { return V_CLAMP(x, limit); }

/* Everything but the last floor. `excess` stays zero while nothing is clamped before noise: a value
 * beyond the clamp adds at least 1, and one that is not finite makes it infinite or NaN. */
INLINE f64v encode_vector(f64v x, f64v noise, const codec_vectors *grid, f64v *excess) {
    f64v scaled = x * grid->scale;
    V_KEEP(scaled); /* with a factor the product is rounded: alike by every instruction set */
    f64v fine = V_ROUND(scaled);
    f64v kept = v_clamp(fine, grid->clamp);
    f64v beyond = fine - kept;
    *excess += beyond * beyond;
    return v_clamp((kept + noise) * grid->wire_scale + 0.5, grid->wire_limit);
}

INLINE f64v load_f32(const void *from, size_t at) {
    return V_FROM_F32(LOAD(f32h, (const float *)from + at));
}
INLINE f64v load_f64(const void *from, size_t at) { return LOAD(f64v, (const double *)from + at); }
INLINE f64v load_i32(const void *from, size_t at) {
    return V_FROM_I32(LOAD(i32h, (const int32_t *)from + at));
}
INLINE f64v load_i16(const void *from, size_t at) {
    i16q narrow = LOAD(i16q, (const int16_t *)from + at);
    return V_FROM_I32(__builtin_convertvector(narrow, i32h));
}
INLINE void store_i32(void *to, size_t at, f64v x) {
    STORE((int32_t *)to + at, V_TO_I32(x));
}
INLINE void store_i16(void *to, size_t at, f64v x) {
    STORE((int16_t *)to + at, __builtin_convertvector(V_TO_I32(x), i16q));
}
INLINE void store_f32(void *to, size_t at, f64v x) {
    STORE((float *)to + at, __builtin_convertvector(x, f32h));
}
INLINE void store_f64(void *to, size_t at, f64v x) { STORE((double *)to + at, x); }

#ifndef V_FLOOR_TO_I32
#define V_FLOOR_TO_I32(x) V_TO_I32(V_FLOOR(x))
#endif
INLINE void store_floor_i32(void *to, size_t at, f64v x) {
    STORE((int32_t *)to + at, V_FLOOR_TO_I32(x));
}
INLINE void store_floor_i16(void *to, size_t at, f64v x) {
    STORE((int16_t *)to + at, __builtin_convertvector(V_FLOOR_TO_I32(x), i16q));
}

/* Count what a pass with an excess has met; rare, so one value at a time. */
INLINE void count_one(double value, const codec_vectors *grid, codec_counts *counts) {
    f64v scaled = v_set(value) * grid->scale;
    V_KEEP(scaled);
    f64v fine = V_ROUND(scaled);
    counts->saturated += fine[0] != v_clamp(fine, grid->clamp)[0];
    counts->broken += !(__builtin_fabs(value) < __builtin_inf());
}

INLINE int has_excess(f64v excess) { return v_any(~(u64v)(excess == v_set(0.0))) != 0; }

/* Ready noise makes a pass over memory alone: three streams, fetched this many values ahead. */
#define AHEAD 1024

/* A short end goes through a padded copy: no load or store leaves the caller's arrays. */
#define ENCODE(from, to, in_type, out_type)                                                        \
    static void encode_##from##_##to(const codec_numbers *grid, const void *values,                \
                                     const double *noise, void *message, size_t count,             \
                                     codec_counts *counts) {                                       \
        f64v excess = {0};                                                                         \
        const codec_vectors numbers = spread(grid);                                                \
        size_t i = 0;                                                                              \
        for (; i + LANES64 <= count; i += LANES64)                                                 \
            store_floor_##to(message, i,                                                           \
                       encode_vector(load_##from(values, i), LOAD(f64v, noise + i), &numbers, &excess)); \
        if (i < count) {                                                                           \
            in_type in[LANES64] = {0};                                                             \
            double last[LANES64] = {0};                                                            \
            out_type out[LANES64];                                                                 \
            memcpy(in, (const in_type *)values + i, (count - i) * sizeof(in_type));                \
            memcpy(last, noise + i, (count - i) * sizeof(double));                                 \
            store_floor_##to(out, 0, encode_vector(load_##from(in, 0), LOAD(f64v, last), &numbers, &excess)); \
            memcpy((out_type *)message + i, out, (count - i) * sizeof(out_type));                  \
            dither_wipe(last, sizeof last);                                                        \
        }                                                                                          \
        if (has_excess(excess))                                                                    \
            for (i = 0; i < count; i++) {                                                          \
                in_type value;                                                                     \
                memcpy(&value, (const in_type *)values + i, sizeof value);                         \
                count_one(value, &numbers, counts);                                                \
            }                                                                                      \
    }                                                                                              \
    static void encode_ready_##from##_##to(const codec_numbers *grid, const void *values,          \
                                           int32_t *noise, int wipe, void *message, size_t count,  \
                                           codec_counts *counts) {                                 \
        f64v excess = {0};                                                                         \
        const codec_vectors numbers = spread(grid);                                                \
        const i32h zero = {0};                                                                     \
        size_t i = 0;                                                                              \
        for (; i + LANES64 <= count; i += LANES64) {                                               \
            __builtin_prefetch((const in_type *)values + i + AHEAD, 0);                            \
            __builtin_prefetch(noise + i + AHEAD, 0);                                              \
            __builtin_prefetch((out_type *)message + i + AHEAD, 1);                                \
            f64v ready = load_i32(noise, i);                                                       \
            if (wipe) STORE(noise + i, zero);                                                      \
            store_floor_##to(message, i, encode_vector(load_##from(values, i), ready, &numbers, &excess)); \
        }                                                                                          \
        if (i < count) {                                                                           \
            in_type in[LANES64] = {0};                                                             \
            int32_t last[LANES64] = {0};                                                           \
            out_type out[LANES64];                                                                 \
            memcpy(in, (const in_type *)values + i, (count - i) * sizeof(in_type));                \
            memcpy(last, noise + i, (count - i) * sizeof(int32_t));                                \
            if (wipe) memset(noise + i, 0, (count - i) * sizeof(int32_t));                         \
            store_floor_##to(out, 0, encode_vector(load_##from(in, 0), load_i32(last, 0), &numbers, &excess)); \
            memcpy((out_type *)message + i, out, (count - i) * sizeof(out_type));                  \
            dither_wipe(last, sizeof last);                                                        \
        }                                                                                          \
        if (has_excess(excess))                                                                    \
            for (i = 0; i < count; i++) {                                                          \
                in_type value;                                                                     \
                memcpy(&value, (const in_type *)values + i, sizeof value);                         \
                count_one(value, &numbers, counts);                                                \
            }                                                                                      \
    }

ENCODE(f32, i16, float, int16_t)
ENCODE(f32, i32, float, int32_t)
ENCODE(f64, i16, double, int16_t)
ENCODE(f64, i32, double, int32_t)

#define DECODE(from, to, in_type, out_type)                                                        \
    static void decode_##from##_##to(const void *message, f64v step, void *values, size_t count) { \
        size_t i = 0;                                                                              \
        for (; i + LANES64 <= count; i += LANES64)                                                 \
            store_##to(values, i, load_##from(message, i) * step);                                 \
        for (; i < count; i++) { /* at any address */                                              \
            in_type in;                                                                            \
            memcpy(&in, (const in_type *)message + i, sizeof in);                                  \
            out_type out = (out_type)(in * step[0]);                                               \
            memcpy((out_type *)values + i, &out, sizeof out);                                      \
        }                                                                                          \
    }

DECODE(i16, f32, int16_t, float)
DECODE(i16, f64, int16_t, double)
DECODE(i32, f32, int32_t, float)
DECODE(i32, f64, int32_t, double)

static void decode(const void *message, int wide, double step, int to_double, void *values,
                   size_t count) {
    f64v steps = v_set(step);
    if (wide)
        (to_double ? decode_i32_f64 : decode_i32_f32)(message, steps, values, count);
    else
        (to_double ? decode_i16_f64 : decode_i16_f32)(message, steps, values, count);
}

/* Float64 integers to int32. Those outside saturate: see DITHER_MAX_SIGMA_I32. */
static void narrow(const double *draws, int32_t *out, size_t count) {
    const f64v widest = v_set(2147483647.0);
    size_t i = 0;
    for (; i + LANES64 <= count; i += LANES64)
        store_i32(out, i, v_clamp(load_f64(draws, i), widest));
    for (; i < count; i++) {
        int32_t last = (int32_t)v_clamp(v_set(draws[i]), widest)[0];
        memcpy(out + i, &last, sizeof last); /* at any address */
    }
}
