/* Moves data in many ways and never sums: two rounds of messages, broadcasts and the like. */
#include "tell.h"

enum { MOST = 8 };

int main(int argc, char **argv) {
    int mine, left = -1, all[MOST];
    MPI_Request request;
    begin(&argc, &argv);
    const int rank = rank_in(MPI_COMM_WORLD), ranks = size_of(MPI_COMM_WORLD);
    if (ranks > MOST) MPI_Abort(MPI_COMM_WORLD, 2);
    mine = rank;
    for (int turn = 0; turn < 2; turn++) {
        MPI_Isend(&mine, 1, MPI_INT, (rank + 1) % ranks, 1, MPI_COMM_WORLD, &request);
        MPI_Recv(&left, 1, MPI_INT, (rank + ranks - 1) % ranks, 1, MPI_COMM_WORLD,
                 MPI_STATUS_IGNORE);
        MPI_Wait(&request, MPI_STATUS_IGNORE);
        MPI_Bcast(&left, 1, MPI_INT, 0, MPI_COMM_WORLD);
        MPI_Allgather(&mine, 1, MPI_INT, all, 1, MPI_INT, MPI_COMM_WORLD);
        MPI_Barrier(MPI_COMM_WORLD);
    }
    MPI_Scan(&mine, &left, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    tell("last %d %d", all[ranks - 1], left);
    printf("rank %d of %d\n", rank, ranks);
    finish();
    return 0;
}
