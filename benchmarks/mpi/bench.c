/* Shared parts of the MPI benches; see bench.h. */
#define _POSIX_C_SOURCE 200809L

#include "bench.h"

#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PAGE = 4096 };

const bench_side bench_sides[BENCH_SIDES] = {
    {PMPI_Allreduce, PMPI_Iallreduce, PMPI_Waitall},
    {MPI_Allreduce, MPI_Iallreduce, MPI_Waitall},
};

void bench_fail(const char *format, ...) {
    char text[256];
    va_list more;
    va_start(more, format);
    vsnprintf(text, sizeof(text), format, more);
    va_end(more);
    fprintf(stderr, "bench: %s\n", text);
    PMPI_Abort(MPI_COMM_WORLD, 2);
    exit(2); /* where MPI_Abort returns */
}

double bench_number(const char *text, double least) {
    char *end = NULL;
    const double value = text == NULL ? NAN : strtod(text, &end);
    if (text == NULL || end == text || *end != '\0' || !(value >= least))
        bench_fail("expected a number of at least %g, got %s", least, text ? text : "nothing");
    return value;
}

int bench_option(bench_options *options, int count, char **arguments) {
    const char *name = arguments[0], *value = count > 1 ? arguments[1] : NULL;
    if (strcmp(name, "--rounds") == 0)
        options->rounds = (unsigned)bench_number(value, 2.0);
    else if (strcmp(name, "--drain") == 0)
        options->drain = bench_number(value, 0.0);
    else if (strcmp(name, "--rest") == 0)
        options->rest = bench_number(value, 0.0);
    else if (strcmp(name, "--norm") == 0)
        options->norm = bench_number(value, 1e-30);
    else if (strcmp(name, "--kept") == 0)
        options->kept = bench_number(value, 1e-30);
    else
        return 0;
    return 2;
}

void *bench_memory(size_t count, size_t size) {
    void *memory = NULL;
    if (posix_memalign(&memory, PAGE, count * size + PAGE) != 0)
        bench_fail("no memory for %zu times %zu bytes: choose a larger scale", count, size);
    return memset(memory, 0, count * size);
}

int bench_rank(void) {
    int rank;
    PMPI_Comm_rank(MPI_COMM_WORLD, &rank);
    return rank;
}

int bench_ranks(void) {
    int ranks;
    PMPI_Comm_size(MPI_COMM_WORLD, &ranks);
    return ranks;
}

void bench_sleep(double seconds) {
    struct timespec left = {(time_t)seconds, (long)((seconds - floor(seconds)) * 1e9)};
    while (seconds > 0.0 && nanosleep(&left, &left) != 0) continue;
}

/* ---- contributions ------------------------------------------------------------------------- */

/* 1 or -1, from the bits of SplitMix64's output function (Steele, Lea, Flood 2014). */
static inline float sign(uint64_t index, int rank) {
    uint64_t bits = index + ((uint64_t)(rank + 1) << 40);
    bits = (bits ^ (bits >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    bits = (bits ^ (bits >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (bits >> 63) != 0 ? 1.0f : -1.0f;
}

static float size_of(size_t count, double norm) {
    return (float)(norm / sqrt((double)count));
}

void bench_fill(float *values, size_t count, double norm, int rank) {
    const float size = size_of(count, norm);
    for (size_t i = 0; i < count; i++) values[i] = sign(i, rank) * size;
}

double bench_squared_error(const float *sum, size_t count, double norm, int ranks) {
    const double size = (double)size_of(count, norm);
    double error = 0.0;
    for (size_t i = 0; i < count; i++) {
        int signs = 0;
        for (int rank = 0; rank < ranks; rank++) signs += (int)sign(i, rank);
        const double off = (double)sum[i] - signs * size;
        error += off * off;
    }
    return error;
}

/* ---- turns --------------------------------------------------------------------------------- */

/* Level 2 asks an interposed tool to flush its buffers, in the tool's own sense (MPI-4.1, 15.2.4): ours
 * fills its pool. Plain MPI does nothing. */
static void rest(const bench_options *options) {
    MPI_Pcontrol(2);
    bench_sleep(options->rest);
}

static double timed(const bench_options *options, int which, const bench_unit *unit) {
    const bench_side *side = &bench_sides[which];
    if (which == BENCH_BARE || options->drain == 0.0)
        rest(options);
    else
        for (double drained = 0.0; drained < options->drain; drained += unit->numbers)
            unit->run(unit->work, side);
    PMPI_Barrier(MPI_COMM_WORLD);
    const double start = PMPI_Wtime();
    unit->run(unit->work, side);
    return PMPI_Wtime() - start;
}

void bench_measure(const bench_options *options, unsigned rounds, const bench_unit *unit,
                   bench_times *times) {
    times->rounds = rounds;
    for (int side = 0; side < BENCH_SIDES; side++)
        times->seconds[side] = bench_memory(rounds, sizeof(double));
    for (unsigned round = 0; round < rounds; round++)
        for (int turn = 0; turn < BENCH_SIDES; turn++) {
            const int side = (int)((round + (unsigned)turn) % BENCH_SIDES);
            times->seconds[side][round] = timed(options, side, unit);
        }
    for (int side = 0; side < BENCH_SIDES; side++)
        PMPI_Allreduce(MPI_IN_PLACE, times->seconds[side], (int)rounds, MPI_DOUBLE, MPI_MAX,
                       MPI_COMM_WORLD);
}

void bench_times_free(bench_times *times) {
    for (int side = 0; side < BENCH_SIDES; side++) free(times->seconds[side]);
}

/* ---- the line ------------------------------------------------------------------------------ */

static int ascending(const void *one, const void *other) {
    const double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

static double median(const double *values, unsigned count) {
    double *sorted = bench_memory(count, sizeof(double));
    memcpy(sorted, values, count * sizeof(double));
    qsort(sorted, count, sizeof(double), ascending);
    const double middle = (sorted[(count - 1) / 2] + sorted[count / 2]) / 2.0;
    free(sorted);
    return middle;
}

static void print_times(const char *name, const double *seconds, unsigned count) {
    printf(", \"%s\": [", name);
    for (unsigned i = 0; i < count; i++) printf("%s%.9g", i ? ", " : "", seconds[i]);
    printf("], \"%s_median\": %.9g", name, median(seconds, count));
}

/* The first line of what MPI calls itself, without what JSON would have to escape. */
static void print_library(void) {
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int length = 0;
    PMPI_Get_library_version(text, &length);
    printf(", \"mpi\": \"");
    for (int i = 0; i < length && text[i] != '\n' && text[i] != ','; i++)
        putchar(text[i] < ' ' || text[i] == '"' || text[i] == '\\' ? ' ' : text[i]);
    putchar('"');
}

static void print_line(const bench_case *about, const bench_times *times) {
    static const char *const names[BENCH_SIDES] = {"bare", "ours"};
    printf("{\"case\": \"%s\", \"ranks\": %d, \"elements\": %zu, \"messages\": %zu", about->name,
           bench_ranks(), about->elements, about->messages);
    printf(", \"in_a_row\": %u, \"scale\": %g", about->in_a_row, about->scale);
    print_library();
    for (int side = 0; side < BENCH_SIDES; side++) {
        print_times(names[side], times->seconds[side], times->rounds);
        printf(", \"%s_error\": %.6g", names[side], about->error[side]);
    }
    puts("}");
    fflush(stdout);
}

void bench_print(const bench_case *about, const bench_times *times) {
    if (bench_rank() == 0) print_line(about, times);
    PMPI_Barrier(MPI_COMM_WORLD); /* the line is out before anyone goes on, perhaps to an error */
}
