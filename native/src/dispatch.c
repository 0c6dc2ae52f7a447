/* Which kernels for which features. */
#include "kernels/kernels.h"

const dither_kernels *dither_select(uint32_t features) {
#ifdef DITHER_HAVE_AVX512
    if (features & DITHER_FEATURE_AVX512) return &dither_kernels_avx512;
#endif
#ifdef DITHER_HAVE_AVX2
    if (features & DITHER_FEATURE_AVX2) return &dither_kernels_avx2;
#endif
#ifdef DITHER_HAVE_NEON
    if (features & DITHER_FEATURE_NEON) return &dither_kernels_neon;
#endif
    (void)features;
    return &dither_kernels_portable;
}

const char *dither_kernels_name(const dither_kernels *kernels) { return kernels->name; }

const char *dither_status_text(dither_status status) {
    switch (status) {
    case DITHER_OK: return "done";
    case DITHER_NO_ENTROPY: return "the operating system gave no random bytes";
    case DITHER_NO_MEMORY: return "out of memory";
    case DITHER_FORKED: return "an agreed key was used after fork";
    case DITHER_BAD_SIGMA: return "sigma is out of range";
    case DITHER_BAD_GRID: return "the lattice is out of range";
    case DITHER_NOT_FINITE: return "a value is not finite";
    case DITHER_NO_THREAD: return "no thread could be started";
    }
    return "unknown";
}
