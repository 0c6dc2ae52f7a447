/* The types of the sums that `dither mpirun` protects, with their values as doubles. */
#ifndef KINDS_H
#define KINDS_H

#include <mpi.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    const char *name;
    MPI_Datatype type;
    size_t size;
    void (*put)(void *values, size_t index, double value);
    double (*get)(const void *values, size_t index);
} kind;

#define KIND(name, c_type)                                                      \
    static void put_##name(void *values, size_t index, double value) {          \
        ((c_type *)values)[index] = (c_type)value;                              \
    }                                                                           \
    static double get_##name(const void *values, size_t index) {                \
        return (double)((const c_type *)values)[index];                         \
    }

KIND(float, float)
KIND(double, double)
KIND(int, int)
KIND(long, long)
KIND(int32, int32_t)
KIND(int64, int64_t)
KIND(long_long, long long)

/* bfloat16 is the upper half of a float; what the tests put fits it exactly. */
static inline void put_bfloat16(void *values, size_t index, double value) {
    const float single = (float)value;
    uint32_t bits;
    memcpy(&bits, &single, sizeof bits);
    ((uint16_t *)values)[index] = (uint16_t)(bits >> 16);
}

static inline double get_bfloat16(const void *values, size_t index) {
    const uint32_t bits = (uint32_t)((const uint16_t *)values)[index] << 16;
    float single;
    memcpy(&single, &bits, sizeof single);
    return single;
}

/* IEEE half, of values that are zero or normal there; the rest of the fraction is cut off. */
static inline void put_float16(void *values, size_t index, double value) {
    const float single = (float)value;
    uint32_t bits;
    memcpy(&bits, &single, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    const uint32_t half = magnitude == 0 ? 0 : (magnitude - (112u << 23)) >> 13;
    ((uint16_t *)values)[index] = (uint16_t)(sign | half);
}

static inline double get_float16(const void *values, size_t index) {
    const uint32_t half = ((const uint16_t *)values)[index], magnitude = half & 0x7fffu;
    const double fraction = (double)(magnitude & 0x3ffu) / 1024.0;
    const int exponent = (int)(magnitude >> 10);
    double value = exponent == 0 ? fraction / 16384.0 : 1.0 + fraction;
    for (int e = 15; e < exponent; e++) value *= 2.0;
    for (int e = 15; exponent > 0 && e > exponent; e--) value /= 2.0;
    if (exponent == 31) value = 1e30; /* infinite, or not a number: no test expects it */
    return half & 0x8000u ? -value : value;
}

#define ROW(name, type, c_type) {#name, type, sizeof(c_type), put_##name, get_##name}

enum { MOST_KINDS = 9 };

/* Fills `kinds`, returns how many this MPI has. */
static inline int all_kinds(kind kinds[MOST_KINDS]) {
    const kind known[] = {
        ROW(float, MPI_FLOAT, float),         ROW(double, MPI_DOUBLE, double),
        ROW(int, MPI_INT, int),               ROW(long, MPI_LONG, long),
        ROW(int32, MPI_INT32_T, int32_t),     ROW(int64, MPI_INT64_T, int64_t),
        ROW(long_long, MPI_LONG_LONG, long long),
#ifdef MPIX_C_FLOAT16
        ROW(float16, MPIX_C_FLOAT16, uint16_t),
#endif
#ifdef MPIX_BFLOAT16
        ROW(bfloat16, MPIX_BFLOAT16, uint16_t),
#endif
    };
    memcpy(kinds, known, sizeof known);
    return (int)(sizeof known / sizeof known[0]);
}

#endif
