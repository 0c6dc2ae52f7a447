/* Fortran's forms of waiting, testing and starting: handles are converted, and C's functions asked. */
#include <stdlib.h>

#include "fortran.h"

enum { FEW = 64 };

/* Requests and statuses of C beside those of Fortran. */
typedef struct {
    int count;
    MPI_Fint *theirs, *their_statuses; /* NULL: ignored */
    MPI_Request few_requests[FEW], *requests;
    MPI_Status few_statuses[FEW], *statuses;
} handles;

static void take(handles *h, MPI_Fint count, MPI_Fint *requests, MPI_Fint *statuses) {
    h->count = count > 0 ? count : 0;
    h->theirs = requests;
    h->their_statuses = dm_fortran_ignored(statuses) ? NULL : statuses;
    h->requests = h->few_requests;
    h->statuses = h->few_statuses;
    if (h->count > FEW) {
        h->requests = malloc((size_t)h->count * sizeof *h->requests);
        h->statuses = malloc((size_t)h->count * sizeof *h->statuses);
        if (!h->requests || !h->statuses) dm_die("no memory for %d requests", h->count);
    }
    for (int i = 0; i < h->count; i++) h->requests[i] = PMPI_Request_f2c(requests[i]);
}

/* Back to Fortran, with the first `statuses` statuses. */
static void put(handles *h, int statuses, int code, MPI_Fint *error) {
    for (int i = 0; i < h->count; i++) h->theirs[i] = PMPI_Request_c2f(h->requests[i]);
    const size_t size = sizeof(MPI_Status) / sizeof(MPI_Fint);
    for (int i = 0; i < statuses && h->their_statuses; i++)
        PMPI_Status_c2f(&h->statuses[i], h->their_statuses + (size_t)i * size);
    if (h->requests != h->few_requests) free(h->requests);
    if (h->statuses != h->few_statuses) free(h->statuses);
    if (error) *error = code;
}

static void wait(MPI_Fint *request, MPI_Fint *status, MPI_Fint *error) {
    handles h;
    take(&h, 1, request, status);
    const int code = MPI_Wait(h.requests, h.statuses);
    put(&h, code == MPI_SUCCESS, code, error);
}

static void test(MPI_Fint *request, MPI_Fint *flag, MPI_Fint *status, MPI_Fint *error) {
    handles h;
    int ended = 0;
    take(&h, 1, request, status);
    const int code = MPI_Test(h.requests, &ended, h.statuses);
    *flag = ended;
    put(&h, ended, code, error);
}

static void waitall(integer count, MPI_Fint *requests, MPI_Fint *statuses, MPI_Fint *error) {
    handles h;
    take(&h, *count, requests, statuses);
    const int code = MPI_Waitall(h.count, h.requests, h.statuses);
    put(&h, h.count, code, error);
}

static void testall(integer count, MPI_Fint *requests, MPI_Fint *flag, MPI_Fint *statuses,
                    MPI_Fint *error) {
    handles h;
    int ended = 0;
    take(&h, *count, requests, statuses);
    const int code = MPI_Testall(h.count, h.requests, &ended, h.statuses);
    *flag = ended;
    put(&h, ended ? h.count : 0, code, error);
}

static MPI_Fint from_one(int index) { return index == MPI_UNDEFINED ? MPI_UNDEFINED : index + 1; }

static void waitany(integer count, MPI_Fint *requests, MPI_Fint *index, MPI_Fint *status,
                    MPI_Fint *error) {
    handles h;
    int which = MPI_UNDEFINED;
    take(&h, *count, requests, status);
    const int code = MPI_Waitany(h.count, h.requests, &which, h.statuses);
    *index = from_one(which);
    put(&h, code == MPI_SUCCESS && h.count > 0, code, error);
}

static void testany(integer count, MPI_Fint *requests, MPI_Fint *index, MPI_Fint *flag,
                    MPI_Fint *status, MPI_Fint *error) {
    handles h;
    int which = MPI_UNDEFINED, ended = 0;
    take(&h, *count, requests, status);
    const int code = MPI_Testany(h.count, h.requests, &which, &ended, h.statuses);
    *flag = ended;
    *index = from_one(which);
    put(&h, ended && h.count > 0, code, error);
}

static void some(int all, integer count, MPI_Fint *requests, MPI_Fint *ended, MPI_Fint *indices,
                 MPI_Fint *statuses, MPI_Fint *error) {
    handles h;
    int few[FEW], *which = few, found = MPI_UNDEFINED;
    take(&h, *count, requests, statuses);
    if (h.count > FEW) which = malloc((size_t)h.count * sizeof *which);
    if (!which) dm_die("no memory for %d requests", h.count);
    const int code = all ? MPI_Waitsome(h.count, h.requests, &found, which, h.statuses)
                         : MPI_Testsome(h.count, h.requests, &found, which, h.statuses);
    *ended = found;
    const int known = found == MPI_UNDEFINED ? 0 : found;
    for (int i = 0; i < known; i++) indices[i] = which[i] + 1;
    put(&h, known, code, error);
    if (which != few) free(which);
}

static void waitsome(integer count, MPI_Fint *requests, MPI_Fint *ended, MPI_Fint *indices,
                     MPI_Fint *statuses, MPI_Fint *error) {
    some(1, count, requests, ended, indices, statuses, error);
}

static void testsome(integer count, MPI_Fint *requests, MPI_Fint *ended, MPI_Fint *indices,
                     MPI_Fint *statuses, MPI_Fint *error) {
    some(0, count, requests, ended, indices, statuses, error);
}

static int start_one(MPI_Fint *request) {
    MPI_Request held = PMPI_Request_f2c(*request);
    const int code = MPI_Start(&held);
    *request = PMPI_Request_c2f(held);
    return code;
}

static void start(MPI_Fint *request, MPI_Fint *error) {
    const int code = start_one(request);
    if (error) *error = code;
}

static void startall(integer count, MPI_Fint *requests, MPI_Fint *error) {
    int code = MPI_SUCCESS;
    for (MPI_Fint i = 0; i < *count && code == MPI_SUCCESS; i++) code = start_one(&requests[i]);
    if (error) *error = code;
}

static void request_free(MPI_Fint *request, MPI_Fint *error) {
    MPI_Request held = PMPI_Request_f2c(*request);
    const int code = MPI_Request_free(&held);
    *request = PMPI_Request_c2f(held);
    if (error) *error = code;
}

#define wait_module wait
#define test_module test
#define waitall_module waitall
#define testall_module testall
#define waitany_module waitany
#define testany_module testany
#define waitsome_module waitsome
#define testsome_module testsome
#define start_module start
#define startall_module startall
#define request_free_module request_free

NAMES(test, TEST, (MPI_Fint * request, MPI_Fint *flag, MPI_Fint *status, MPI_Fint *error),
      (request, flag, status, error))
NAMES(testall, TESTALL,
      (integer count, MPI_Fint *requests, MPI_Fint *flag, MPI_Fint *statuses, MPI_Fint *error),
      (count, requests, flag, statuses, error))
NAMES(testany, TESTANY,
      (integer count, MPI_Fint *requests, MPI_Fint *index, MPI_Fint *flag, MPI_Fint *status,
       MPI_Fint *error),
      (count, requests, index, flag, status, error))
NAMES(testsome, TESTSOME,
      (integer count, MPI_Fint *requests, MPI_Fint *ended, MPI_Fint *indices, MPI_Fint *statuses,
       MPI_Fint *error),
      (count, requests, ended, indices, statuses, error))
NAMES(wait, WAIT, (MPI_Fint * request, MPI_Fint *status, MPI_Fint *error), (request, status, error))
NAMES(waitall, WAITALL, (integer count, MPI_Fint *requests, MPI_Fint *statuses, MPI_Fint *error),
      (count, requests, statuses, error))
NAMES(waitany, WAITANY,
      (integer count, MPI_Fint *requests, MPI_Fint *index, MPI_Fint *status, MPI_Fint *error),
      (count, requests, index, status, error))
NAMES(waitsome, WAITSOME,
      (integer count, MPI_Fint *requests, MPI_Fint *ended, MPI_Fint *indices, MPI_Fint *statuses,
       MPI_Fint *error),
      (count, requests, ended, indices, statuses, error))
NAMES(start, START, (MPI_Fint * request, MPI_Fint *error), (request, error))
NAMES(startall, STARTALL, (integer count, MPI_Fint *requests, MPI_Fint *error),
      (count, requests, error))
NAMES(request_free, REQUEST_FREE, (MPI_Fint * request, MPI_Fint *error), (request, error))
