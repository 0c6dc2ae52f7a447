/* Fortran's forms.
 *
 * MPICH's Fortran layer calls C's functions, which are ours already; Open MPI's calls PMPI's, so the
 * protected calls are here by their Fortran names: handles are converted, and the sentinels MPI_IN_PLACE and
 * MPI_BOTTOM, which are addresses of that layer's variables. Initialising
 * and finalising go through the layer's own functions, since it has work of its own there. Names end as
 * compilers end them: in one underscore, two, none, or in capitals; in none only the protected calls, since C
 * libraries have functions with names such as mpi_init: a program of that spelling is refused its sums. Open
 * MPI's modules of Fortran 2008 call ompi_..._f. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>

#include "fortran.h"

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

int dm_fortran_ignored(const void *status) {
    pthread_once(&sentinels_known, know_sentinels);
    if (!status || status == MPI_F_STATUS_IGNORE || status == MPI_F_STATUSES_IGNORE) return 1;
    for (int i = 0; i < 2 * SPELLINGS; i++)
        if (status == no_status[i]) return 1;
    return 0;
}

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

NAMES(init, INIT, (MPI_Fint * error), (error))
NAMES(init_thread, INIT_THREAD, (integer required, MPI_Fint *provided, MPI_Fint *error),
      (required, provided, error))
NAMES(finalize, FINALIZE, (MPI_Fint * error), (error))
NAMES(abort, ABORT, (integer comm, integer code, MPI_Fint *error), (comm, code, error))
