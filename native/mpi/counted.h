/* counted.h: what the generated source of counting wrappers needs, and what it gives.
 *
 * The launcher generates one C file from the very mpi.h that the library is built with. It defines,
 * for each MPI function that moves data and that dither does not protect, in each of its forms, a
 * wrapper that counts and passes on:
 *
 *     const char *const dither_counted_names[] = {"MPI_Send", "MPI_Recv", ...};   one a name
 *     const unsigned dither_counted_total = N;
 *     dither_counter dither_counted[N];
 *
 *     DITHER_EXPORT int MPI_Send(const void *buf, int count, ...) {
 *         DITHER_COUNT(0);
 *         return PMPI_Send(buf, count, ...);
 *     }
 *
 * Forms of one function (MPI_Send_c, Fortran's) share its name and number. */
#ifndef DITHER_COUNTED_H
#define DITHER_COUNTED_H

#include <stdatomic.h>
#include <stdint.h>

#define DITHER_EXPORT __attribute__((visibility("default")))

typedef _Atomic uint64_t dither_counter;

extern const char *const dither_counted_names[];
extern const unsigned dither_counted_total;
extern dither_counter dither_counted[];

/* Whether the code at this address is MPI's own: its calls to itself are not the program's. */
int dither_is_mpi(const void *caller);

#define DITHER_COUNT(number)                                                                      \
    do {                                                                                          \
        if (!dither_is_mpi(__builtin_return_address(0)))                                          \
            atomic_fetch_add_explicit(&dither_counted[number], 1, memory_order_relaxed);          \
    } while (0)

#endif
