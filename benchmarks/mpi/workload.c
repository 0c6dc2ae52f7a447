/* The AllReduces of one training step, as a list of messages says.
 *
 *   mpirun -n 2 ./workload LIST/KIND[/overlap][@SCALE] ... [--rounds N] [--drain N] [--rest S]
 *                          [--norm X] [--kept F]
 *   ./workload --lists
 *
 * KIND is compute, which sleeps before each message as long as the accelerator would compute, or comm,
 * communication alone. /overlap starts MPI_Iallreduce and waits for all of them at the end of the step.
 * @SCALE divides sizes and sleeps, for machines that cannot hold the model; the line says so. */
#include "bench.h"
#include "lists.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    size_t count, elements; /* messages, and their elements together */
    int *sizes;
    double *compute;
    float *in, *out; /* messages one after the other, as a model's gradients lie */
    MPI_Request *requests;
    int computing, overlap;
    double scale;
} step;

static void run_step(void *work, const bench_side *side) {
    const step *all = work;
    size_t place = 0;
    for (size_t i = 0; i < all->count; i++) {
        if (all->computing) bench_sleep(all->compute[i]);
        if (all->overlap)
            side->start(all->in + place, all->out + place, all->sizes[i], MPI_FLOAT, MPI_SUM,
                        MPI_COMM_WORLD, &all->requests[i]);
        else
            side->all(all->in + place, all->out + place, all->sizes[i], MPI_FLOAT, MPI_SUM,
                      MPI_COMM_WORLD);
        place += (size_t)all->sizes[i];
    }
    if (all->overlap) side->wait((int)all->count, all->requests, MPI_STATUSES_IGNORE);
}

static int scaled(size_t elements, double scale) {
    const double size = floor((double)elements / scale);
    if (size > INT_MAX) bench_fail("a message of %.0f numbers; choose a larger scale", size);
    return size < 1.0 ? 1 : (int)size;
}

static void prepare(step *all, const list_workload *list, const bench_options *options) {
    for (size_t i = 0; i < list->count; i++) all->count += list->messages[i].times;
    all->sizes = bench_memory(all->count, sizeof(int));
    all->compute = bench_memory(all->count, sizeof(double));
    all->requests = bench_memory(all->count, sizeof(MPI_Request));
    size_t next = 0;
    for (size_t i = 0; i < list->count; i++)
        for (unsigned again = 0; again < list->messages[i].times; again++, next++) {
            all->sizes[next] = scaled(list->messages[i].elements, all->scale);
            all->compute[next] = list->messages[i].compute / all->scale;
            all->elements += (size_t)all->sizes[next];
        }
    all->in = bench_memory(all->elements, sizeof(float));
    all->out = bench_memory(all->elements, sizeof(float));
    float *values = all->in;
    for (size_t i = 0; i < all->count; values += all->sizes[i++])
        bench_fill(values, (size_t)all->sizes[i], options->norm, bench_rank());
}

/* Runs a step by each side, not timed, and returns what its sums are off. */
static void check(step *all, const bench_options *options, double error[BENCH_SIDES]) {
    for (int side = 0; side < BENCH_SIDES; side++) {
        const double kept = side == BENCH_OURS ? options->kept : 1.0;
        const float *sums = all->out;
        double squares = 0.0;
        memset(all->out, 0, all->elements * sizeof(float));
        run_step(all, &bench_sides[side]);
        for (size_t i = 0; i < all->count; sums += all->sizes[i++])
            squares += bench_squared_error(sums, (size_t)all->sizes[i], options->norm * kept,
                                           bench_ranks());
        error[side] = sqrt(squares / (double)all->elements);
    }
}

static void measure(const char *name, const list_workload *list, step *all,
                    const bench_options *options) {
    prepare(all, list, options);
    bench_case about = {name, all->elements, all->count, 1, all->scale, {0.0, 0.0}};
    const bench_unit unit = {run_step, all, (double)all->elements};
    bench_times times;
    check(all, options, about.error);
    bench_measure(options, options->rounds, &unit, &times);
    bench_print(&about, &times);
    bench_times_free(&times);
    free(all->sizes);
    free(all->compute);
    free(all->requests);
    free(all->in);
    free(all->out);
}

/* Measures what LIST/KIND[/overlap][@SCALE] names. */
static void measure_named(const char *text, const bench_options *options) {
    step all = {.scale = 1.0};
    char name[64], rest[64];
    if (strlen(text) >= sizeof(name)) bench_fail("no such workload: %s", text);
    strcpy(name, text);
    char *scale = strchr(name, '@');
    if (scale != NULL) {
        *scale = '\0';
        all.scale = bench_number(scale + 1, 1.0);
    }
    strcpy(rest, name);
    char *kind = strchr(rest, '/'), *overlap = kind ? strchr(kind + 1, '/') : NULL;
    if (kind != NULL) *kind++ = '\0';
    if (overlap != NULL) *overlap++ = '\0';
    const list_workload *list = list_find(rest);
    all.computing = kind != NULL && strcmp(kind, "compute") == 0;
    all.overlap = overlap != NULL && strcmp(overlap, "overlap") == 0;
    if (list == NULL || kind == NULL || !(all.computing || strcmp(kind, "comm") == 0) ||
        (overlap != NULL && !all.overlap))
        bench_fail("expected LIST/compute or LIST/comm, got %s; --lists shows the lists", text);
    measure(name, list, &all, options);
}

static void print_lists(void) {
    const list_workload *list;
    for (size_t place = 0; (list = list_at(place)) != NULL; place++) {
        printf("{\"name\": \"%s\", \"about\": \"%s\", \"messages\": [", list->name, list->about);
        for (size_t i = 0; i < list->count; i++)
            printf("%s[%zu, %g, %u]", i ? ", " : "", list->messages[i].elements,
                   list->messages[i].compute, list->messages[i].times);
        puts("]}");
    }
}

int main(int count, char **arguments) {
    bench_options options = {.rounds = 7, .norm = 1.0, .kept = 1.0};
    if (count == 2 && strcmp(arguments[1], "--lists") == 0) {
        print_lists();
        return 0;
    }
    MPI_Init(&count, &arguments);
    for (int i = 1, took; i < count; i += took) {
        took = arguments[i][0] != '-' ? 1 : bench_option(&options, count - i, arguments + i);
        if (took == 0) bench_fail("unknown option %s", arguments[i]);
    }
    for (int i = 1; i < count; i += arguments[i][0] == '-' ? 2 : 1)
        if (arguments[i][0] != '-') measure_named(arguments[i], &options);
    MPI_Finalize();
    return 0;
}
