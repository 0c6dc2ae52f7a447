/* The program's floating-point environment, put aside around calls of the core.
 *
 * What is proved of norms, noise and rounding holds for IEEE 754's defaults: to nearest, with subnormal
 * numbers. A program may round another way, flush subnormals to zero (any built with -ffast-math does, and
 * torch.set_flush_denormal), or trap on what is invalid: a trap inside a call would tell the other ranks of this
 * rank's contribution. Threads inherit the environment of the one that starts them; the core's set their own.
 *
 * The program's is put back with its flags as they were. */
#ifndef DITHER_ARITHMETIC_H
#define DITHER_ARITHMETIC_H

#include <stdint.h>

#if defined(__x86_64__)
/* All floats are SSE's here: one register, which is read in a nanosecond and written only if it differs. */
typedef uint32_t dither_arithmetic;

static inline dither_arithmetic dither_arithmetic_enter(void) {
    enum { DEFAULT = 0x1f80, FLAGS = 0x3f };
    const uint32_t found = __builtin_ia32_stmxcsr();
    if ((found & ~(uint32_t)FLAGS) != DEFAULT) __builtin_ia32_ldmxcsr(DEFAULT);
    __asm__ __volatile__("" ::: "memory");
    return found;
}

static inline void dither_arithmetic_leave(dither_arithmetic found) {
    __asm__ __volatile__("" ::: "memory");
    if (__builtin_ia32_stmxcsr() != found) __builtin_ia32_ldmxcsr(found);
}
#else
#include <fenv.h>

typedef fenv_t dither_arithmetic;

static inline dither_arithmetic dither_arithmetic_enter(void) {
    fenv_t found;
    (void)fegetenv(&found);
    (void)fesetenv(FE_DFL_ENV);
    return found;
}

static inline void dither_arithmetic_leave(dither_arithmetic found) { (void)fesetenv(&found); }
#endif

#endif
