/* Sums of several arrays. */

/* Elements at once: they stay in the first-level cache until all parts are added. */
enum { SUM_STEP = 1024 };

/* Plain loops, which the compiler vectorises; memcpy because arrays may stand at any address. */
#define SUM(type, wrapped)                                                                         \
    static void add_##type(unsigned char *out, const unsigned char *a, const unsigned char *b,     \
                           size_t count) {                                                         \
        for (size_t i = 0; i < count; i++) {                                                       \
            type x, y;                                                                             \
            memcpy(&x, a + i * sizeof x, sizeof x);                                                \
            memcpy(&y, b + i * sizeof y, sizeof y);                                                \
            x = (type)((wrapped)x + (wrapped)y);                                                   \
            memcpy(out + i * sizeof x, &x, sizeof x);                                              \
        }                                                                                          \
    }                                                                                              \
    static void sum_##type(void *out, const void *const *from, unsigned parts, size_t count) {     \
        unsigned char held[SUM_STEP * sizeof(type)];                                               \
        if (parts == 2) {                                                                          \
            add_##type(out, from[0], from[1], count);                                              \
            return;                                                                                \
        }                                                                                          \
        for (size_t i = 0; i < count; i += SUM_STEP) {                                             \
            size_t now = count - i < SUM_STEP ? count - i : SUM_STEP, at = i * sizeof(type);       \
            memcpy(held, (const unsigned char *)from[0] + at, now * sizeof(type));                 \
            for (unsigned p = 1; p < parts; p++)                                                   \
                add_##type(held, held, (const unsigned char *)from[p] + at, now);                  \
            memcpy((unsigned char *)out + at, held, now * sizeof(type));                           \
        }                                                                                          \
    }

SUM(uint8_t, uint32_t)
SUM(uint16_t, uint32_t)
SUM(uint32_t, uint32_t)
SUM(uint64_t, uint64_t)
SUM(float, float)
SUM(double, double)

#ifndef V_STREAM_F32
#define V_STREAM_F32(to, x) STORE((to), (x))
#define V_STREAM_F64(to, x) STORE((to), (x))
#define V_STREAM(to, x) STORE((to), (x))
#define V_FENCE() ((void)0)
#endif
INLINE void stream_f32(void *to, size_t at, f64v x) {
    V_STREAM_F32((float *)to + at, __builtin_convertvector(x, f32h));
}
INLINE void stream_f64(void *to, size_t at, f64v x) { V_STREAM_F64((double *)to + at, x); }

INLINE f64v sum_i16(const void *const *from, unsigned parts, size_t at) {
    u16q sum = LOAD(u16q, (const uint16_t *)from[0] + at);
    for (unsigned p = 1; p < parts; p++) sum += LOAD(u16q, (const uint16_t *)from[p] + at);
    return V_FROM_I32(__builtin_convertvector((i16q)sum, i32h));
}
INLINE f64v sum_i32(const void *const *from, unsigned parts, size_t at) {
    u32h sum = LOAD(u32h, (const uint32_t *)from[0] + at);
    for (unsigned p = 1; p < parts; p++) sum += LOAD(u32h, (const uint32_t *)from[p] + at);
    return V_FROM_I32((i32h)sum);
}

#define DECODE_SUM(from, to, in_type, wrapped, out_type)                                           \
    INLINE void one_##from##_##to(const void *const *messages, unsigned parts, double step,        \
                                  void *values, size_t i) {                                        \
        wrapped sum = 0, part;                                                                     \
        for (unsigned p = 0; p < parts; p++) {                                                     \
            memcpy(&part, (const char *)messages[p] + i * sizeof part, sizeof part);               \
            sum = (wrapped)(sum + part);                                                           \
        }                                                                                          \
        out_type out = (out_type)((in_type)sum * step);                                            \
        memcpy((char *)values + i * sizeof out, &out, sizeof out);                                 \
    }                                                                                              \
    INLINE void sum_##from##_##to(const void *const *messages, unsigned parts, double step,        \
                                  int past_cache, void *values, size_t count) {                    \
        const f64v steps = v_set(step);                                                            \
        size_t i = 0;                                                                              \
        if (past_cache) {                                                                          \
            for (; i < count && (uintptr_t)((out_type *)values + i) % BYTES; i++)                  \
                one_##from##_##to(messages, parts, step, values, i);                               \
            for (; i + LANES64 <= count; i += LANES64)                                             \
                stream_##to(values, i, sum_##from(messages, parts, i) * steps);                    \
        } else {                                                                                   \
            for (; i + LANES64 <= count; i += LANES64)                                             \
                store_##to(values, i, sum_##from(messages, parts, i) * steps);                     \
        }                                                                                          \
        for (; i < count; i++) one_##from##_##to(messages, parts, step, values, i);                \
    }                                                                                              \
    static void decode_sum_##from##_##to(const void *const *messages, unsigned parts, double step, \
                                         int past_cache, void *values, size_t count) {             \
        if (parts == 1)                                                                            \
            sum_##from##_##to(messages, 1, step, past_cache, values, count);                       \
        else if (parts == 2)                                                                       \
            sum_##from##_##to(messages, 2, step, past_cache, values, count);                       \
        else                                                                                       \
            sum_##from##_##to(messages, parts, step, past_cache, values, count);                   \
    }

DECODE_SUM(i16, f32, int16_t, uint16_t, float)
DECODE_SUM(i16, f64, int16_t, uint16_t, double)
DECODE_SUM(i32, f32, int32_t, uint32_t, float)
DECODE_SUM(i32, f64, int32_t, uint32_t, double)

/* To float32, in float32 arithmetic: half the work, the same bits. A step that is a float times an
 * integer of 16 bits is exact in float64, so that path rounds it once, to float32, as this does. */
INLINE f32v narrow_vector(const void *const *messages, unsigned parts, size_t at) {
    u16h sum = LOAD(u16h, (const uint16_t *)messages[0] + at);
    for (unsigned p = 1; p < parts; p++) sum += LOAD(u16h, (const uint16_t *)messages[p] + at);
    return __builtin_convertvector(__builtin_convertvector((i16h)sum, i32v), f32v);
}
INLINE void sum_narrow(const void *const *messages, unsigned parts, float step, int past_cache,
                       float *values, size_t count) {
    const f32v steps = vf_set(step);
    size_t i = 0;
    if (past_cache) {
        for (; i < count && (uintptr_t)(values + i) % BYTES; i++)
            one_i16_f32(messages, parts, (double)step, values, i);
        for (; i + LANES32 <= count; i += LANES32)
            V_STREAM(values + i, narrow_vector(messages, parts, i) * steps);
    } else {
        for (; i + LANES32 <= count; i += LANES32)
            STORE(values + i, narrow_vector(messages, parts, i) * steps);
    }
    for (; i < count; i++) one_i16_f32(messages, parts, (double)step, values, i);
}

static void decode_narrow(const void *const *messages, unsigned parts, float step, int past_cache,
                          void *values, size_t count) {
    if (parts == 1)
        sum_narrow(messages, 1, step, past_cache, values, count);
    else if (parts == 2)
        sum_narrow(messages, 2, step, past_cache, values, count);
    else
        sum_narrow(messages, parts, step, past_cache, values, count);
}

static void decode_sum(const void *const *messages, unsigned parts, int wide, double step,
                       int to_double, int past_cache, void *values, size_t count) {
    /* Without an element's alignment there is no place to start from. */
    if ((uintptr_t)values % (to_double ? sizeof(double) : sizeof(float))) past_cache = 0;
    if (!wide && !to_double && (double)(float)step == step && __builtin_isnormal((float)step))
        decode_narrow(messages, parts, (float)step, past_cache, values, count);
    else if (wide)
        (to_double ? decode_sum_i32_f64 : decode_sum_i32_f32)(messages, parts, step, past_cache,
                                                              values, count);
    else
        (to_double ? decode_sum_i16_f64 : decode_sum_i16_f32)(messages, parts, step, past_cache,
                                                              values, count);
}

static void fence(void) { V_FENCE(); }
