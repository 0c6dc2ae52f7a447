/* Sums that a program makes from within MPI: in a callback whose last act is the call, which compilers
 * turn into a jump, so that MPI itself seems to call. */
#include "tell.h"

static double mine[2], sum[2];

static int on_delete(MPI_Comm comm, int key, void *value, void *extra) {
    (void)comm, (void)key, (void)value, (void)extra;
    return MPI_Allreduce(mine, sum, 2, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
}

static int on_copy(MPI_Comm comm, int key, void *extra, void *in, void *out, int *flag) {
    (void)comm, (void)key, (void)extra, (void)in, (void)out;
    *flag = 1;
    return MPI_Allreduce(mine, sum, 2, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
}

int main(int argc, char **argv) {
    int key;
    MPI_Comm comm, copy;
    begin(&argc, &argv);
    mine[0] = mine[1] = 0.5 + rank_in(MPI_COMM_WORLD);
    MPI_Comm_create_keyval(on_copy, on_delete, &key, NULL);
    MPI_Comm_dup(MPI_COMM_WORLD, &comm);
    MPI_Comm_set_attr(comm, key, NULL);
    MPI_Comm_dup(comm, &copy);
    tell("copy %g %g", sum[0], sum[1]);
    sum[0] = sum[1] = -1.0;
    MPI_Comm_free(&comm);
    tell("delete %g %g", sum[0], sum[1]);
    MPI_Comm_delete_attr(copy, key);
    MPI_Comm_free(&copy);
    MPI_Comm_free_keyval(&key);
    finish();
    return 0;
}
