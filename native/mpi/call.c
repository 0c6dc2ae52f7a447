/* One call of the program: may it be protected, and what is it told? */
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "mpi_core.h"

enum { TEXT = 512 };

static int is_reduce(dm_call call) {
    return call == DM_REDUCE || call == DM_IREDUCE || call == DM_REDUCE_INIT;
}

int dither_allows(const char *name) {
    for (int i = 0; i < dm.plan.clear_count; i++)
        if (!strcmp(dm.plan.clear[i], name)) return 1;
    return 0;
}

int dither_refuse(unsigned number, MPI_Comm comm, const char *text) {
    if (!dm.ready) dm_die("%s, and no account is open", text);
    dm_add(&dither_refused[number], 1);
    return dm_fail(comm, text, text);
}

static void describe(const dm_arguments *a, char *text, size_t size) {
    char type[MPI_MAX_OBJECT_NAME] = "";
    int length = 0;
    PMPI_Type_get_name(a->type, type, &length);
    snprintf(text, size, "%s of %lld %s with %s", dm_call_names[a->call], (long long)a->count,
             length ? type : "of a type of the program's own", dm_op_name(a->op));
}

static int say(const dm_arguments *a, dm_outcome outcome, const char *why) {
    char call[160], text[TEXT], kind[TEXT];
    dm_arguments some = *a;
    describe(a, call, sizeof call);
    snprintf(text, sizeof text, "%s %s: %s", call, outcome == DM_FAILED ? "failed" : "refused", why);
    some.count = 0; /* the same with another count is no news */
    describe(&some, call, sizeof call);
    snprintf(kind, sizeof kind, "%s %.40s", call, why);
    return dm_fail(a->comm, kind, text);
}

static int refused(const dm_arguments *a, const char *why, int *code) {
    dm_add(&dm_stats.calls[a->call].refused, 1);
    *code = say(a, DM_REFUSED, why);
    return 0;
}

/* Passes in clear, if the user named the operation; else it is refused. */
static int unprotectable(const dm_arguments *a, const char *why, int *code) {
    char text[TEXT];
    const char *op = dm_op_name(a->op);
    if (dither_allows(op)) {
        dm_add(&dm_stats.calls[a->call].cleared, 1);
        *code = -1;
        return 0;
    }
    snprintf(text, sizeof text, "%s%s%s", why,
             strncmp(op, "MPI_", 4) ? "" : "; if the result may be known to all, run with --allow-clear ",
             strncmp(op, "MPI_", 4) ? "" : op);
    return refused(a, text, code);
}

static int wrong_argument(const dm_arguments *a) {
    if (a->comm == MPI_COMM_NULL) return MPI_ERR_COMM;
    if (a->type == MPI_DATATYPE_NULL) return MPI_ERR_TYPE;
    if (a->op == MPI_OP_NULL) return MPI_ERR_OP;
    return a->count < 0 ? MPI_ERR_COUNT : MPI_SUCCESS;
}

/* What of the contribution is read after its norm was taken must be what was in it. */
static int overlap(const dm_arguments *a, dm_kind kind) {
    const uintptr_t from = (uintptr_t)a->send, to = (uintptr_t)a->receive,
                    bytes = (uintptr_t)a->count * dm_kind_size(kind);
    return a->send != MPI_IN_PLACE && from != to && from < to + bytes && to < from + bytes;
}

static int wrong_place(const dm_arguments *a, const dm_group *group, dm_kind kind) {
    const int receives = !is_reduce(a->call) || a->root == group->rank;
    if (is_reduce(a->call) && (a->root < 0 || a->root >= group->ranks)) return MPI_ERR_ROOT;
    if (a->send == MPI_IN_PLACE && !receives) return MPI_ERR_BUFFER;
    if (receives && a->receive == MPI_IN_PLACE) return MPI_ERR_BUFFER;
    if (receives && overlap(a, kind)) return MPI_ERR_BUFFER;
    if (a->count > 0 && (!a->send || (receives && !a->receive))) return MPI_ERR_BUFFER;
    return MPI_SUCCESS;
}

static void fill(const dm_arguments *a, const dm_group *group, dm_kind kind, dm_sum *sum) {
    const int receives = !is_reduce(a->call) || a->root == group->rank;
    *sum = (dm_sum){.call = a->call,
                    .kind = kind,
                    .count = (size_t)a->count,
                    .values = a->send == MPI_IN_PLACE ? a->receive : a->send,
                    .result = receives ? a->receive : NULL,
                    .root = is_reduce(a->call) ? a->root : -1};
}

static int not_running(const dm_arguments *a, int *code) {
    int begun = 0;
    PMPI_Initialized(&begun);
    if (!begun) dm_die("%s before MPI_Init", dm_call_names[a->call]);
    return refused(a,
                   "no account is open: MPI was initialised by a function that dither does not know, or "
                   "MPI_Finalize was called",
                   code);
}

int dm_admit(const dm_arguments *a, dm_group **group, dm_sum *sum, int *code) {
    if (!dm.ready) return not_running(a, code);
    *code = wrong_argument(a);
    if (*code != MPI_SUCCESS) {
        *code = dm_invalid(a->comm, *code);
        return 0;
    }
    const dm_kind kind = dm_kind_of(a->type);
    if (a->op != MPI_SUM)
        return unprotectable(a, "noise makes sums private, not other operations; use MPI_SUM", code);
    if (kind == DM_NO_KIND)
        return unprotectable(a,
                             "dither protects float, double, signed integers of 32 and 64 bits, and "
                             "16-bit floats, each by its predefined type; convert the data",
                             code);
    *group = dm_group_of(a->comm);
    if (!*group)
        return refused(a, "an intercommunicator has no sum of all; merge it first", code);
    if (!dm_source_for(*group, (size_t)a->count))
        return refused(a, "the plan has no lattice for so many ranks or elements", code);
    *code = wrong_place(a, *group, kind);
    if (*code != MPI_SUCCESS) {
        *code = dm_invalid(a->comm, *code);
        return 0;
    }
    fill(a, *group, kind, sum);
    return 1;
}

int dm_conclude(const dm_arguments *a, dm_outcome outcome, const dm_group *group) {
    char why[TEXT];
    dm_call_figures *figures = &dm_stats.calls[a->call];
    if (outcome == DM_DONE) {
        dm_add(&figures->protected_calls, 1);
        dm_add(&figures->bytes, (uint64_t)a->count * dm_kind_size(dm_kind_of(a->type)));
        return MPI_SUCCESS;
    }
    dm_add(&figures->refused, 1);
    if (outcome == DM_SPENT) {
        snprintf(why, sizeof why,
                 "all releases that the plan allows are spent (rank %d made %llu); allow more by "
                 "--releases, which costs epsilon or accuracy",
                 dm.rank, (unsigned long long)dm_stats.releases);
        return say(a, outcome, why);
    }
    int culprit = group->culprit;
    if (culprit < 0 && group->shm) culprit = dither_shm_culprit(group->shm);
    if (culprit >= 0)
        snprintf(why, sizeof why, "%s (rank %d of the communicator); there is no result",
                 dither_status_text(group->failure), culprit);
    else
        snprintf(why, sizeof why, "%s; there is no result", dither_status_text(group->failure));
    return say(a, DM_FAILED, why);
}

int dm_blocking(const dm_arguments *a) {
    dm_group *group = NULL;
    dm_sum sum;
    int code;
    if (!dm_admit(a, &group, &sum, &code)) return code == -1 ? dm_clear(a, NULL, MPI_INFO_NULL) : code;
    dm_group_establish(group);
    if (group->worker) dm_drain(group);
    dm_outcome outcome = DM_FAILED;
    if (group->failure == DITHER_OK && !dm_scratch(group)) dm_break(group, DITHER_NO_MEMORY);
    if (group->failure == DITHER_OK) outcome = dm_run(group, &sum, 0);
    return dm_conclude(a, outcome, group);
}
