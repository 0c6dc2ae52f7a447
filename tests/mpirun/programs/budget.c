/* Sums until the budget ends.
 * budget PREFIX world: on MPI_COMM_WORLD; then on a copy of it, and in the other forms.
 * budget PREFIX parts: ranks 0 and 1 make ten sums between them first; what is left of the last
 *     rank's budget goes to MPI_COMM_SELF.
 * budget PREFIX some CALLS: so many, all of which must pass. */
#include <string.h>

#include "forms.h"
#include "tell.h"

static double value, total;

/* Sums until one is refused; at most `most`. Returns how many passed. */
static int until_refused(const char *name, MPI_Comm comm, int most) {
    int made = 0, code = MPI_SUCCESS;
    MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
    while (made < most && code == MPI_SUCCESS) {
        value = total = 4.25;
        code = MPI_Allreduce(&value, &total, 1, MPI_DOUBLE, MPI_SUM, comm);
        made += code == MPI_SUCCESS;
    }
    tell_error(name, code);
    tell("%s made %d", name, made);
    if (code != MPI_SUCCESS) tell("%s left %g", name, total);
    return made;
}

static void the_world(void) {
    MPI_Comm copy;
    const job job = {&value, &total, 1, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD};
    until_refused("world", MPI_COMM_WORLD, 100000);
    until_refused("again", MPI_COMM_WORLD, 3);
    MPI_Comm_dup(MPI_COMM_WORLD, &copy);
    until_refused("copy", copy, 3);
    MPI_Comm_free(&copy);
    for (int f = 0; f < FORMS; f++)
        if (tell_error(forms[f].name, forms[f].run(&job))) tell("%s passed", forms[f].name);
}

static void the_parts(void) {
    MPI_Comm part;
    const int last = rank_in(MPI_COMM_WORLD) == size_of(MPI_COMM_WORLD) - 1;
    MPI_Comm_split(MPI_COMM_WORLD, last, 0, &part);
    if (!last) until_refused("part", part, 10);
    MPI_Comm_free(&part);
    until_refused("world", MPI_COMM_WORLD, 100000);
    until_refused("self", MPI_COMM_SELF, 100000);
    MPI_Barrier(MPI_COMM_WORLD);
}

int main(int argc, char **argv) {
    begin(&argc, &argv);
    const char *way = argc > 2 ? argv[2] : "world";
    if (strcmp(way, "world") == 0) the_world();
    else if (strcmp(way, "parts") == 0) the_parts();
    else until_refused("some", MPI_COMM_WORLD, argc > 3 ? atoi(argv[3]) : 1);
    finish();
    return 0;
}
