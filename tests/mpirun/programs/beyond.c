/* A sum that writes past the end of the program's result. */
#include "tell.h"

int main(int argc, char **argv) {
    enum { COUNT = 1000 };
    begin(&argc, &argv);
    int *values = calloc(COUNT + 1, sizeof *values), *sums = malloc(COUNT * sizeof *sums);
    MPI_Allreduce(values, sums, COUNT + 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    tell("sum %d", sums[0]);
    free(values);
    free(sums);
    finish();
    return 0;
}
