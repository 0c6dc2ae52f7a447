/* Contributions far outside the ball, and such as are no numbers. Rank r's stands at coordinate r. */
#include <math.h>

#include "tell.h"

enum { COUNT = 16 };

static void one(const char *name, double value) {
    double send[COUNT] = {0.0}, sum[COUNT];
    const int rank = rank_in(MPI_COMM_WORLD);
    send[rank] = rank == 0 ? 1e6 : value;
    MPI_Allreduce(send, sum, COUNT, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    tell("%s %.9g %.9g", name, sum[0], sum[1]);
}

/* Numbers whose norm is none in double. */
static void beyond(void) {
    double send[COUNT] = {0.0}, sum[COUNT];
    const int rank = rank_in(MPI_COMM_WORLD);
    send[rank] = rank == 0 ? 1e6 : 1.5e308;
    send[COUNT - 1] = rank == 0 ? 0.0 : 1.5e308;
    MPI_Allreduce(send, sum, COUNT, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    tell("beyond %.9g %.9g", sum[0], sum[1]);
}

static void whole(const char *name, int value) {
    int send[COUNT] = {0}, sum[COUNT];
    send[rank_in(MPI_COMM_WORLD)] = value;
    MPI_Allreduce(send, sum, COUNT, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    tell("%s %d %d", name, sum[0], sum[1]);
}

/* A long vector of which each coordinate alone is inside the ball. */
static void spread(void) {
    enum { LONG = 300000 };
    float *values = malloc(LONG * sizeof *values);
    double along = 0.0;
    for (int i = 0; i < LONG; i++) values[i] = 0.5f;
    MPI_Allreduce(MPI_IN_PLACE, values, LONG, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    for (int i = 0; i < LONG; i++) along += values[i];
    tell("spread %.9g", along / sqrt((double)LONG));
    free(values);
}

int main(int argc, char **argv) {
    begin(&argc, &argv);
    one("large", 1e30);
    one("negative", -1e30);
    one("nan", NAN);
    one("infinite", -INFINITY);
    one("far", 1e300);
    beyond();
    one("tiny", 1e-300);
    one("inside", 0.25);
    whole("integer", 2000000000);
    spread();
    finish();
    return 0;
}
