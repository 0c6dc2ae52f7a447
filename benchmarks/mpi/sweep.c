/* Time of an AllReduce by size of message, in the manner of OSU's micro-benchmarks.
 *
 *   mpirun -n 2 ./sweep --sizes 4,16,64 [--rounds N] [--drain N] [--rest S] [--norm X] [--kept F]
 *
 * Sizes are bytes of float32. Short messages are summed some hundred times in a row, and the time is that
 * of one; messages from LARGE on take half of the rounds. Without --sizes: 4 B to 64 MiB, doubling. */
#include "bench.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MOST_CALLS = 400,       /* in a row */
    IN_A_ROW = 4 << 20,     /* bytes in a row, where one message is not as long */
    LARGE = 8 << 20,        /* bytes */
    MOST_SIZES = 64,
    DEFAULT_LARGEST = 64 << 20
};

typedef struct {
    float *in, *out;
    int elements;
    unsigned calls;
} row;

static void run_row(void *work, const bench_side *side) {
    const row *all = work;
    for (unsigned call = 0; call < all->calls; call++)
        side->all(all->in, all->out, all->elements, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}

static double check(const row *all, const bench_options *options, int side) {
    const size_t count = (size_t)all->elements;
    const double kept = side == BENCH_OURS ? options->kept : 1.0;
    memset(all->out, 0, count * sizeof(float));
    bench_sides[side].all(all->in, all->out, all->elements, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    return sqrt(bench_squared_error(all->out, count, options->norm * kept, bench_ranks()) /
                (double)count);
}

static void size_name(char *name, size_t room, long bytes) {
    const char *unit = bytes >= 1 << 20 ? "MiB" : bytes >= 1 << 10 ? "KiB" : "B";
    const long one = bytes >= 1 << 20 ? 1 << 20 : bytes >= 1 << 10 ? 1 << 10 : 1;
    snprintf(name, room, "sweep/%g%s", (double)bytes / (double)one, unit);
}

static void measure(long bytes, const bench_options *options) {
    char name[64];
    row all = {.elements = (int)(bytes / 4), .calls = 1};
    const long calls = IN_A_ROW / bytes;
    if (calls > 1) all.calls = calls > MOST_CALLS ? MOST_CALLS : (unsigned)calls;
    all.in = bench_memory((size_t)all.elements, sizeof(float));
    all.out = bench_memory((size_t)all.elements, sizeof(float));
    bench_fill(all.in, (size_t)all.elements, options->norm, bench_rank());
    size_name(name, sizeof(name), bytes);
    bench_case about = {name, (size_t)all.elements, 1, all.calls, 1.0, {0.0, 0.0}};
    bench_times times;
    for (int side = 0; side < BENCH_SIDES; side++) about.error[side] = check(&all, options, side);
    const unsigned fewer = options->rounds / 2 < 2 ? 2 : options->rounds / 2;
    const bench_unit unit = {run_row, &all, (double)all.elements * all.calls};
    bench_measure(options, bytes < LARGE ? options->rounds : fewer, &unit, &times);
    for (int side = 0; side < BENCH_SIDES; side++)
        for (unsigned round = 0; round < times.rounds; round++)
            times.seconds[side][round] /= all.calls;
    bench_print(&about, &times);
    bench_times_free(&times);
    free(all.in);
    free(all.out);
}

static size_t read_sizes(const char *text, long sizes[MOST_SIZES]) {
    size_t count = 0;
    for (const char *next = text; next != NULL; next = strchr(next, ',')) {
        char *end;
        next += *next == ',';
        const long bytes = strtol(next, &end, 10);
        if (end == next || (*end != ',' && *end != '\0') || bytes < 4 || bytes / 4 > INT_MAX ||
            bytes % 4 != 0 || count == MOST_SIZES)
            bench_fail("expected up to %d sizes, multiples of 4 bytes, got %s", MOST_SIZES, text);
        sizes[count++] = bytes;
        next = end;
    }
    return count;
}

int main(int count, char **arguments) {
    bench_options options = {.rounds = 20, .norm = 1.0, .kept = 1.0};
    long sizes[MOST_SIZES];
    size_t chosen = 0;
    MPI_Init(&count, &arguments);
    for (int i = 1, took; i < count; i += took) {
        took = bench_option(&options, count - i, arguments + i);
        if (took == 0 && strcmp(arguments[i], "--sizes") == 0 && i + 1 < count) {
            chosen = read_sizes(arguments[i + 1], sizes);
            took = 2;
        }
        if (took == 0) bench_fail("unknown option %s", arguments[i]);
    }
    if (chosen == 0)
        for (long bytes = 4; bytes <= DEFAULT_LARGEST; bytes *= 2) sizes[chosen++] = bytes;
    for (size_t i = 0; i < chosen; i++) measure(sizes[i], &options);
    MPI_Finalize();
    return 0;
}
