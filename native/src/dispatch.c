/* Which code for which features. */
#include "kernels/kernels.h"

/* Measured (docs/decisions/0014): on one core, a byte takes 31 ps by VAES, 125 by AES-NI, 130 by
 * ChaCha20 on AVX-512, 345 on AVX2, 790 on plain vectors. So AES wherever there are instructions. */
#define FAMILY(simd)                                                                               \
    {{&simd, aes_stream_portable, "portable", DITHER_CHACHA20},                                    \
     {&simd, AES_NARROW, AES_NARROW_NAME, DITHER_AES256},                                          \
     {&simd, AES_WIDE, AES_WIDE_NAME, DITHER_AES256}}

#if defined(DITHER_HAVE_AESNI)
#define AES_NARROW aes_stream_aesni
#define AES_NARROW_NAME "aesni"
#elif defined(DITHER_HAVE_ARMV8AES)
#define AES_NARROW aes_stream_armv8aes
#define AES_NARROW_NAME "armv8aes"
#else
#define AES_NARROW aes_stream_portable
#define AES_NARROW_NAME "portable"
#endif
#if defined(DITHER_HAVE_VAES)
#define AES_WIDE aes_stream_vaes
#define AES_WIDE_NAME "vaes"
#else
#define AES_WIDE AES_NARROW
#define AES_WIDE_NAME AES_NARROW_NAME
#endif

/* [no AES, AES, VAES] */
static const dither_kernels portable[3] = FAMILY(dither_simd_portable);
#ifdef DITHER_HAVE_AVX2
static const dither_kernels avx2[3] = FAMILY(dither_simd_avx2);
#endif
#ifdef DITHER_HAVE_AVX512
static const dither_kernels avx512[3] = FAMILY(dither_simd_avx512);
#endif
#ifdef DITHER_HAVE_NEON
static const dither_kernels neon[3] = FAMILY(dither_simd_neon);
#endif

const dither_kernels *dither_select(uint32_t features) {
    int aes = (features & DITHER_FEATURE_AES) != 0;
    /* The VAES code works on 512-bit vectors. */
    if ((features & DITHER_FEATURE_VAES) && (features & DITHER_FEATURE_AVX512)) aes = 2;
#ifdef DITHER_HAVE_AVX512
    if (features & DITHER_FEATURE_AVX512) return &avx512[aes];
#endif
#ifdef DITHER_HAVE_AVX2
    if (features & DITHER_FEATURE_AVX2) return &avx2[aes];
#endif
#ifdef DITHER_HAVE_NEON
    if (features & DITHER_FEATURE_NEON) return &neon[aes];
#endif
    return &portable[aes];
}

const char *dither_kernels_name(const dither_kernels *kernels) { return kernels->simd->name; }

const char *dither_aes_name(const dither_kernels *kernels) { return kernels->aes_name; }

dither_cipher dither_preferred_cipher(const dither_kernels *kernels) { return kernels->preferred; }

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
    case DITHER_BAD_ARGUMENT: return "a cipher, width, type or factor that is none of those named";
    case DITHER_PEER_DEAD: return "a process of the group has ended";
    case DITHER_PEER_LEFT: return "a rank has left the group";
    case DITHER_PEER_LATE: return "a rank did not answer in time";
    case DITHER_PEER_FAILED: return "a rank met an error of its own";
    case DITHER_MISMATCH: return "ranks made different calls";
    case DITHER_BROKEN: return "the group is broken by an earlier error";
    case DITHER_BUSY: return "another thread is in a call";
    case DITHER_INTERRUPTED: return "interrupted";
    case DITHER_UNSUPPORTED: return "this system has no such thing";
    }
    return "unknown";
}
