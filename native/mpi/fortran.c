/* Fortran's forms.
 *
 * MPICH's Fortran layer calls C's functions, which are ours already; Open MPI's calls PMPI's, so the
 * protected calls are here by their Fortran names: handles are converted, and the sentinels MPI_IN_PLACE and
 * MPI_BOTTOM, which are addresses of that layer's variables; so are those that start and wait. Initialising
 * and finalising go through the layer's own functions, since it has work of its own there. Names end as
 * compilers end them: in one underscore, two, none, or in capitals; in none only the protected calls, since C
 * libraries have functions with names such as mpi_init: a program of that spelling is refused its sums. Open
 * MPI's modules of Fortran 2008 call ompi_..._f. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "mpi_core.h"

static const char *const ENDINGS[] = {"_", "__"};

/* A name of the Fortran layer, however its compiler ends it: "allreduce" of mpi_allreduce_. */
static void *layer(const char *prefix, const char *name, const char *suffix) {
    char whole[96];
    for (size_t e = 0; e < sizeof ENDINGS / sizeof *ENDINGS; e++) {
        strcpy(whole, prefix);
        strcat(whole, name);
        strcat(whole, suffix ? suffix : ENDINGS[e]);
        void *found = dlsym(RTLD_NEXT, whole);
        if (found || suffix) return found;
    }
    return NULL;
}

static void *find(const char *name, int module) {
    return module ? layer("ompi_", name, "_f") : layer("mpi_", name, NULL);
}

/* Addresses that stand for MPI_IN_PLACE and MPI_BOTTOM: Open MPI's are those of variables, MPICH's are kept
 * in variables. */
enum { SPELLINGS = 3 };
static const void *in_place[SPELLINGS], *bottom[SPELLINGS], *no_status[2 * SPELLINGS];
static void *const *kept_in_place, *const *kept_bottom;
static pthread_once_t sentinels_known = PTHREAD_ONCE_INIT;

static void know_sentinels(void) {
    static const char *const in_place_names[SPELLINGS] = {
        "mpi_fortran_in_place_", "mpi_fortran_in_place__", "MPI_FORTRAN_IN_PLACE"};
    static const char *const bottom_names[SPELLINGS] = {
        "mpi_fortran_bottom_", "mpi_fortran_bottom__", "MPI_FORTRAN_BOTTOM"};
    static const char *const status_names[2 * SPELLINGS] = {
        "mpi_fortran_status_ignore_",   "mpi_fortran_status_ignore__",
        "MPI_FORTRAN_STATUS_IGNORE",    "mpi_fortran_statuses_ignore_",
        "mpi_fortran_statuses_ignore__", "MPI_FORTRAN_STATUSES_IGNORE"};
    for (int i = 0; i < 2 * SPELLINGS; i++) no_status[i] = dlsym(RTLD_DEFAULT, status_names[i]);
    for (int i = 0; i < SPELLINGS; i++) {
        in_place[i] = dlsym(RTLD_DEFAULT, in_place_names[i]);
        bottom[i] = dlsym(RTLD_DEFAULT, bottom_names[i]);
    }
    kept_in_place = dlsym(RTLD_DEFAULT, "MPIR_F_MPI_IN_PLACE");
    kept_bottom = dlsym(RTLD_DEFAULT, "MPIR_F_MPI_BOTTOM");
}

static const void *buffer(const void *address) {
    pthread_once(&sentinels_known, know_sentinels);
    if (!address) return address;
    for (int i = 0; i < SPELLINGS; i++) {
        if (address == in_place[i]) return MPI_IN_PLACE;
        if (address == bottom[i]) return MPI_BOTTOM;
    }
    if (kept_in_place && address == *kept_in_place) return MPI_IN_PLACE;
    return kept_bottom && address == *kept_bottom ? MPI_BOTTOM : address;
}

typedef const MPI_Fint *integer;

static dm_arguments arguments(dm_call call, const void *send, void *receive, integer count,
                              integer type, integer op, integer comm, const MPI_Fint *root) {
    return (dm_arguments){call,
                          buffer(send),
                          (void *)(uintptr_t)buffer(receive),
                          *count,
                          PMPI_Type_f2c(*type),
                          PMPI_Op_f2c(*op),
                          PMPI_Comm_f2c(*comm),
                          root ? *root : -1};
}

static void request_to_fortran(int code, MPI_Request made, MPI_Fint *request, MPI_Fint *error) {
    if (code == MPI_SUCCESS) *request = PMPI_Request_c2f(made);
    if (error) *error = code;
}

static void allreduce(const void *send, void *receive, integer count, integer type, integer op,
                      integer comm, MPI_Fint *error) {
    const dm_arguments a =
        arguments(DM_ALLREDUCE, send, receive, count, type, op, comm, NULL);
    const int code = dm_blocking(&a);
    if (error) *error = code;
}

static void reduce(const void *send, void *receive, integer count, integer type, integer op,
                   integer root, integer comm, MPI_Fint *error) {
    const dm_arguments a = arguments(DM_REDUCE, send, receive, count, type, op, comm, root);
    const int code = dm_blocking(&a);
    if (error) *error = code;
}

static void iallreduce(const void *send, void *receive, integer count, integer type, integer op,
                       integer comm, MPI_Fint *request, MPI_Fint *error) {
    MPI_Request made = MPI_REQUEST_NULL;
    const dm_arguments a =
        arguments(DM_IALLREDUCE, send, receive, count, type, op, comm, NULL);
    const int code = dm_start(&a, &made);
    request_to_fortran(code, made, request, error);
}

static void ireduce(const void *send, void *receive, integer count, integer type, integer op,
                    integer root, integer comm, MPI_Fint *request, MPI_Fint *error) {
    MPI_Request made = MPI_REQUEST_NULL;
    const dm_arguments a = arguments(DM_IREDUCE, send, receive, count, type, op, comm, root);
    const int code = dm_start(&a, &made);
    request_to_fortran(code, made, request, error);
}

static void allreduce_init(const void *send, void *receive, integer count, integer type, integer op,
                           integer comm, integer info, MPI_Fint *request, MPI_Fint *error) {
    MPI_Request made = MPI_REQUEST_NULL;
    const dm_arguments a =
        arguments(DM_ALLREDUCE_INIT, send, receive, count, type, op, comm, NULL);
    const int code = dm_prepare(&a, PMPI_Info_f2c(*info), &made);
    request_to_fortran(code, made, request, error);
}

static void reduce_init(const void *send, void *receive, integer count, integer type, integer op,
                        integer root, integer comm, integer info, MPI_Fint *request,
                        MPI_Fint *error) {
    MPI_Request made = MPI_REQUEST_NULL;
    const dm_arguments a = arguments(DM_REDUCE_INIT, send, receive, count, type, op, comm, root);
    const int code = dm_prepare(&a, PMPI_Info_f2c(*info), &made);
    request_to_fortran(code, made, request, error);
}

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

#define PLAIN(lower, LIST, GIVEN)                                                                 \
    DITHER_EXPORT void mpi_##lower LIST;                                                          \
    void mpi_##lower LIST { lower GIVEN; }

#define allreduce_module allreduce
#define reduce_module reduce
#define iallreduce_module iallreduce
#define ireduce_module ireduce
#define allreduce_init_module allreduce_init
#define reduce_init_module reduce_init

NAMES(allreduce, ALLREDUCE,
      (const void *send, void *receive, integer count, integer type, integer op, integer comm,
       MPI_Fint *error),
      (send, receive, count, type, op, comm, error))
PLAIN(allreduce,
      (const void *send, void *receive, integer count, integer type, integer op, integer comm,
       MPI_Fint *error),
      (send, receive, count, type, op, comm, error))
NAMES(reduce, REDUCE,
      (const void *send, void *receive, integer count, integer type, integer op, integer root,
       integer comm, MPI_Fint *error),
      (send, receive, count, type, op, root, comm, error))
PLAIN(reduce,
      (const void *send, void *receive, integer count, integer type, integer op, integer root,
       integer comm, MPI_Fint *error),
      (send, receive, count, type, op, root, comm, error))
NAMES(iallreduce, IALLREDUCE,
      (const void *send, void *receive, integer count, integer type, integer op, integer comm,
       MPI_Fint *request, MPI_Fint *error),
      (send, receive, count, type, op, comm, request, error))
PLAIN(iallreduce,
      (const void *send, void *receive, integer count, integer type, integer op, integer comm,
       MPI_Fint *request, MPI_Fint *error),
      (send, receive, count, type, op, comm, request, error))
NAMES(ireduce, IREDUCE,
      (const void *send, void *receive, integer count, integer type, integer op, integer root,
       integer comm, MPI_Fint *request, MPI_Fint *error),
      (send, receive, count, type, op, root, comm, request, error))
PLAIN(ireduce,
      (const void *send, void *receive, integer count, integer type, integer op, integer root,
       integer comm, MPI_Fint *request, MPI_Fint *error),
      (send, receive, count, type, op, root, comm, request, error))
NAMES(allreduce_init, ALLREDUCE_INIT,
      (const void *send, void *receive, integer count, integer type, integer op, integer comm,
       integer info, MPI_Fint *request, MPI_Fint *error),
      (send, receive, count, type, op, comm, info, request, error))
PLAIN(allreduce_init,
      (const void *send, void *receive, integer count, integer type, integer op, integer comm,
       integer info, MPI_Fint *request, MPI_Fint *error),
      (send, receive, count, type, op, comm, info, request, error))
NAMES(reduce_init, REDUCE_INIT,
      (const void *send, void *receive, integer count, integer type, integer op, integer root,
       integer comm, integer info, MPI_Fint *request, MPI_Fint *error),
      (send, receive, count, type, op, root, comm, info, request, error))
PLAIN(reduce_init,
      (const void *send, void *receive, integer count, integer type, integer op, integer root,
       integer comm, integer info, MPI_Fint *request, MPI_Fint *error),
      (send, receive, count, type, op, root, comm, info, request, error))

/* ---- through the layer's own functions, where there is one ---- */

typedef void init_function(MPI_Fint *);
typedef void init_thread_function(integer, MPI_Fint *, MPI_Fint *);

static void init_by(int module, MPI_Fint *error) {
    MPI_Fint code = MPI_SUCCESS;
    init_function *own;
    *(void **)&own = find("init", module);
    dm_one_mpi();
    if (own)
        own(&code);
    else
        code = PMPI_Init(NULL, NULL);
    if (code == MPI_SUCCESS) dm_open();
    if (error) *error = code;
}

static void init_thread_by(int module, integer required, MPI_Fint *provided, MPI_Fint *error) {
    MPI_Fint code = MPI_SUCCESS;
    int level = 0;
    init_thread_function *own;
    *(void **)&own = find("init_thread", module);
    dm_one_mpi();
    if (own)
        own(required, provided, &code);
    else
        code = PMPI_Init_thread(NULL, NULL, *required, &level), *provided = level;
    if (code == MPI_SUCCESS) dm_open();
    if (error) *error = code;
}

static void finalize_by(int module, MPI_Fint *error) {
    MPI_Fint code = MPI_SUCCESS;
    init_function *own;
    *(void **)&own = find("finalize", module);
    dm_close();
    if (own)
        own(&code);
    else
        code = PMPI_Finalize();
    if (error) *error = code;
}

/* ---- waiting, testing, starting ---- */

enum { FEW = 64 };

/* Requests and statuses of C beside those of Fortran. */
typedef struct {
    int count;
    MPI_Fint *theirs, *their_statuses; /* NULL: ignored */
    MPI_Request few_requests[FEW], *requests;
    MPI_Status few_statuses[FEW], *statuses;
} handles;

static int ignored(const void *status) {
    pthread_once(&sentinels_known, know_sentinels);
    if (!status || status == MPI_F_STATUS_IGNORE || status == MPI_F_STATUSES_IGNORE) return 1;
    for (int i = 0; i < 2 * SPELLINGS; i++)
        if (status == no_status[i]) return 1;
    return 0;
}

static void take(handles *h, MPI_Fint count, MPI_Fint *requests, MPI_Fint *statuses) {
    h->count = count > 0 ? count : 0;
    h->theirs = requests;
    h->their_statuses = ignored(statuses) ? NULL : statuses;
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

static void abort_all(integer comm, integer code, MPI_Fint *error) {
    const int status = MPI_Abort(PMPI_Comm_f2c(*comm), *code);
    if (error) *error = status;
}

#define init(error) init_by(0, error)
#define init_module(error) init_by(1, error)
#define init_thread(...) init_thread_by(0, __VA_ARGS__)
#define init_thread_module(...) init_thread_by(1, __VA_ARGS__)
#define finalize(error) finalize_by(0, error)
#define finalize_module(error) finalize_by(1, error)
#define abort(...) abort_all(__VA_ARGS__)
#define abort_module abort_all
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

NAMES(init, INIT, (MPI_Fint * error), (error))
NAMES(init_thread, INIT_THREAD, (integer required, MPI_Fint *provided, MPI_Fint *error),
      (required, provided, error))
NAMES(finalize, FINALIZE, (MPI_Fint * error), (error))
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
NAMES(abort, ABORT, (integer comm, integer code, MPI_Fint *error), (comm, code, error))
