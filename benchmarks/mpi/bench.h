/* What both programs share: contributions with a known sum, fair turns, one JSON line a case.
 *
 * A program calls its AllReduce under two names in turn: PMPI_Allreduce, which MPI defines as the
 * way past every interposed library, and MPI_Allreduce, which such a library takes. Without one both
 * are the same function. What the bench itself needs of MPI it calls by PMPI names, so that nothing
 * of its own is protected, refused or counted. */
#ifndef BENCH_H
#define BENCH_H

#include <mpi.h>
#include <stddef.h>

/* One name of the calls that are timed. */
typedef struct {
    int (*all)(const void *, void *, int, MPI_Datatype, MPI_Op, MPI_Comm);
    int (*start)(const void *, void *, int, MPI_Datatype, MPI_Op, MPI_Comm, MPI_Request *);
    int (*wait)(int, MPI_Request *, MPI_Status *);
} bench_side;

enum { BENCH_BARE = 0, BENCH_OURS = 1, BENCH_SIDES = 2 };
extern const bench_side bench_sides[BENCH_SIDES];

/* How to time. */
typedef struct {
    unsigned rounds; /* timed units of each side, at least 2 */
    double drain;    /* 0: ours rests before a unit, as the bare side does. Else no rest, but units that
                      * are not timed, until so many numbers were summed: what was made ahead is used up */
    double rest;     /* seconds of a rest, besides MPI_Pcontrol(2) */
    double norm;     /* L2 norm of each contribution */
    double kept;     /* what clipping to its bound leaves of it, in (0, 1] */
} bench_options;

/* Reads one option that both programs have; returns how many arguments it took, 0 if it is none. */
int bench_option(bench_options *options, int count, char **arguments);

/* One unit of work, by one side's calls. */
typedef void (*bench_run)(void *work, const bench_side *side);

typedef struct {
    bench_run run;
    void *work;
    double numbers; /* that it sums */
} bench_unit;

/* Seconds of the slowest rank, `rounds` of each side, in turn and in alternating order. */
typedef struct {
    unsigned rounds;
    double *seconds[BENCH_SIDES];
} bench_times;

void bench_measure(const bench_options *options, unsigned rounds, const bench_unit *unit,
                   bench_times *times);
void bench_times_free(bench_times *times);

/* What a line tells besides times. Errors: root mean square over coordinates of what came out, less
 * the sum of contributions (of ours: of the kept part of them). */
typedef struct {
    const char *name;
    size_t elements; /* of all messages together */
    size_t messages;
    unsigned in_a_row; /* times that all of it was done within one timing, which is that of one */
    double scale;    /* what the published sizes and times were divided by */
    double error[BENCH_SIDES];
} bench_case;

/* Rank 0 writes the line. */
void bench_print(const bench_case *about, const bench_times *times);

/* Fills a contribution of `count` floats: signs of its own for each rank, all of one size. */
void bench_fill(float *values, size_t count, double norm, int rank);

/* Sum over coordinates of the squared error of an AllReduce of such contributions. */
double bench_squared_error(const float *sum, size_t count, double norm, int ranks);

int bench_rank(void);
int bench_ranks(void);
void bench_sleep(double seconds);

/* Zeroed memory from a page's start, lest times depend on where the heap happens to stand; ends the
 * program where there is none. */
void *bench_memory(size_t count, size_t size);

/* Ends all ranks, with a text. */
void bench_fail(const char *format, ...);

/* A number of at least `least`, or the end of all ranks. */
double bench_number(const char *text, double least);

#endif
