/* dither.h: the C core's whole public surface. Plain C11, no Python, no global state to initialise. */
#ifndef DITHER_H
#define DITHER_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* CPU features that a later dispatch can choose by; one bit each. */
enum dither_feature {
    DITHER_FEATURE_AVX2 = 1u << 0,
    DITHER_FEATURE_AVX512 = 1u << 1, /* F, BW, DQ and VL together: never used apart here */
    DITHER_FEATURE_AES = 1u << 2,    /* AES-NI, or the Armv8 AES extension */
    DITHER_FEATURE_VAES = 1u << 3,
    DITHER_FEATURE_NEON = 1u << 4
};

/* The version of this build, "MAJOR.MINOR.PATCH". */
const char *dither_version(void);

/* Features of the processor we run on, as the operating system lets us use them. */
uint32_t dither_cpu_features(void);

/* Widest vector path these features allow: "avx512", "avx2", "neon" or "portable". */
const char *dither_simd_name(uint32_t features);

#ifdef __cplusplus
}
#endif
#endif
