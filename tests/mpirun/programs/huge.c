/* One sum of COUNT floats, in place: huge PREFIX COUNT. Rank r puts 0.5 at a few places, also at
 * those that 32-bit byte offsets or counts would miss, and zeros elsewhere. Tells them, and what the
 * noise is at the end. */
#include <math.h>

#include "tell.h"

enum { PLACES = 4, TAIL = 20000 };

int main(int argc, char **argv) {
    double squares = 0.0;
    begin(&argc, &argv);
    const long long count = argc > 2 ? atoll(argv[2]) : (1LL << 29) + 20011;
    const long long places[PLACES] = {0, count / 2, count - TAIL - 1, count - TAIL - 5};
    float *values = calloc((size_t)count, sizeof *values);
    if (values == NULL) MPI_Abort(MPI_COMM_WORLD, 4);
    for (int i = 0; i < PLACES; i++) values[places[i]] = 0.5f;
#if MPI_VERSION >= 4
    MPI_Allreduce_c(MPI_IN_PLACE, values, (MPI_Count)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
#else
    MPI_Allreduce(MPI_IN_PLACE, values, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
#endif
    for (int i = 0; i < PLACES; i++) tell("at %lld %.6g", places[i], (double)values[places[i]]);
    for (long long i = count - TAIL; i < count; i++) squares += (double)values[i] * values[i];
    tell("noise %.6g", sqrt(squares / TAIL));
    tell("bytes %lld", count * (long long)sizeof *values);
    free(values);
    finish();
    return 0;
}
