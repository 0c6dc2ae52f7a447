/* Sums of a program with a floating-point environment of its own, set before MPI_Init: what it was must not show
 * in the sums, and must be the same afterwards. The second word: "plain", "up" (rounds upward), "flush" (subnormal
 * numbers to zero, as -ffast-math does), "trap" (dies of what is invalid), or "all". */
#define _GNU_SOURCE
#include <fenv.h>
#include <math.h>
#include <string.h>

#include "tell.h"

enum { COUNT = 257, LONG = 40000 };

static double values[LONG], sums[LONG];
static float floats[COUNT], float_sums[COUNT];
static int integers[COUNT], integer_sums[COUNT];

static void set(const char *how) {
    const int all = !strcmp(how, "all");
    if (all || !strcmp(how, "up")) fesetround(FE_UPWARD);
    if (all || !strcmp(how, "trap")) feenableexcept(FE_INVALID | FE_OVERFLOW | FE_DIVBYZERO);
#ifdef __x86_64__
    if (all || !strcmp(how, "flush")) __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040);
#endif
}

static unsigned control(void) {
#ifdef __x86_64__
    return __builtin_ia32_stmxcsr();
#else
    return (unsigned)fegetround() << 16 | (unsigned)fegetexcept();
#endif
}

static unsigned digest(const void *bytes, size_t size) {
    unsigned mark = 2166136261u;
    for (size_t i = 0; i < size; i++) mark = (mark ^ ((const unsigned char *)bytes)[i]) * 16777619u;
    return mark;
}

static void fill(int rank) {
    for (int i = 0; i < LONG; i++) values[i] = ((i * 37 + rank * 11) % 101 - 50) / 8.0;
    for (int i = 0; i < COUNT; i++)
        floats[i] = (float)((i * 53 + rank) % 97) / 4.0f, integers[i] = i % 23 - rank;
}

static void later(int count) {
    MPI_Request request;
    MPI_Iallreduce(values, sums, count, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD, &request);
    MPI_Wait(&request, MPI_STATUS_IGNORE);
}

static void sum_all(const char *name) {
    const unsigned before = control();
    unsigned marks[6];
    MPI_Allreduce(values, sums, COUNT, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    marks[0] = digest(sums, COUNT * sizeof(double));
    MPI_Allreduce(values, sums, LONG, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    marks[1] = digest(sums, sizeof sums);
    later(COUNT);
    marks[2] = digest(sums, COUNT * sizeof(double));
    later(LONG);
    marks[3] = digest(sums, sizeof sums);
    MPI_Allreduce(floats, float_sums, COUNT, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    marks[4] = digest(float_sums, sizeof float_sums);
    MPI_Allreduce(integers, integer_sums, COUNT, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    marks[5] = digest(integer_sums, sizeof integer_sums);
    tell("%s %08x %08x %08x %08x %08x %08x", name, marks[0], marks[1], marks[2], marks[3], marks[4], marks[5]);
    tell("%s kept %d", name, control() == before);
}

int main(int argc, char **argv) {
    int rank;
    set(argc > 2 ? argv[2] : "plain");
    begin(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    feclearexcept(FE_ALL_EXCEPT);
    fill(rank);
    sum_all("numbers");
    if (rank == 0) values[3] = NAN, floats[5] = -INFINITY;
    sum_all("none");
    if (rank == 0) values[3] = 1e308, values[4] = -1e308, floats[5] = 3e38f;
    sum_all("huge");
    if (rank == 0) values[3] = 0x1p-1070, values[4] = 0x1p-1060, floats[5] = 0x1p-140f;
    sum_all("tiny");
    for (int i = 0; rank == 0 && i < LONG; i++) values[i] = 0x1p-1070;
    sum_all("only_tiny");
    finish();
    return 0;
}
