/* Ranks that give up while others wait for them, all under MPI_ERRORS_RETURN.
 *
 * "left": rank 0's next call has no buffer, so it fails there alone, and rank 0 leaves; rank 1 calls on four
 * communicators. "late": rank 1 comes when rank 0 has waited long enough, and calls some more. */
#include <string.h>
#include <unistd.h>

#include "tell.h"

enum { SHORT = 4, LONG = 100000, COMMS = 4 };

static double values[LONG], sums[LONG];
static MPI_Comm comms[COMMS];

static int sum(int comm, int count) {
    return MPI_Allreduce(values, sums, count, MPI_DOUBLE, MPI_SUM, comms[comm]);
}

static int sum_later(int comm, int count) {
    MPI_Request request;
    const int code = MPI_Iallreduce(values, sums, count, MPI_DOUBLE, MPI_SUM, comms[comm], &request);
    return code != MPI_SUCCESS ? code : MPI_Wait(&request, MPI_STATUS_IGNORE);
}

static void timed(const char *name, int (*call)(int, int), int comm, int count) {
    const double began = MPI_Wtime();
    const int code = call(comm, count);
    tell("%s seconds %.3f", name, MPI_Wtime() - began);
    if (tell_error(name, code)) tell("%s passed", name);
}

static void left(int rank) {
    if (rank == 0) {
        tell_error("nothing", MPI_Allreduce(NULL, sums, SHORT, MPI_DOUBLE, MPI_SUM, comms[0]));
        return;
    }
    timed("short", sum, 0, SHORT);
    timed("long", sum, 1, LONG);
    timed("later", sum_later, 2, LONG);
    timed("later_short", sum_later, 3, SHORT);
}

static void late(int rank) {
    if (rank == 0) {
        timed("short", sum, 0, SHORT);
        timed("later", sum, 1, LONG);
        sleep(4); /* does not leave */
        return;
    }
    sleep(6);
    (void)sum(0, SHORT); /* rank 0's message is there */
    timed("short", sum, 0, SHORT);
    timed("later", sum_later, 1, LONG);
}

int main(int argc, char **argv) {
    int rank;
    begin(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    for (int i = 0; i < COMMS; i++) {
        MPI_Comm_dup(MPI_COMM_WORLD, &comms[i]);
        MPI_Comm_set_errhandler(comms[i], MPI_ERRORS_RETURN);
        if (sum(i, 1) != MPI_SUCCESS) tell("no first sum");
    }
    if (argc > 2 && !strcmp(argv[2], "late"))
        late(rank);
    else
        left(rank);
    finish();
    return 0;
}
