/* Threads that each sum on a communicator of their own, under the asked level of thread support. */
#include <pthread.h>
#include <string.h>

#include "tell.h"

enum { THREADS = 3, COUNT = 5000 };

typedef struct {
    MPI_Comm comm;
    int number, calls, wrong;
} lane;

static void *sums(void *argument) {
    lane *lane = argument;
    int *mine = malloc(COUNT * sizeof *mine), *total = malloc(COUNT * sizeof *total);
    const int rank = rank_in(lane->comm), ranks = size_of(lane->comm);
    const int expected = ranks * lane->number + ranks * (ranks - 1) / 2;
    for (int call = 0; call < lane->calls; call++) {
        const int count = call % 3 == 0 ? COUNT : 2;
        memset(mine, 0, COUNT * sizeof *mine);
        mine[1] = lane->number + rank;
        MPI_Allreduce(mine, total, count, MPI_INT, MPI_SUM, lane->comm);
        lane->wrong += total[1] != expected || total[0] != 0;
    }
    free(mine);
    free(total);
    return NULL;
}

static int level_of(const char *name) {
    if (strcmp(name, "multiple") == 0) return MPI_THREAD_MULTIPLE;
    if (strcmp(name, "serialized") == 0) return MPI_THREAD_SERIALIZED;
    return strcmp(name, "funneled") == 0 ? MPI_THREAD_FUNNELED : MPI_THREAD_SINGLE;
}

int main(int argc, char **argv) {
    int provided;
    lane lanes[THREADS];
    pthread_t threads[THREADS];
    const int asked = level_of(argc > 2 ? argv[2] : "single"), calls = argc > 3 ? atoi(argv[3]) : 20;
    MPI_Init_thread(&argc, &argv, asked, &provided);
    tell_open(argv[1]);
    tell("level %d", provided >= asked);
    for (int i = 0; i < THREADS; i++) {
        lanes[i] = (lane){.number = i, .calls = calls};
        MPI_Comm_dup(MPI_COMM_WORLD, &lanes[i].comm);
    }
    for (int i = 0; i < THREADS; i++) {
        if (provided == MPI_THREAD_MULTIPLE && asked == MPI_THREAD_MULTIPLE)
            pthread_create(&threads[i], NULL, sums, &lanes[i]);
        else
            sums(&lanes[i]);
    }
    for (int i = 0; i < THREADS; i++) {
        if (provided == MPI_THREAD_MULTIPLE && asked == MPI_THREAD_MULTIPLE)
            pthread_join(threads[i], NULL);
        tell("thread %d %d", lanes[i].calls, lanes[i].wrong);
        MPI_Comm_free(&lanes[i].comm);
    }
    finish();
    return 0;
}
