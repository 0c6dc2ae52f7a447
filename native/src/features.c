/* What this processor can do. Asked once per call: it is cheap, and a cache would be a global. */
#include "dither.h"

const char *dither_version(void) { return DITHER_VERSION; }

#if defined(__x86_64__) || defined(__i386__)

uint32_t dither_cpu_features(void) {
    uint32_t features = 0;
    /* The compiler's probe also asks XGETBV whether the kernel saves the wide registers. */
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        features |= DITHER_FEATURE_AVX2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        features |= DITHER_FEATURE_AVX512;
    if (__builtin_cpu_supports("aes")) features |= DITHER_FEATURE_AES;
    if (__builtin_cpu_supports("vaes")) features |= DITHER_FEATURE_VAES;
    return features;
}

#elif defined(__aarch64__)

#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
static int has_aes(void) { return (getauxval(AT_HWCAP) & HWCAP_AES) != 0; }
#else
static int has_aes(void) { return 1; } /* every 64-bit Apple processor has it */
#endif

uint32_t dither_cpu_features(void) {
    /* NEON is part of the 64-bit Arm base. */
    return DITHER_FEATURE_NEON | (has_aes() ? DITHER_FEATURE_AES : 0u);
}

#else

uint32_t dither_cpu_features(void) { return 0; }

#endif
