/* First sums on new communicators, in orders that are valid though no rank waits for all others there:
 * crossed between two communicators, and behind a message. */
#include "tell.h"

static int value, sums[2];

static void start(int which, MPI_Comm comm, MPI_Request *request) {
    value = rank_in(MPI_COMM_WORLD) + 1;
    sums[which] = -1;
    MPI_Iallreduce(&value, &sums[which], 1, MPI_INT, MPI_SUM, comm, request);
}

static void crossed(void) {
    MPI_Comm comms[2];
    MPI_Request requests[2];
    const int odd = rank_in(MPI_COMM_WORLD) % 2;
    MPI_Comm_dup(MPI_COMM_WORLD, &comms[0]);
    MPI_Comm_split(MPI_COMM_WORLD, 0, 0, &comms[1]);
    start(odd, comms[odd], &requests[0]);
    start(!odd, comms[!odd], &requests[1]);
    MPI_Waitall(2, requests, MPI_STATUSES_IGNORE);
    tell("crossed %d %d", sums[0], sums[1]);
    MPI_Comm_free(&comms[0]);
    MPI_Comm_free(&comms[1]);
}

/* Rank 0 starts, and tells the others only then that they may. */
static void behind_a_message(void) {
    MPI_Comm comm;
    MPI_Request request;
    int word = 0;
    const int rank = rank_in(MPI_COMM_WORLD), ranks = size_of(MPI_COMM_WORLD);
    MPI_Comm_dup(MPI_COMM_WORLD, &comm);
    if (rank > 0) MPI_Recv(&word, 1, MPI_INT, 0, 2, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    start(0, comm, &request);
    for (int to = 1; rank == 0 && to < ranks; to++)
        MPI_Send(&word, 1, MPI_INT, to, 2, MPI_COMM_WORLD);
    MPI_Wait(&request, MPI_STATUS_IGNORE);
    tell("behind %d", sums[0]);
    MPI_Comm_free(&comm);
}

/* The same with a persistent sum, whose making is no meeting either. */
static void persistent(void) {
    MPI_Comm comm;
    MPI_Request request;
    int word = 0;
    const int rank = rank_in(MPI_COMM_WORLD), ranks = size_of(MPI_COMM_WORLD);
    MPI_Comm_dup(MPI_COMM_WORLD, &comm);
    value = rank + 1;
    MPI_Allreduce_init(&value, &sums[1], 1, MPI_INT, MPI_SUM, comm, MPI_INFO_NULL, &request);
    if (rank > 0) MPI_Recv(&word, 1, MPI_INT, 0, 4, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    MPI_Start(&request);
    for (int to = 1; rank == 0 && to < ranks; to++)
        MPI_Send(&word, 1, MPI_INT, to, 4, MPI_COMM_WORLD);
    MPI_Wait(&request, MPI_STATUS_IGNORE);
    tell("persistent %d", sums[1]);
    MPI_Request_free(&request);
    MPI_Comm_free(&comm);
}

int main(int argc, char **argv) {
    begin(&argc, &argv);
    crossed();
    behind_a_message();
    persistent();
    finish();
    return 0;
}
