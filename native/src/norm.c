/* The L2 norm, and the factor that clips to a bound. */
#include <math.h>
#include <string.h>

#include "kernels/kernels.h"
#include "wipe.h"

enum { GROUP = 4096 }; /* as in kernels/norm.h: the error bound holds here too */

/* Squares of huge float64 values overflow, but not scaled by 2^-600; those that then underflow are
 * too small to matter beside them. */
static double scaled_norm(const dither_kernels *kernels, const void *values, size_t count) {
    double group[GROUP], sum = 0;
    for (size_t i = 0; i < count; i += GROUP) {
        size_t now = count - i < GROUP ? count - i : GROUP;
        memcpy(group, (const char *)values + i * sizeof *group, now * sizeof *group);
        for (size_t j = 0; j < now; j++) group[j] *= 0x1p-600;
        sum += kernels->simd->squares(group, 1, now);
    }
    dither_wipe(group, sizeof group);
    return sqrt(sum) * 0x1p600;
}

dither_status dither_norm(const dither_kernels *kernels, dither_float type, const void *values,
                          size_t count, double *norm) {
    *norm = 0;
    if (type != DITHER_F32 && type != DITHER_F64) return DITHER_BAD_ARGUMENT;
    double found = sqrt(kernels->simd->squares(values, type == DITHER_F64, count));
    if (isinf(found) && type == DITHER_F64) found = scaled_norm(kernels, values, count);
    if (!isfinite(found)) return DITHER_NOT_FINITE;
    *norm = found;
    return DITHER_OK;
}

double dither_norm_error(size_t count) { return ((double)(count / GROUP) + 140) * 0x1p-53; }

double dither_clip_factor(double norm, size_t count, double bound) {
    if (!(bound >= 0x1p-400 && bound <= 0x1p400) || !(norm >= 0)) return 0;
    const double most = norm * (1 + dither_norm_error(count));
    /* Each step rounds by 2^-53 at most, and so does each product: 2^-50 covers all of them. */
    if (most <= bound * (1 - 0x1p-50)) return 1;
    const double factor = bound / most * (1 - 0x1p-50);
    return factor < 0x1p-1022 ? 0 : factor; /* subnormal numbers round by more */
}
