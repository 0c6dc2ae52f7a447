/* MPI's own calls, for what the user lets pass. */
#include <limits.h>

#include "mpi_core.h"

#ifdef DM_LARGE
int dm_clear(const dm_arguments *a, MPI_Request *request, MPI_Info info) {
    switch (a->call) {
    case DM_ALLREDUCE:
        return PMPI_Allreduce_c(a->send, a->receive, a->count, a->type, a->op, a->comm);
    case DM_REDUCE:
        return PMPI_Reduce_c(a->send, a->receive, a->count, a->type, a->op, a->root, a->comm);
    case DM_IALLREDUCE:
        return PMPI_Iallreduce_c(a->send, a->receive, a->count, a->type, a->op, a->comm, request);
    case DM_IREDUCE:
        return PMPI_Ireduce_c(a->send, a->receive, a->count, a->type, a->op, a->root, a->comm,
                              request);
    case DM_ALLREDUCE_INIT:
        return PMPI_Allreduce_init_c(a->send, a->receive, a->count, a->type, a->op, a->comm, info,
                                     request);
    default:
        return PMPI_Reduce_init_c(a->send, a->receive, a->count, a->type, a->op, a->root, a->comm,
                                  info, request);
    }
}
#else
int dm_clear(const dm_arguments *a, MPI_Request *request, MPI_Info info) {
    const int count = (int)a->count; /* there is no form that takes more */
    (void)info;
    switch (a->call) {
    case DM_ALLREDUCE:
        return PMPI_Allreduce(a->send, a->receive, count, a->type, a->op, a->comm);
    case DM_REDUCE:
        return PMPI_Reduce(a->send, a->receive, count, a->type, a->op, a->root, a->comm);
    case DM_IALLREDUCE:
        return PMPI_Iallreduce(a->send, a->receive, count, a->type, a->op, a->comm, request);
    case DM_IREDUCE:
        return PMPI_Ireduce(a->send, a->receive, count, a->type, a->op, a->root, a->comm, request);
#ifdef DM_PERSISTENT
    case DM_ALLREDUCE_INIT:
        return PMPI_Allreduce_init(a->send, a->receive, count, a->type, a->op, a->comm, info,
                                   request);
    case DM_REDUCE_INIT:
        return PMPI_Reduce_init(a->send, a->receive, count, a->type, a->op, a->root, a->comm, info,
                                request);
#endif
    default:
        return MPI_ERR_OTHER;
    }
}
#endif
