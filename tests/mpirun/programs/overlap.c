/* Sums under way at the same time: on two communicators in an order that differs from rank to rank,
 * completed by every call that completes requests, mixed with messages. */
#include <string.h>

#include "tell.h"

enum { COUNT = 3000, PAIRS = 4 };

static MPI_Comm comms[2];
static int values[PAIRS][2][COUNT], sums[PAIRS][2][COUNT];

/* Pair p, communicator c: rank + 10 p + c everywhere. */
static void fill(void) {
    const int rank = rank_in(MPI_COMM_WORLD);
    for (int p = 0; p < PAIRS; p++)
        for (int c = 0; c < 2; c++)
            for (int i = 0; i < COUNT; i++) {
                values[p][c][i] = i % 1500 == 0 ? rank + 10 * p + c : 0;
                sums[p][c][i] = -1;
            }
}

static int right(void) {
    const int ranks = size_of(MPI_COMM_WORLD);
    int wrong = 0;
    for (int p = 0; p < PAIRS; p++)
        for (int c = 0; c < 2; c++)
            for (int i = 0; i < COUNT; i++) {
                const int all = ranks * (10 * p + c) + ranks * (ranks - 1) / 2;
                wrong += sums[p][c][i] != (i % 1500 == 0 ? all : 0);
            }
    return wrong == 0;
}

/* Ranks with an odd number start the second communicator's sum first. */
static void start(MPI_Request requests[2 * PAIRS]) {
    const int odd = rank_in(MPI_COMM_WORLD) % 2;
    fill();
    for (int p = 0; p < PAIRS; p++)
        for (int turn = 0; turn < 2; turn++) {
            const int c = turn ^ odd;
            MPI_Iallreduce(values[p][c], sums[p][c], COUNT, MPI_INT, MPI_SUM, comms[c],
                           &requests[2 * p + c]);
        }
}

static void by_wait(MPI_Request *requests) { /* and in another order again */
    for (int i = 2 * PAIRS - 1; i >= 0; i--)
        MPI_Wait(&requests[rank_in(MPI_COMM_WORLD) % 2 ? i : 2 * PAIRS - 1 - i], MPI_STATUS_IGNORE);
}

static void by_waitall(MPI_Request *requests) {
    MPI_Status statuses[2 * PAIRS];
    MPI_Waitall(2 * PAIRS, requests, statuses);
}

static void by_waitany(MPI_Request *requests) {
    int index = 0, done = 0;
    for (; index != MPI_UNDEFINED; done++)
        MPI_Waitany(2 * PAIRS, requests, &index, MPI_STATUS_IGNORE);
    tell("waitany %d", done - 1);
}

static void by_waitsome(MPI_Request *requests) {
    int found = 0, indices[2 * PAIRS], done = 0;
    while (found != MPI_UNDEFINED) {
        done += found;
        MPI_Waitsome(2 * PAIRS, requests, &found, indices, MPI_STATUSES_IGNORE);
    }
    tell("waitsome %d", done);
}

static void by_test(MPI_Request *requests) {
    for (int i = 0; i < 2 * PAIRS; i++)
        for (int done = 0; !done;) MPI_Test(&requests[i], &done, MPI_STATUS_IGNORE);
}

static void by_testall(MPI_Request *requests) {
    for (int done = 0; !done;) MPI_Testall(2 * PAIRS, requests, &done, MPI_STATUSES_IGNORE);
}

static void by_testany(MPI_Request *requests) {
    for (int index = 0, done = 0; !(done && index == MPI_UNDEFINED);)
        MPI_Testany(2 * PAIRS, requests, &index, &done, MPI_STATUS_IGNORE);
}

static void by_testsome(MPI_Request *requests) {
    int found = 0, indices[2 * PAIRS];
    while (found != MPI_UNDEFINED)
        MPI_Testsome(2 * PAIRS, requests, &found, indices, MPI_STATUSES_IGNORE);
}

static void by_status(MPI_Request *requests) {
    for (int i = 0; i < 2 * PAIRS; i++) {
        for (int done = 0; !done;) MPI_Request_get_status(requests[i], &done, MPI_STATUS_IGNORE);
        if (requests[i] == MPI_REQUEST_NULL) tell("gone %d", i);
        MPI_Wait(&requests[i], MPI_STATUS_IGNORE);
    }
}

/* A message around the ring in the same array of requests. */
static void by_mixed(MPI_Request *requests) {
    MPI_Request all[2 * PAIRS + 2];
    const int rank = rank_in(MPI_COMM_WORLD), ranks = size_of(MPI_COMM_WORLD);
    int got = -1;
    MPI_Irecv(&got, 1, MPI_INT, (rank + ranks - 1) % ranks, 5, MPI_COMM_WORLD, &all[0]);
    memcpy(&all[1], requests, 2 * PAIRS * sizeof *requests);
    MPI_Isend(&rank, 1, MPI_INT, (rank + 1) % ranks, 5, MPI_COMM_WORLD, &all[2 * PAIRS + 1]);
    MPI_Waitall(2 * PAIRS + 2, all, MPI_STATUSES_IGNORE);
    memcpy(requests, &all[1], 2 * PAIRS * sizeof *requests);
    tell("message %d", got == (rank + ranks - 1) % ranks);
}

/* Sums that nobody waits for, and plain ones in between. */
static void by_plain_between(MPI_Request *requests) {
    int one = 1, all = 0;
    for (int c = 0; c < 2; c++)
        MPI_Allreduce(&one, &all, 1, MPI_INT, MPI_SUM, comms[c]);
    tell("between %d", all);
    by_waitall(requests);
}

static const struct {
    const char *name;
    void (*complete)(MPI_Request *requests);
} ways[] = {
    {"wait", by_wait},         {"waitall", by_waitall},   {"waitany", by_waitany},
    {"waitsome", by_waitsome}, {"test", by_test},         {"testall", by_testall},
    {"testany", by_testany},   {"testsome", by_testsome}, {"status", by_status},
    {"mixed", by_mixed},       {"plain", by_plain_between},
};

int main(int argc, char **argv) {
    MPI_Request requests[2 * PAIRS];
    begin(&argc, &argv);
    comms[0] = MPI_COMM_WORLD;
    MPI_Comm_dup(MPI_COMM_WORLD, &comms[1]);
    for (size_t w = 0; w < sizeof ways / sizeof ways[0]; w++) {
        int left = 0;
        start(requests);
        ways[w].complete(requests);
        for (int i = 0; i < 2 * PAIRS; i++) left += requests[i] != MPI_REQUEST_NULL;
        tell("%s %d %d", ways[w].name, right(), left);
    }
    MPI_Comm_free(&comms[1]);
    finish();
    return 0;
}
