/* The program's floating-point environment, put aside while dither computes.
 *
 * What is proved of norms, noise and rounding holds for IEEE 754's defaults: to nearest, with subnormal
 * numbers. A program may round another way, flush subnormals to zero (any built with -ffast-math does), or trap on
 * what is invalid: a trap inside a call would tell the other ranks of this rank's contribution. Threads inherit the
 * environment of the one that starts them, so ours are started within, too.
 *
 * The program's is put back with its flags as they were. */
#ifndef DITHER_MPI_ARITHMETIC_H
#define DITHER_MPI_ARITHMETIC_H

#include <stdint.h>

#if defined(__x86_64__)
/* All floats are SSE's here: one register, which is read in a nanosecond and written only if it differs. */
typedef uint32_t dm_arithmetic;

static inline dm_arithmetic dm_arithmetic_enter(void) {
    enum { DEFAULT = 0x1f80, FLAGS = 0x3f };
    const uint32_t found = __builtin_ia32_stmxcsr();
    if ((found & ~(uint32_t)FLAGS) != DEFAULT) __builtin_ia32_ldmxcsr(DEFAULT);
    __asm__ __volatile__("" ::: "memory");
    return found;
}

static inline void dm_arithmetic_leave(dm_arithmetic found) {
    __asm__ __volatile__("" ::: "memory");
    if (__builtin_ia32_stmxcsr() != found) __builtin_ia32_ldmxcsr(found);
}
#else
#include <fenv.h>

typedef fenv_t dm_arithmetic;

static inline dm_arithmetic dm_arithmetic_enter(void) {
    fenv_t found;
    (void)fegetenv(&found);
    (void)fesetenv(FE_DFL_ENV);
    return found;
}

static inline void dm_arithmetic_leave(dm_arithmetic found) { (void)fesetenv(&found); }
#endif

#endif
