/* What Fortran's forms share. */
#ifndef DITHER_MPI_FORTRAN_H
#define DITHER_MPI_FORTRAN_H

#include "mpi_core.h"

typedef const MPI_Fint *integer;

/* Whether an address stands for MPI_STATUS_IGNORE or MPI_STATUSES_IGNORE. */
int dm_fortran_ignored(const void *status);

/* One function under all its names. LIST: its parameters with types; GIVEN: without. */
#define NAMES(lower, capital, LIST, GIVEN)                                                        \
    DITHER_EXPORT void mpi_##lower##_ LIST;                                                       \
    DITHER_EXPORT void mpi_##lower##__ LIST;                                                      \
    DITHER_EXPORT void MPI_##capital LIST;                                                        \
    DITHER_EXPORT void ompi_##lower##_f LIST;                                                     \
    void mpi_##lower##_ LIST { lower GIVEN; }                                                     \
    void mpi_##lower##__ LIST { lower GIVEN; }                                                    \
    void MPI_##capital LIST { lower GIVEN; }                                                      \
    void ompi_##lower##_f LIST { lower##_module GIVEN; }

#endif
