/* Sums of zeros of COUNT values: what comes back is the noise. Raw doubles in PREFIX.RANK.FORM.TYPE.
 * Integers are asked for where the noise is wide enough to show in them. */
#include "forms.h"
#include "kinds.h"
#include "tell.h"

static void keep(const form *how, const kind *of, const void *sum, size_t count) {
    char path[4096];
    snprintf(path, sizeof path, "%s.%d.%s.%s", tell_prefix, rank_in(MPI_COMM_WORLD), how->name,
             of->name);
    FILE *file = fopen(path, "wb");
    if (file == NULL) MPI_Abort(MPI_COMM_WORLD, 3);
    for (size_t i = 0; i < count; i++) {
        const double value = of->get(sum, i);
        fwrite(&value, sizeof value, 1, file);
    }
    fclose(file);
    tell("%s/%s", how->name, of->name);
}

static void one(const form *how, const kind *of, int count) {
    void *send = calloc((size_t)count, of->size), *receive = calloc((size_t)count, of->size);
    const int root = size_of(MPI_COMM_WORLD) - 1;
    const job job = {send, receive, count, of->type, MPI_SUM, root, MPI_COMM_WORLD};
    how->run(&job);
    if (!how->rooted || rank_in(MPI_COMM_WORLD) == root) keep(how, of, receive, (size_t)count);
    free(send);
    free(receive);
}

int main(int argc, char **argv) {
    kind kinds[MOST_KINDS];
    begin(&argc, &argv);
    const int count = argc > 2 ? atoi(argv[2]) : 1000, known = all_kinds(kinds);
    /* Every form with doubles, and every type with the first two forms. */
    for (int f = 0; f < FORMS; f++)
        for (int k = 0; k < known; k++)
            if (f < 2 || kinds[k].type == MPI_DOUBLE) one(&forms[f], &kinds[k], count);
    finish();
    return 0;
}
