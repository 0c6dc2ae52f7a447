/* The sum of squares, in one order for every instruction set.
 *
 * Value i goes to lane i mod 32 of group i div 4096. A lane's squares are added one after another,
 * then groups, lane by lane, then lanes in a tree: (count / 4096 + 140) roundings at most on the way
 * of any square, each by a factor within 1 ± 2^-53. */

enum { NORM_LANES = 32, NORM_GROUP = 4096, NORM_VECTORS = NORM_LANES / LANES64 };

typedef struct { f64v of[NORM_VECTORS]; } norm_lanes;

#define SQUARES(from, in_type)                                                                     \
    INLINE void add_squares_##from(const in_type *values, norm_lanes *sums) {                      \
        for (int v = 0; v < NORM_VECTORS; v++) {                                                   \
            f64v x = load_##from(values, (size_t)v * LANES64), square = x * x;                     \
            V_KEEP(square);                                                                        \
            sums->of[v] += square;                                                                 \
        }                                                                                          \
    }                                                                                              \
    static void group_squares_##from(const in_type *values, size_t count, norm_lanes *sums) {      \
        norm_lanes mine = {{{0}}};                                                                 \
        size_t i = 0;                                                                              \
        for (; i + NORM_LANES <= count; i += NORM_LANES) {                                         \
            __builtin_prefetch(values + i + AHEAD, 0);                                             \
            if (sizeof(in_type) * NORM_LANES > 64)                                                 \
                __builtin_prefetch((const char *)(values + i + AHEAD) + 64, 0);                    \
            if (sizeof(in_type) * NORM_LANES > 128) {                                              \
                __builtin_prefetch((const char *)(values + i + AHEAD) + 128, 0);                   \
                __builtin_prefetch((const char *)(values + i + AHEAD) + 192, 0);                   \
            }                                                                                      \
            add_squares_##from(values + i, &mine);                                                 \
        }                                                                                          \
        if (i < count) {                                                                           \
            in_type last[NORM_LANES] = {0};                                                        \
            memcpy(last, (const char *)(values + i), (count - i) * sizeof(in_type));               \
            add_squares_##from(last, &mine);                                                       \
        }                                                                                          \
        for (int v = 0; v < NORM_VECTORS; v++) sums->of[v] += mine.of[v];                          \
    }                                                                                              \
    static void squares_##from(const void *values, size_t count, norm_lanes *sums) {               \
        for (size_t i = 0; i < count; i += NORM_GROUP)                                             \
            group_squares_##from((const in_type *)values + i,                                      \
                                 count - i < NORM_GROUP ? count - i : NORM_GROUP, sums);           \
    }

SQUARES(f32, float)
SQUARES(f64, double)

static double squares(const void *values, int from_double, size_t count) {
    norm_lanes sums = {{{0}}};
    double lane[NORM_LANES];
    (from_double ? squares_f64 : squares_f32)(values, count, &sums);
    memcpy(lane, &sums, sizeof lane);
    for (int half = NORM_LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}
