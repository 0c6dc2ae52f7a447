/* What dither keeps for each communicator: an attribute of it, freed with it. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "mpi_core.h"

enum { PLACES = 16 };

/* The last communicators seen, by handle: asking MPI for an attribute costs as much as a short sum. */
typedef struct {
    _Atomic MPI_Comm comm;
    _Atomic(dm_group *) group;
} place;

static place places[PLACES];
static int keyval = MPI_KEYVAL_INVALID;
static dm_group *groups;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER, making = PTHREAD_MUTEX_INITIALIZER;

static place *place_of(MPI_Comm comm) {
    uintptr_t number = (uintptr_t)comm;
    return &places[(number ^ number >> 4 ^ number >> 12) % PLACES];
}

static dm_group *remembered(MPI_Comm comm) {
    place *at = place_of(comm);
    if (atomic_load_explicit(&at->comm, memory_order_acquire) != comm) return NULL;
    dm_group *group = atomic_load_explicit(&at->group, memory_order_acquire);
    return atomic_load_explicit(&at->comm, memory_order_acquire) == comm ? group : NULL;
}

static void remember(MPI_Comm comm, dm_group *group) {
    place *at = place_of(comm);
    pthread_mutex_lock(&lock);
    atomic_store(&at->comm, MPI_COMM_NULL);
    atomic_store(&at->group, group);
    if (group) atomic_store(&at->comm, comm);
    pthread_mutex_unlock(&lock);
}

static void destroy(dm_group *group) {
    dm_worker_close(group);
    dm_segment_close(group);
    dm_pads_close(group);
    dm_purse_close(group);
    dm_budget_return(group->quota);
    if (group->own != MPI_COMM_NULL) PMPI_Comm_free(&group->own);
    pthread_mutex_destroy(&group->turn);
    free(group->floats);
    free(group->sums);
    free(group->message);
    free(group);
}

void dm_group_release(dm_group *group) {
    if (atomic_fetch_sub(&group->references, 1) == 1) destroy(group);
}

static void forget(dm_group *group) {
    pthread_mutex_lock(&lock);
    for (dm_group **at = &groups; *at; at = &(*at)->next)
        if (*at == group) {
            *at = group->next;
            break;
        }
    pthread_mutex_unlock(&lock);
    if (remembered(group->comm) == group) remember(group->comm, NULL);
}

/* The communicator is freed; operations under way keep the rest. */
static int freed(MPI_Comm comm, int key, void *value, void *extra) {
    dm_group *group = value;
    (void)comm, (void)key, (void)extra;
    forget(group);
    group->gone = 1;
    group->comm = MPI_COMM_NULL; /* its handle may soon be another's */
    dm_group_release(group);
    return MPI_SUCCESS;
}

void dm_groups_init(void) {
    for (int i = 0; i < PLACES; i++) atomic_store(&places[i].comm, MPI_COMM_NULL);
    PMPI_Comm_create_keyval(MPI_COMM_NULL_COPY_FN, freed, &keyval, NULL);
}

static int by_length(const void *a, const void *b) {
    const size_t x = ((const dm_source *)a)->most, y = ((const dm_source *)b)->most;
    return (x > y) - (x < y);
}

/* The lattices for this number of ranks. */
static void find_sources(dm_group *group) {
    for (int g = 0; g < dm.plan.grid_count && group->source_count < DM_SOURCES; g++) {
        const dm_grid *grid = &dm.plan.grids[g];
        if (grid->ranks != group->ranks) continue;
        /* Without noise, as in tests: at this sigma all draws are zero. */
        const double sigma = dm.plan.mode == DM_PRIVATE ? grid->sigma : 0x1p-40;
        dm_source *source = &group->sources[group->source_count++];
        source->most = (size_t)1 << grid->log_length;
        source->how = (dither_release){.grid = grid->grid,
                                       .key = dm.key,
                                       .sigma = sigma,
                                       .factor = 1,
                                       .scale = 1};
        if (dm.plan.mode != DM_ENCRYPTED)
            source->how.pool = dm_pool_for(sigma, grid->log_length);
    }
    qsort(group->sources, (size_t)group->source_count, sizeof *group->sources, by_length);
}

dm_source *dm_source_for(dm_group *group, size_t count) {
    for (int i = 0; i < group->source_count; i++)
        if (count <= group->sources[i].most) return &group->sources[i];
    return NULL;
}

/* No MPI_Comm_dup: that would copy the program's attributes, and run its code. */
static int own_communicator(dm_group *group) {
    MPI_Group all;
    int status = PMPI_Comm_group(group->comm, &all);
    if (status != MPI_SUCCESS) return status;
    status = PMPI_Comm_create(group->comm, all, &group->own);
    PMPI_Group_free(&all);
    if (status != MPI_SUCCESS) return status;
    PMPI_Comm_set_errhandler(group->own, MPI_ERRORS_RETURN);
    if (getrandom(&group->nonce, sizeof group->nonce, 0) != (ssize_t)sizeof group->nonce)
        group->nonce = dm_now();
    return PMPI_Bcast(&group->nonce, 1, MPI_UINT64_T, 0, group->own);
}

static void establish(dm_group *group) {
    if (own_communicator(group) != MPI_SUCCESS)
        dm_die("MPI has no communicator left for dither's own messages");
    dm_host_look(group);
    if (group->ranks > 1) dm_segment_open(group);
    if (dm.plan.mode == DM_ENCRYPTED) dm_pads_open(group);
}

void dm_group_establish(dm_group *group) {
    if (group->established) return;
    pthread_mutex_lock(&group->turn);
    if (!group->established) establish(group);
    group->established = 1;
    pthread_mutex_unlock(&group->turn);
}

/* Of this rank alone: a call that does not block must not wait for others. */
static dm_group *make(MPI_Comm comm) {
    dm_group *group = calloc(1, sizeof *group);
    if (!group) dm_die("no memory is left for a communicator");
    group->comm = comm;
    group->own = MPI_COMM_NULL;
    group->culprit = -1;
    group->references = 1;
    pthread_mutex_init(&group->turn, NULL);
    PMPI_Comm_rank(comm, &group->rank);
    PMPI_Comm_size(comm, &group->ranks);
    find_sources(group);
    pthread_mutex_lock(&lock);
    group->next = groups;
    groups = group;
    pthread_mutex_unlock(&lock);
    PMPI_Comm_set_attr(comm, keyval, group);
    return group;
}

/* Operations in MPI's hands end first: Open MPI does not keep the communicator for them. All ranks are here, or
 * come. */
static void leave(MPI_Comm comm) {
    int found = 0;
    void *value = NULL;
    if (!dm_live || !dm.ready || comm == MPI_COMM_NULL) return;
    PMPI_Comm_get_attr(comm, keyval, &value, &found);
    dm_group *group = found ? value : NULL;
    while (group && group->by_mpi > 0) dm_progress();
}

DITHER_EXPORT int MPI_Comm_free(MPI_Comm *comm) {
    if (comm) leave(*comm);
    return PMPI_Comm_free(comm);
}

DITHER_EXPORT int MPI_Comm_disconnect(MPI_Comm *comm) {
    if (comm) leave(*comm);
    return PMPI_Comm_disconnect(comm);
}

dm_group *dm_group_of(MPI_Comm comm) {
    void *value = NULL;
    int found = 0;
    dm_group *group = remembered(comm);
    if (group) return group;
    int inter = 0;
    if (PMPI_Comm_test_inter(comm, &inter) != MPI_SUCCESS || inter) return NULL;
    pthread_mutex_lock(&making);
    PMPI_Comm_get_attr(comm, keyval, &value, &found);
    group = found ? value : make(comm);
    pthread_mutex_unlock(&making);
    remember(comm, group);
    return group;
}

void dm_groups_close(void) {
    for (;;) {
        pthread_mutex_lock(&lock);
        dm_group *group = groups;
        pthread_mutex_unlock(&lock);
        if (!group) break;
        PMPI_Comm_delete_attr(group->comm, keyval);
    }
    PMPI_Comm_free_keyval(&keyval);
}
