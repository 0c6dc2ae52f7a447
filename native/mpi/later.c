/* Non-blocking and persistent calls.
 *
 * What the program holds of a non-blocking one is a generalized request, which MPI's own waiting functions
 * know; of a persistent one, a persistent receive of an empty message from ourselves, which we send when
 * it has ended. So any mix of requests can be waited for, and all that our waiting functions add is to look
 * whether operations have ended. */
#include <stdlib.h>
#include <string.h>

#include "later.h"

enum { KEPT_MOST = 32, TAGS = 32000 };
static const size_t KEEP_BYTES = (size_t)256 << 20;

_Atomic int dm_live, dm_persistent;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static dm_operation *under_way; /* in the order of their starts */
static dm_operation *prepared;
static dm_operation *kept; /* free, with their memory */
static int kept_count, tags;
static _Thread_local int late_error;

int dm_operation_room(dm_operation *operation, size_t bytes) {
    if (bytes <= operation->capacity) return 1;
    free(operation->copy);
    operation->copy = malloc(bytes);
    operation->capacity = operation->copy ? bytes : 0;
    return operation->copy != NULL;
}

static dm_operation *take(void) {
    pthread_mutex_lock(&lock);
    dm_operation *operation = kept;
    if (operation) kept = operation->next, kept_count--;
    pthread_mutex_unlock(&lock);
    return operation ? operation : calloc(1, sizeof *operation);
}

static void give_back(dm_operation *operation) {
    void *copy = operation->copy;
    size_t capacity = operation->capacity;
    if (capacity > KEEP_BYTES) free(copy), copy = NULL, capacity = 0;
    memset(operation, 0, sizeof *operation);
    operation->copy = copy;
    operation->capacity = capacity;
    pthread_mutex_lock(&lock);
    const int keep = kept_count < KEPT_MOST;
    if (keep) operation->next = kept, kept = operation, kept_count++;
    pthread_mutex_unlock(&lock);
    if (keep) return;
    free(copy);
    free(operation);
}

/* ---- generalized requests ---- */

/* Asked by the thread that waits. The error goes around MPI, which would call another handler for it
 * than the communicator's. */
static int query(void *state, MPI_Status *status) {
    const dm_operation *operation = state;
    if (operation->code != MPI_SUCCESS) late_error = operation->code;
    PMPI_Status_set_elements(status, MPI_BYTE, 0);
    PMPI_Status_set_cancelled(status, 0);
    status->MPI_SOURCE = MPI_UNDEFINED;
    status->MPI_TAG = MPI_UNDEFINED;
    return MPI_SUCCESS;
}

static int forget(void *state) {
    give_back(state);
    return MPI_SUCCESS;
}

static int cancel(void *state, int complete) {
    (void)state, (void)complete;
    return MPI_SUCCESS; /* a collective call cannot be cancelled */
}

/* ---- ends ---- */

/* Of a prepared operation that the program freed. */
static void dispose(dm_operation *operation) {
    dm_group *group = operation->group;
    pthread_mutex_lock(&lock);
    for (dm_operation **at = &prepared; *at; at = &(*at)->sibling)
        if (*at == operation) {
            *at = operation->sibling;
            break;
        }
    pthread_mutex_unlock(&lock);
    atomic_fetch_sub(&dm_persistent, 1);
    give_back(operation);
    dm_group_release(group);
}

/* Tell MPI, and so the program. It is in no list any more. */
static void complete(dm_operation *operation) {
    dm_group *group = operation->group;
    if (operation->by_mpi) atomic_fetch_sub(&group->by_mpi, 1);
    if (group->gone) operation->arguments.comm = MPI_COMM_SELF; /* for errors: its handler serves */
    const int code = dm_conclude(&operation->arguments, operation->outcome, group);
    operation->code = code;
    if (!operation->persistent) {
        /* From here on the program may free the operation. */
        PMPI_Grequest_complete(operation->request);
        dm_group_release(group);
        return;
    }
    if (code != MPI_SUCCESS) late_error = code;
    pthread_mutex_lock(&lock);
    operation->active = 0;
    const int tag = operation->tag, over = operation->released;
    pthread_mutex_unlock(&lock);
    PMPI_Send(NULL, 0, MPI_BYTE, 0, tag, dm.self);
    if (over) dispose(operation);
    dm_group_release(group);
}

static int ended(dm_operation *operation) {
    if (atomic_load(&operation->done)) return 1;
    return operation->by_mpi && dm_parts_ended(operation);
}

/* The first that has ended, out of the list. */
static dm_operation *next_ended(void) {
    dm_operation *found = NULL;
    if (pthread_mutex_trylock(&lock)) return NULL; /* another thread looks */
    for (dm_operation **at = &under_way; *at && !found;) {
        if (!ended(*at)) {
            at = &(*at)->next;
            continue;
        }
        found = *at;
        *at = found->next;
    }
    pthread_mutex_unlock(&lock);
    return found;
}

void dm_progress(void) {
    while (dm_live) {
        dm_operation *operation = next_ended();
        if (!operation) return;
        complete(operation);
        atomic_fetch_sub(&dm_live, 1);
    }
}

int dm_late_error(int code) {
    const int late = late_error;
    late_error = 0;
    return code == MPI_SUCCESS && late ? late : code;
}

void dm_finish(void) {
    for (unsigned turn = 0; dm_live; turn++) {
        dm_progress();
        dm_pause(turn);
    }
    while (prepared) dispose(prepared); /* which the program did not free */
    while (kept) {
        dm_operation *operation = kept;
        kept = operation->next;
        free(operation->copy);
        free(operation);
    }
}

/* ---- starts ---- */

/* For the group's thread: the contribution as it is now, as floats of the core's. */
static int copy_contribution(dm_operation *operation) {
    dm_sum *sum = &operation->sum;
    const size_t bytes = sum->count * dm_kind_size(sum->kind);
    if (!dm_operation_room(operation, bytes ? bytes : 1)) return 0;
    if (bytes) memcpy(operation->copy, sum->values, bytes);
    sum->values = operation->copy;
    return 1;
}

static void link_in(dm_operation *operation) {
    pthread_mutex_lock(&lock);
    dm_operation **at = &under_way;
    while (*at) at = &(*at)->next;
    operation->next = NULL;
    *at = operation;
    atomic_fetch_add(&dm_live, 1);
    pthread_mutex_unlock(&lock);
}

static int begin_by_mpi(dm_operation *operation) {
    dm_group *group = operation->group;
    const dm_source *source = dm_source_for(group, operation->sum.count);
    operation->how = source->how;
    const size_t bytes = operation->sum.count * ((size_t)source->how.grid.wire_bits / 8);
    if (!dm_operation_room(operation, bytes ? bytes : 1)) return 0;
    if (dm.plan.mode == DM_ENCRYPTED) { /* the baseline of benchmarks: at once */
        operation->outcome = dm_run_encrypted(group, &operation->sum, 0);
        atomic_store(&operation->done, 1);
        return 1;
    }
    const int paid = group->failure == DITHER_OK && dm_budget_one();
    if (paid) dm_add(&dm_stats.releases, 1);
    operation->by_mpi = 1;
    atomic_fetch_add(&group->by_mpi, 1);
    dm_parts_start(operation, paid);
    return 1;
}

/* The group's scratch memory is there. Takes a reference to the group. */
static int begin(dm_operation *operation) {
    dm_group *group = operation->group;
    atomic_store(&operation->done, 0);
    operation->by_mpi = 0;
    atomic_fetch_add(&group->references, 1);
    int begun;
    pthread_mutex_lock(&group->turn);
    if (group->shm)
        begun = copy_contribution(operation) && dm_worker_submit(operation);
    else
        begun = begin_by_mpi(operation);
    pthread_mutex_unlock(&group->turn);
    if (begun)
        link_in(operation);
    else
        dm_group_release(group);
    return begun;
}

static int no_memory(const dm_arguments *a, dm_group *group) {
    dm_break(group, DITHER_NO_MEMORY); /* the others' calls have nothing to go with */
    return dm_conclude(a, DM_FAILED, group);
}

int dm_start(const dm_arguments *a, MPI_Request *request) {
    dm_group *group = NULL;
    dm_sum sum;
    int code;
    if (!dm_admit(a, &group, &sum, &code))
        return code == -1 ? dm_clear(a, request, MPI_INFO_NULL) : code;
    if (dm.plan.mode == DM_ENCRYPTED) dm_group_establish(group);
    if (!dm_scratch(group)) return no_memory(a, group);
    dm_operation *operation = take();
    if (!operation) return no_memory(a, group);
    operation->arguments = *a;
    operation->group = group;
    operation->sum = sum;
    PMPI_Grequest_start(query, forget, cancel, operation, request);
    operation->request = *request;
    if (begin(operation)) return MPI_SUCCESS;
    operation->code = no_memory(a, group);
    PMPI_Grequest_complete(*request);
    return operation->code;
}

int dm_prepare(const dm_arguments *a, MPI_Info info, MPI_Request *request) {
    dm_group *group = NULL;
    dm_sum sum;
    int code;
    if (!dm_admit(a, &group, &sum, &code)) return code == -1 ? dm_clear(a, request, info) : code;
    dm_operation *operation = dm_scratch(group) ? take() : NULL;
    if (!operation) return no_memory(a, group);
    operation->arguments = *a;
    operation->group = group;
    operation->sum = sum;
    operation->persistent = 1;
    pthread_mutex_lock(&lock);
    operation->tag = 1 + tags++ % TAGS;
    pthread_mutex_unlock(&lock);
    code = PMPI_Recv_init(NULL, 0, MPI_BYTE, 0, operation->tag, dm.self, request);
    if (code != MPI_SUCCESS) {
        give_back(operation);
        return code;
    }
    operation->request = *request;
    atomic_fetch_add(&group->references, 1);
    atomic_fetch_add(&dm_persistent, 1);
    pthread_mutex_lock(&lock);
    operation->sibling = prepared;
    prepared = operation;
    pthread_mutex_unlock(&lock);
    return MPI_SUCCESS;
}

static dm_operation *find(MPI_Request request) {
    pthread_mutex_lock(&lock);
    dm_operation *operation = prepared;
    while (operation && (operation->request != request || operation->released))
        operation = operation->sibling;
    pthread_mutex_unlock(&lock);
    return operation;
}

int dm_start_prepared(MPI_Request *request, int *found) {
    dm_operation *operation = find(*request);
    *found = operation != NULL;
    if (!operation) return MPI_SUCCESS;
    const dm_arguments *a = &operation->arguments;
    dm_group *group = operation->group;
    if (group->gone) operation->arguments.comm = MPI_COMM_SELF;
    if (group->gone && !group->shm) { /* what would carry it is gone too */
        group->failure = DITHER_PEER_LEFT;
        return dm_conclude(a, DM_FAILED, group);
    }
    const int code = PMPI_Start(request);
    if (code != MPI_SUCCESS) return code;
    operation->sum.values = a->send == MPI_IN_PLACE ? a->receive : a->send;
    operation->active = 1;
    if (dm.plan.mode == DM_ENCRYPTED) dm_group_establish(operation->group);
    if (begin(operation)) return MPI_SUCCESS;
    operation->active = 0;
    PMPI_Send(NULL, 0, MPI_BYTE, 0, operation->tag, dm.self);
    return no_memory(a, operation->group);
}

void dm_free_prepared(MPI_Request request) {
    dm_operation *operation = find(request);
    if (!operation) return;
    pthread_mutex_lock(&lock);
    operation->released = 1;
    const int active = operation->active;
    pthread_mutex_unlock(&lock);
    if (!active) dispose(operation);
}
