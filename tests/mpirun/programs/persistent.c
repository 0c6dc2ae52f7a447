/* Persistent sums: values change between starts, several started at once, among messages, freed
 * while unused. */
#include "tell.h"

enum { COUNT = 100, TURNS = 5 };

static int a[COUNT], b[COUNT], sum_a[COUNT], sum_b[COUNT];

static int all_are(const int *sum, int value) {
    int right = 1;
    for (int i = 0; i < COUNT; i++) right &= sum[i] == (i % 10 == 0 ? value : 0);
    return right;
}

static void fill(int *values, int value) {
    for (int i = 0; i < COUNT; i++) values[i] = i % 10 == 0 ? value : 0;
}

static void together(MPI_Request requests[3], const int *got) {
    const int rank = rank_in(MPI_COMM_WORLD), ranks = size_of(MPI_COMM_WORLD);
    const int everyone = ranks * (ranks - 1) / 2;
    for (int turn = 0; turn < TURNS; turn++) {
        const int right_rank = (rank + 1) % ranks;
        fill(a, rank + turn);
        fill(b, 2 * rank);
        MPI_Startall(3, requests);
        MPI_Send(&turn, 1, MPI_INT, right_rank, 9, MPI_COMM_WORLD);
        MPI_Waitall(3, requests, MPI_STATUSES_IGNORE);
        const int root = rank != 0 || all_are(sum_b, 2 * everyone);
        tell("turn %d %d %d", all_are(sum_a, everyone + ranks * turn), root, *got == turn);
    }
}

int main(int argc, char **argv) {
    MPI_Request requests[3], never;
    int got = -1, flag = 0;
    begin(&argc, &argv);
    const int ranks = size_of(MPI_COMM_WORLD);
    const int left = (rank_in(MPI_COMM_WORLD) + ranks - 1) % ranks;
    MPI_Allreduce_init(a, sum_a, COUNT, MPI_INT, MPI_SUM, MPI_COMM_WORLD, MPI_INFO_NULL, &requests[0]);
    MPI_Recv_init(&got, 1, MPI_INT, left, 9, MPI_COMM_WORLD, &requests[1]);
    MPI_Reduce_init(b, sum_b, COUNT, MPI_INT, MPI_SUM, 0, MPI_COMM_WORLD, MPI_INFO_NULL, &requests[2]);
    MPI_Allreduce_init(a, sum_a, COUNT, MPI_INT, MPI_SUM, MPI_COMM_WORLD, MPI_INFO_NULL, &never);
    MPI_Request_free(&never);
    tell("freed %d", never == MPI_REQUEST_NULL);
    together(requests, &got);
    MPI_Test(&requests[0], &flag, MPI_STATUS_IGNORE); /* an inactive one is complete */
    tell("inactive %d %d", flag, requests[0] != MPI_REQUEST_NULL);
    for (int i = 0; i < 3; i++) MPI_Request_free(&requests[i]);
    finish();
    return 0;
}
