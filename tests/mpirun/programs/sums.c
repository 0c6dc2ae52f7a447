/* Sums of every type, in every form, with separate buffers and in place, of nothing and of seven
 * values. Element i of rank r is i % 5 - 2 + r. */
#include "forms.h"
#include "kinds.h"
#include "tell.h"

enum { COUNT = 7 };

static void fill(const kind *of, void *values) {
    const int rank = rank_in(MPI_COMM_WORLD);
    for (size_t i = 0; i < COUNT; i++) of->put(values, i, (double)((int)(i % 5) - 2 + rank));
}

static void tell_sum(const char *place, const form *how, const kind *of, const void *sum) {
    char line[512];
    int used = snprintf(line, sizeof line, "%s/%s/%s", how->name, of->name, place);
    for (size_t i = 0; i < COUNT; i++)
        used += snprintf(line + used, sizeof line - (size_t)used, " %.9g", of->get(sum, i));
    tell("%s", line);
}

static void apart(const form *how, const kind *of, int root) {
    double send[COUNT], receive[COUNT], before[COUNT];
    const job job = {send, receive, COUNT, of->type, MPI_SUM, root, MPI_COMM_WORLD};
    fill(of, send);
    memcpy(before, send, sizeof before);
    if (!tell_error(how->name, how->run(&job))) return;
    if (memcmp(before, send, COUNT * of->size) != 0) tell("spoilt %s/%s", how->name, of->name);
    if (!how->rooted || rank_in(MPI_COMM_WORLD) == root) tell_sum("apart", how, of, receive);
}

/* Persistent sums in place start from their own result the second time, so they run apart only. */
static void in_place(const form *how, const kind *of, int root) {
    double values[COUNT], unused[COUNT];
    const int whole = !how->rooted || rank_in(MPI_COMM_WORLD) == root;
    const job job = {whole ? MPI_IN_PLACE : values, whole ? (void *)values : (void *)unused,
                     COUNT, of->type, MPI_SUM, root, MPI_COMM_WORLD};
    if (strstr(how->name, "init") != NULL) return;
    fill(of, values);
    if (tell_error(how->name, how->run(&job)) && whole) tell_sum("in_place", how, of, values);
}

static void empty(const form *how, const kind *of) {
    double untouched = 4.25;
    const job job = {NULL, &untouched, 0, of->type, MPI_SUM, 0, MPI_COMM_WORLD};
    if (tell_error(how->name, how->run(&job)))
        tell("%s/%s/empty %g", how->name, of->name, untouched);
}

int main(int argc, char **argv) {
    kind kinds[MOST_KINDS];
    begin(&argc, &argv);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    const int known = all_kinds(kinds), last = size_of(MPI_COMM_WORLD) - 1;
    for (int f = 0; f < FORMS; f++) {
        for (int k = 0; k < known; k++) {
            apart(&forms[f], &kinds[k], last);
            in_place(&forms[f], &kinds[k], 0);
        }
        empty(&forms[f], &kinds[f % known]);
    }
    finish();
    return 0;
}
