/* Which of MPI's types can be protected, and their values as floats. */
#include <math.h>
#include <string.h>

#include "mpi_core.h"

const char *const dm_call_names[DM_CALLS] = {"MPI_Allreduce",      "MPI_Reduce",
                                             "MPI_Iallreduce",     "MPI_Ireduce",
                                             "MPI_Allreduce_init", "MPI_Reduce_init"};

enum { KINDS_MOST = 40 };
static struct {
    MPI_Datatype type;
    dm_kind kind;
} known[KINDS_MOST];
static int known_count;

static void know(MPI_Datatype type, dm_kind kind) {
    int size = 0;
    /* Fortran's types are null where MPI was built without, and may have other sizes. */
    if (type == MPI_DATATYPE_NULL || PMPI_Type_size(type, &size) != MPI_SUCCESS) return;
    if (kind == DM_F32 && size == 8) kind = DM_F64;
    if (kind == DM_F64 && size == 4) kind = DM_F32;
    if (kind == DM_I32 && size == 8) kind = DM_I64;
    if (kind == DM_I64 && size == 4) kind = DM_I32;
    if ((size_t)size != dm_kind_size(kind) || known_count == KINDS_MOST) return;
    known[known_count].type = type;
    known[known_count++].kind = kind;
}

static void know_fortran(void) {
#ifdef MPI_REAL
    know(MPI_REAL, DM_F32);
    know(MPI_DOUBLE_PRECISION, DM_F64);
    know(MPI_INTEGER, DM_I32);
#endif
#ifdef MPI_REAL4
    know(MPI_REAL4, DM_F32);
    know(MPI_REAL8, DM_F64);
    know(MPI_INTEGER4, DM_I32);
    know(MPI_INTEGER8, DM_I64);
#endif
#ifdef MPI_REAL2
    know(MPI_REAL2, DM_F16);
#endif
}

static void know_short_floats(void) {
#ifdef MPIX_C_FLOAT16
    know(MPIX_C_FLOAT16, DM_F16);
#endif
#ifdef MPIX_FLOAT16
    know(MPIX_FLOAT16, DM_F16);
#endif
#ifdef MPIX_SHORT_FLOAT
    know(MPIX_SHORT_FLOAT, DM_F16);
#endif
#ifdef MPIX_C_BF16
    know(MPIX_C_BF16, DM_B16);
#endif
#ifdef MPIX_BFLOAT16
    know(MPIX_BFLOAT16, DM_B16);
#endif
}

void dm_kinds_init(void) {
    known_count = 0;
    know(MPI_FLOAT, DM_F32);
    know(MPI_DOUBLE, DM_F64);
    know(MPI_INT, DM_I32);
    know(MPI_INT32_T, DM_I32);
    know(MPI_INT64_T, DM_I64);
    know(MPI_LONG, DM_I64);
    know(MPI_LONG_LONG, DM_I64);
    know_fortran();
    know_short_floats();
}

dm_kind dm_kind_of(MPI_Datatype type) {
    for (int i = 0; i < known_count; i++)
        if (known[i].type == type) return known[i].kind;
    return DM_NO_KIND;
}

size_t dm_kind_size(dm_kind kind) {
    static const size_t sizes[] = {0, 4, 8, 4, 8, 2, 2};
    return sizes[kind];
}

dither_float dm_kind_float(dm_kind kind) {
    return kind == DM_F32 || kind == DM_F16 || kind == DM_B16 ? DITHER_F32 : DITHER_F64;
}

static float of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float of_half(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    if (rest >= 0x7c00) return of_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    /* The exponent's bias by an exact product, which serves subnormal numbers too. */
    return of_bits(sign | bits_of(of_bits(rest << 13) * 0x1p112f));
}

/* To nearest, ties to even; NaN stays NaN. */
static uint16_t to_half(float value) {
    const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (size >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
    if (size < 0x38800000) /* subnormal: the adder rounds at its last place */
        return (uint16_t)(sign | (bits_of(of_bits(size) + 0.5f) - 0x3f000000));
    return (uint16_t)(sign | ((size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13));
}

static uint16_t to_bfloat(float value) {
    const uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static int32_t to_i32(double value) {
    if (!(value > (double)INT32_MIN)) return INT32_MIN;
    return value >= (double)INT32_MAX ? INT32_MAX : (int32_t)lrint(value);
}

static int64_t to_i64(double value) {
    if (!(value > -0x1p63)) return INT64_MIN;
    return value >= 0x1p63 ? INT64_MAX : (int64_t)llrint(value);
}

void dm_to_floats(dm_kind kind, const void *values, void *floats, size_t count) {
    float *f = floats;
    double *d = floats;
    const uint16_t *h = values;
    switch (kind) {
    case DM_I32:
        for (size_t i = 0; i < count; i++) d[i] = ((const int32_t *)values)[i];
        return;
    case DM_I64:
        for (size_t i = 0; i < count; i++) d[i] = (double)((const int64_t *)values)[i];
        return;
    case DM_F16:
        for (size_t i = 0; i < count; i++) f[i] = of_half(h[i]);
        return;
    case DM_B16:
        for (size_t i = 0; i < count; i++) f[i] = of_bits((uint32_t)h[i] << 16);
        return;
    default:
        memcpy(floats, values, count * dm_kind_size(kind));
    }
}

void dm_from_floats(dm_kind kind, const void *floats, void *values, size_t count) {
    const float *f = floats;
    const double *d = floats;
    uint16_t *h = values;
    switch (kind) {
    case DM_I32:
        for (size_t i = 0; i < count; i++) ((int32_t *)values)[i] = to_i32(d[i]);
        return;
    case DM_I64:
        for (size_t i = 0; i < count; i++) ((int64_t *)values)[i] = to_i64(d[i]);
        return;
    case DM_F16:
        for (size_t i = 0; i < count; i++) h[i] = to_half(f[i]);
        return;
    case DM_B16:
        for (size_t i = 0; i < count; i++) h[i] = to_bfloat(f[i]);
        return;
    default:
        memcpy(values, floats, count * dm_kind_size(kind));
    }
}

const char *dm_op_name(MPI_Op op) {
    const struct {
        MPI_Op op;
        const char *name;
    } names[] = {{MPI_SUM, "MPI_SUM"},       {MPI_MAX, "MPI_MAX"},   {MPI_MIN, "MPI_MIN"},
                 {MPI_PROD, "MPI_PROD"},     {MPI_LAND, "MPI_LAND"}, {MPI_BAND, "MPI_BAND"},
                 {MPI_LOR, "MPI_LOR"},       {MPI_BOR, "MPI_BOR"},   {MPI_LXOR, "MPI_LXOR"},
                 {MPI_BXOR, "MPI_BXOR"},     {MPI_MINLOC, "MPI_MINLOC"},
                 {MPI_MAXLOC, "MPI_MAXLOC"}, {MPI_REPLACE, "MPI_REPLACE"},
                 {MPI_NO_OP, "MPI_NO_OP"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].op == op) return names[i].name;
    return "a user-defined operation";
}
