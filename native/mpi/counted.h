/* counted.h: what the generated source of wrappers needs, and what it gives.
 *
 * The launcher generates one C file from the very mpi.h that the library is built with. It defines,
 * for each MPI function that moves data and that dither does not protect, in each of its forms, a
 * wrapper that counts and passes on:
 *
 *     const char *const dither_counted_names[] = {"MPI_Send", "MPI_Recv", ...};   one a name
 *     const unsigned dither_counted_total = N;
 *     dither_counter dither_counted[N], dither_refused[N];
 *
 *     DITHER_EXPORT int MPI_Send(const void *buf, int count, ...) {
 *         DITHER_COUNT(0);
 *         return PMPI_Send(buf, count, ...);
 *     }
 *
 * Of a function that is refused the wrapper passes only what the user named by --allow-clear:
 *
 *         if (!dither_allows("MPI_Comm_spawn"))
 *             return dither_refuse(0, comm, "MPI_Comm_spawn refused: ...");
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
extern dither_counter dither_counted[], dither_refused[];

/* Whether the code at this address is MPI's own: its calls to itself are not the program's. */
int dither_is_mpi(const void *caller);

/* Whether the user lets a function pass. */
int dither_allows(const char *name);

#ifdef MPI_VERSION
/* Count, say once, and return an error of the communicator's, whose string is the text. */
int dither_refuse(unsigned number, MPI_Comm comm, const char *text);
#endif

#define DITHER_COUNT(number)                                                                      \
    do {                                                                                          \
        if (!dither_is_mpi(__builtin_return_address(0)))                                          \
            atomic_fetch_add_explicit(&dither_counted[number], 1, memory_order_relaxed);          \
    } while (0)

#endif
