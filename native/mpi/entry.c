/* The protected calls, in C's forms. Fortran's are in fortran.c.
 *
 * Whoever calls: MPI itself does not call these (it has PMPI's, or its own inner ones), and no test of the
 * caller's address can tell it from a callback of the program that ends in such a call. */
#include "mpi_core.h"

DITHER_EXPORT int MPI_Allreduce(const void *send, void *receive, int count, MPI_Datatype type,
                                MPI_Op op, MPI_Comm comm) {
    const dm_arguments a = {DM_ALLREDUCE, send, receive, count, type, op, comm, -1};
    return dm_blocking(&a);
}

DITHER_EXPORT int MPI_Reduce(const void *send, void *receive, int count, MPI_Datatype type,
                             MPI_Op op, int root, MPI_Comm comm) {
    const dm_arguments a = {DM_REDUCE, send, receive, count, type, op, comm, root};
    return dm_blocking(&a);
}

DITHER_EXPORT int MPI_Iallreduce(const void *send, void *receive, int count, MPI_Datatype type,
                                 MPI_Op op, MPI_Comm comm, MPI_Request *request) {
    const dm_arguments a = {DM_IALLREDUCE, send, receive, count, type, op, comm, -1};
    return dm_start(&a, request);
}

DITHER_EXPORT int MPI_Ireduce(const void *send, void *receive, int count, MPI_Datatype type,
                              MPI_Op op, int root, MPI_Comm comm, MPI_Request *request) {
    const dm_arguments a = {DM_IREDUCE, send, receive, count, type, op, comm, root};
    return dm_start(&a, request);
}

#ifdef DM_PERSISTENT
DITHER_EXPORT int MPI_Allreduce_init(const void *send, void *receive, int count, MPI_Datatype type,
                                     MPI_Op op, MPI_Comm comm, MPI_Info info,
                                     MPI_Request *request) {
    const dm_arguments a = {DM_ALLREDUCE_INIT, send, receive, count, type, op, comm, -1};
    return dm_prepare(&a, info, request);
}

DITHER_EXPORT int MPI_Reduce_init(const void *send, void *receive, int count, MPI_Datatype type,
                                  MPI_Op op, int root, MPI_Comm comm, MPI_Info info,
                                  MPI_Request *request) {
    const dm_arguments a = {DM_REDUCE_INIT, send, receive, count, type, op, comm, root};
    return dm_prepare(&a, info, request);
}
#endif

#ifdef DM_LARGE
DITHER_EXPORT int MPI_Allreduce_c(const void *send, void *receive, MPI_Count count,
                                  MPI_Datatype type, MPI_Op op, MPI_Comm comm) {
    const dm_arguments a = {DM_ALLREDUCE, send, receive, count, type, op, comm, -1};
    return dm_blocking(&a);
}

DITHER_EXPORT int MPI_Reduce_c(const void *send, void *receive, MPI_Count count, MPI_Datatype type,
                               MPI_Op op, int root, MPI_Comm comm) {
    const dm_arguments a = {DM_REDUCE, send, receive, count, type, op, comm, root};
    return dm_blocking(&a);
}

DITHER_EXPORT int MPI_Iallreduce_c(const void *send, void *receive, MPI_Count count,
                                   MPI_Datatype type, MPI_Op op, MPI_Comm comm,
                                   MPI_Request *request) {
    const dm_arguments a = {DM_IALLREDUCE, send, receive, count, type, op, comm, -1};
    return dm_start(&a, request);
}

DITHER_EXPORT int MPI_Ireduce_c(const void *send, void *receive, MPI_Count count, MPI_Datatype type,
                                MPI_Op op, int root, MPI_Comm comm, MPI_Request *request) {
    const dm_arguments a = {DM_IREDUCE, send, receive, count, type, op, comm, root};
    return dm_start(&a, request);
}

DITHER_EXPORT int MPI_Allreduce_init_c(const void *send, void *receive, MPI_Count count,
                                       MPI_Datatype type, MPI_Op op, MPI_Comm comm, MPI_Info info,
                                       MPI_Request *request) {
    const dm_arguments a = {DM_ALLREDUCE_INIT, send, receive, count, type, op, comm, -1};
    return dm_prepare(&a, info, request);
}

DITHER_EXPORT int MPI_Reduce_init_c(const void *send, void *receive, MPI_Count count,
                                    MPI_Datatype type, MPI_Op op, int root, MPI_Comm comm,
                                    MPI_Info info, MPI_Request *request) {
    const dm_arguments a = {DM_REDUCE_INIT, send, receive, count, type, op, comm, root};
    return dm_prepare(&a, info, request);
}
#endif
