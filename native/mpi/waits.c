/* Waiting, testing, starting. While no operation of ours is under way these are MPI's own.
 *
 * Else waiting is testing, in turns with a look at ours: MPI's own waiting would not look. */
#include "mpi_core.h"

#define IDLE (!atomic_load_explicit(&dm_live, memory_order_relaxed))

DITHER_EXPORT int MPI_Test(MPI_Request *request, int *flag, MPI_Status *status) {
    if (!IDLE) dm_progress();
    const int code = PMPI_Test(request, flag, status);
    return *flag ? dm_late_error(code) : code;
}

DITHER_EXPORT int MPI_Testall(int count, MPI_Request requests[], int *flag, MPI_Status statuses[]) {
    if (!IDLE) dm_progress();
    const int code = PMPI_Testall(count, requests, flag, statuses);
    return *flag ? dm_late_error(code) : code;
}

DITHER_EXPORT int MPI_Testany(int count, MPI_Request requests[], int *index, int *flag,
                              MPI_Status *status) {
    if (!IDLE) dm_progress();
    const int code = PMPI_Testany(count, requests, index, flag, status);
    return *flag ? dm_late_error(code) : code;
}

DITHER_EXPORT int MPI_Testsome(int count, MPI_Request requests[], int *ended, int indices[],
                               MPI_Status statuses[]) {
    if (!IDLE) dm_progress();
    const int code = PMPI_Testsome(count, requests, ended, indices, statuses);
    return *ended ? dm_late_error(code) : code;
}

DITHER_EXPORT int MPI_Wait(MPI_Request *request, MPI_Status *status) {
    if (IDLE) return dm_late_error(PMPI_Wait(request, status));
    for (unsigned turn = 0;; turn++) {
        int flag = 0;
        const int code = MPI_Test(request, &flag, status);
        if (flag || code != MPI_SUCCESS) return code;
        dm_pause(turn);
    }
}

DITHER_EXPORT int MPI_Waitall(int count, MPI_Request requests[], MPI_Status statuses[]) {
    if (IDLE) return dm_late_error(PMPI_Waitall(count, requests, statuses));
    for (unsigned turn = 0;; turn++) {
        int flag = 0;
        const int code = MPI_Testall(count, requests, &flag, statuses);
        if (flag || code != MPI_SUCCESS) return code;
        dm_pause(turn);
    }
}

DITHER_EXPORT int MPI_Waitany(int count, MPI_Request requests[], int *index, MPI_Status *status) {
    if (IDLE) return dm_late_error(PMPI_Waitany(count, requests, index, status));
    for (unsigned turn = 0;; turn++) {
        int flag = 0;
        const int code = MPI_Testany(count, requests, index, &flag, status);
        if (flag || code != MPI_SUCCESS) return code;
        dm_pause(turn);
    }
}

DITHER_EXPORT int MPI_Waitsome(int count, MPI_Request requests[], int *ended, int indices[],
                               MPI_Status statuses[]) {
    if (IDLE) return dm_late_error(PMPI_Waitsome(count, requests, ended, indices, statuses));
    for (unsigned turn = 0;; turn++) {
        *ended = 0;
        const int code = MPI_Testsome(count, requests, ended, indices, statuses);
        if (*ended || code != MPI_SUCCESS) return code;
        dm_pause(turn);
    }
}

DITHER_EXPORT int MPI_Request_get_status(MPI_Request request, int *flag, MPI_Status *status) {
    if (!IDLE) dm_progress();
    return PMPI_Request_get_status(request, flag, status);
}

#if MPI_VERSION > 4 || (MPI_VERSION == 4 && MPI_SUBVERSION >= 1)
DITHER_EXPORT int MPI_Request_get_status_all(int count, const MPI_Request requests[], int *flag,
                                             MPI_Status statuses[]) {
    if (!IDLE) dm_progress();
    return PMPI_Request_get_status_all(count, requests, flag, statuses);
}

DITHER_EXPORT int MPI_Request_get_status_any(int count, const MPI_Request requests[], int *index,
                                             int *flag, MPI_Status *status) {
    if (!IDLE) dm_progress();
    return PMPI_Request_get_status_any(count, requests, index, flag, status);
}

DITHER_EXPORT int MPI_Request_get_status_some(int count, const MPI_Request requests[], int *ended,
                                              int indices[], MPI_Status statuses[]) {
    if (!IDLE) dm_progress();
    return PMPI_Request_get_status_some(count, requests, ended, indices, statuses);
}
#endif

DITHER_EXPORT int MPI_Start(MPI_Request *request) {
    int found = 0;
    const int code = dm_persistent ? dm_start_prepared(request, &found) : MPI_SUCCESS;
    if (found) return code;
    dm_add(&dm_stats.starts, 1);
    return PMPI_Start(request);
}

DITHER_EXPORT int MPI_Startall(int count, MPI_Request requests[]) {
    if (!dm_persistent) {
        dm_add(&dm_stats.startalls, 1);
        return PMPI_Startall(count, requests);
    }
    for (int i = 0; i < count; i++) {
        const int code = MPI_Start(&requests[i]);
        if (code != MPI_SUCCESS) return code;
    }
    return MPI_SUCCESS;
}

DITHER_EXPORT int MPI_Request_free(MPI_Request *request) {
    if (dm_persistent && request) dm_free_prepared(*request);
    return PMPI_Request_free(request);
}
