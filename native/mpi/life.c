/* MPI_Init and MPI_Finalize. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "mpi_core.h"

dm_process dm;

static void read_plan(void) {
    const char *path = getenv("DITHER_MPI_PLAN");
    if (!path || !*path) dm_die("there is no plan: start the program by 'dither mpirun'");
    const char *wrong = dm_plan_read(path, &dm.plan);
    if (wrong) dm_die("the plan file is not usable: %s", wrong);
    if (dm.plan.ranks != dm.size)
        dm_die("the plan is for %d ranks, and MPI_COMM_WORLD has %d", dm.plan.ranks, dm.size);
}

static void open_core(void) {
    dm.kernels = dither_select(dither_cpu_features());
    const dither_status status = dither_key_new(dither_preferred_cipher(dm.kernels), &dm.key);
    if (status != DITHER_OK) dm_die("no key for noise: %s", dither_status_text(status));
}

/* A child of fork has its parent's account in memory, but no account. */
static void in_child(void) { dm.ready = 0; }

static void open_all(void) {
    static int watched;
    if (!watched) watched = pthread_atfork(NULL, NULL, in_child) == 0;
    dm_clock_start();
    PMPI_Comm_rank(MPI_COMM_WORLD, &dm.rank);
    PMPI_Comm_size(MPI_COMM_WORLD, &dm.size);
    read_plan();
    dm_agent_open();
    open_core();
    dm_kinds_init();
    dm_errors_init();
    dm_groups_init();
    MPI_Group alone;
    PMPI_Comm_group(MPI_COMM_SELF, &alone);
    PMPI_Comm_create(MPI_COMM_SELF, alone, &dm.self);
    PMPI_Group_free(&alone);
    dm.ready = 1;
    /* Now rather than at the first call, so that noise is made while the program starts. */
    dm_group_establish(dm_group_of(MPI_COMM_WORLD));
    if (dm.plan.warm) dm_pools_warm();
}

void dm_open(void) {
    if (dm.ready) return;
    dm_ours_first();
    const dither_arithmetic program = dither_arithmetic_enter();
    open_all();
    dither_arithmetic_leave(program);
}

void dm_close(void) {
    if (!dm.ready) return;
    dm_finish();
    dm.ready = 0;
    dm_groups_close();
    dm_agent_bye();
    dm_pools_free();
    dither_key_free(dm.key);
    dm.key = NULL;
    PMPI_Comm_free(&dm.self);
    free(dm.plan.grids);
    dm.plan.grids = NULL;
    dm.plan.grid_count = 0;
}

DITHER_EXPORT int MPI_Init(int *argc, char ***argv) {
    dm_one_mpi();
    const int status = PMPI_Init(argc, argv);
    if (status == MPI_SUCCESS) dm_open();
    return status;
}

DITHER_EXPORT int MPI_Init_thread(int *argc, char ***argv, int required, int *provided) {
    dm_one_mpi();
    const int status = PMPI_Init_thread(argc, argv, required, provided);
    if (status == MPI_SUCCESS) dm_open();
    return status;
}

DITHER_EXPORT int MPI_Finalize(void) {
    dm_close();
    return PMPI_Finalize();
}

/* Level 2, of no meaning to MPI: wait until all that is made ahead is ready. For benchmarks. */
DITHER_EXPORT int MPI_Pcontrol(const int level, ...) {
    if (!dm.ready || level != 2) return MPI_SUCCESS;
    dm_pads_warm(dm_group_of(MPI_COMM_WORLD));
    dm_pools_warm();
    return MPI_SUCCESS;
}

DITHER_EXPORT int MPI_Abort(MPI_Comm comm, int code) {
    dm_agent_figures();
    return PMPI_Abort(comm, code);
}

#if MPI_VERSION >= 4 || (defined(OMPI_MAJOR_VERSION) && OMPI_MAJOR_VERSION >= 5)
/* A session has no world whose ranks could hold accounts. */
DITHER_EXPORT int MPI_Session_init(MPI_Info info, MPI_Errhandler errors, MPI_Session *session) {
    if (dither_is_mpi(__builtin_return_address(0))) return PMPI_Session_init(info, errors, session);
    if (dm.ready) return PMPI_Session_init(info, errors, session);
    dm_die("MPI_Session_init without MPI_Init is not protected; call MPI_Init first");
}
#endif
