/* Ends in the way that it is told after so many sums:
 * ends PREFIX abort|kill|leave|fail CALLS. "kill": the last rank ends without a word while the others
 * go on; "leave": exit without MPI_Finalize; "fail": a status of 5 after MPI_Finalize. */
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "tell.h"

static void sums(int calls) {
    float values[100] = {0.0f};
    for (int call = 0; call < calls; call++) {
        MPI_Allreduce(MPI_IN_PLACE, values, 100, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        tell("call %d", call + 1);
    }
}

int main(int argc, char **argv) {
    begin(&argc, &argv);
    const char *way = argc > 2 ? argv[2] : "abort";
    const int last = rank_in(MPI_COMM_WORLD) == size_of(MPI_COMM_WORLD) - 1;
    sums(argc > 3 ? atoi(argv[3]) : 1);
    if (strcmp(way, "abort") == 0 && last) MPI_Abort(MPI_COMM_WORLD, 7);
    if (strcmp(way, "kill") == 0 && last) kill(getpid(), SIGKILL);
    if (strcmp(way, "leave") == 0) _exit(0);
    if (strcmp(way, "fail") != 0) sums(1000000);
    finish();
    return 5;
}
