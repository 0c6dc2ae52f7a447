/* What the files of the MPI library share. Nothing here leaves the library. */
#ifndef DITHER_MPI_CORE_H
#define DITHER_MPI_CORE_H

#include <mpi.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "dither_arithmetic.h"
#include "counted.h"
#include "dither.h"
#include "plan.h"

#if MPI_VERSION >= 4
#define DM_LARGE 1 /* MPI_Count and the functions that end in _c */
#define DM_PERSISTENT 1
#elif defined(OMPI_MAJOR_VERSION) && OMPI_MAJOR_VERSION >= 5
#define DM_PERSISTENT 1 /* MPI 3.1 with MPI 4's persistent collectives */
#endif

/* ---- which calls, types -------------------------------------------------------------------- */

typedef enum {
    DM_ALLREDUCE,
    DM_REDUCE,
    DM_IALLREDUCE,
    DM_IREDUCE,
    DM_ALLREDUCE_INIT,
    DM_REDUCE_INIT,
    DM_CALLS
} dm_call;

extern const char *const dm_call_names[DM_CALLS];

typedef enum {
    DM_NO_KIND,
    DM_F32,
    DM_F64,
    DM_I32,
    DM_I64,
    DM_F16, /* IEEE 754 binary16 */
    DM_B16  /* bfloat16 */
} dm_kind;

void dm_kinds_init(void);
dm_kind dm_kind_of(MPI_Datatype type);
size_t dm_kind_size(dm_kind kind);
/* The float in which the core works on this kind. */
dither_float dm_kind_float(dm_kind kind);
/* `count` values as floats of that type, and back: integers rounded and cut at their range. */
void dm_to_floats(dm_kind kind, const void *values, void *floats, size_t count);
void dm_from_floats(dm_kind kind, const void *floats, void *values, size_t count);
/* Of a predefined operation; "a user-defined operation" otherwise. */
const char *dm_op_name(MPI_Op op);

/* ---- the process --------------------------------------------------------------------------- */

typedef struct {
    dm_plan plan;
    const dither_kernels *kernels;
    dither_key *key;
    int rank, size;
    int crowded;           /* whether ranks of this host leave no core to threads of ours */
    MPI_Comm self;         /* for messages to ourselves */
    _Atomic int ready;     /* between MPI_Init and MPI_Finalize */
} dm_process;

extern dm_process dm;

/* ---- messages and errors ------------------------------------------------------------------- */

/* Print and end all ranks. For what happens before a call could return an error. */
_Noreturn void dm_die(const char *format, ...) __attribute__((format(printf, 1, 2)));

typedef enum { DM_DONE, DM_REFUSED, DM_SPENT, DM_FAILED } dm_outcome;

void dm_errors_init(void);
/* One line on stderr, by the communicator's rank 0, once for each `kind`; then the program's handler, with an
 * error code whose string is the text. */
int dm_fail(MPI_Comm comm, const char *kind, const char *text);
/* MPI's own error for arguments that make no call. */
int dm_invalid(MPI_Comm comm, int error_class);

/* ---- figures ------------------------------------------------------------------------------- */

typedef struct {
    dither_counter protected_calls, bytes, refused, cleared;
} dm_call_figures;

typedef struct {
    dm_call_figures calls[DM_CALLS];
    dither_counter starts, startalls;       /* of the program's own persistent requests */
    dither_counter releases;
    dither_counter drawn;                   /* draws without a pool */
    dither_counter clip, sum, wait; /* ticks */
    dither_counter saturated;               /* for nobody: not in the report */
    dither_counter not_finite;              /* nor this: it tells of contributions */
} dm_figures;

extern dm_figures dm_stats;

static inline void dm_add(dither_counter *counter, uint64_t more) {
    atomic_fetch_add_explicit(counter, more, memory_order_relaxed);
}

/* Nanoseconds; ticks, whose reading costs less than a tenth, and how many make a second. */
uint64_t dm_now(void);
static inline uint64_t dm_ticks(void) {
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t ticks;
    __asm__ __volatile__("mrs %0, cntvct_el0" : "=r"(ticks));
    return ticks;
#else
    return dm_now();
#endif
}
void dm_clock_start(void);
double dm_ticks_per_second(void);
/* The report for the agent, one line of JSON; the caller frees it. */
char *dm_stats_json(void);

/* ---- the agent ----------------------------------------------------------------------------- */

void dm_agent_open(void);
/* Take up to what the plan allows from this rank's budget, put some back. Any thread. */
uint64_t dm_budget_take(void);
/* Use one, for this rank alone: 1, or 0 where none is left. */
int dm_budget_one(void);
void dm_budget_return(uint64_t releases);
/* Tell what was used: at the end; or the figures alone, before something that may be the end. */
void dm_agent_bye(void);
void dm_agent_figures(void);

/* ---- noise --------------------------------------------------------------------------------- */

/* The pool for a sigma, or NULL where none can be: then draws are made in place. */
dither_pool *dm_pool_for(double sigma, int log_length);
/* A call begins, or ends. */
void dm_pools_call(int begins);
void dm_pools_warm(void);
void dm_pools_free(void);
void dm_pools_figures(uint64_t *used, uint64_t *dry, uint64_t *wait_ns);

/* ---- communicators ------------------------------------------------------------------------- */

enum { DM_BLOCK = 1 << 18, DM_SOURCES = 8 };

/* One lattice of a communicator: for messages of at most `most` elements. */
typedef struct {
    size_t most;
    dither_release how;
} dm_source;

/* Where a rank of this host says that it has come to a call, in turns in one of two; a short message comes
 * with it. Two are enough: whoever is in call n + 2 knows that all others have ended call n. */
enum { DM_TINY = 112, DM_SHORT = 16384 };

typedef struct {
    _Alignas(128) _Atomic uint32_t call; /* 1, 2, ... mod 2^32 */
    uint32_t digest;                     /* of a short message's call */
    uint64_t unused;
    unsigned char tiny[DM_TINY];
} dm_line;

typedef struct {
    dm_line line[2];
    _Alignas(128) _Atomic uint32_t end; /* DM_LEFT, DM_BROKE: it comes to no further call */
    unsigned char message[2][DM_SHORT];
} dm_arrival;

enum { DM_LEFT = 1, DM_BROKE };

typedef struct dm_worker dm_worker;
typedef struct dm_pads dm_pads;
typedef struct dm_purse dm_purse;

typedef struct dm_group {
    MPI_Comm comm;  /* the program's */
    MPI_Comm own;   /* a duplicate: our messages never meet the program's */
    int rank, ranks;
    pthread_mutex_t turn;     /* one call at a time, whatever the program's threads do */
    _Atomic int by_mpi;       /* operations under way over MPI */
    int gone;                 /* the program freed its communicator */
    _Atomic int established;  /* whether what follows is there */
    int host_ranks;           /* of it, on this host */
    int spins;                /* whether each of those can have a core */
    dither_shm *shm;          /* NULL: over MPI */
    dm_arrival *arrivals;     /* one a rank, shared */
    uint32_t calls;
    dm_source sources[DM_SOURCES];
    int source_count;
    uint64_t quota;           /* releases that all ranks of it have reserved */
    uint64_t nonce;           /* the same on all its ranks */
    dither_status failure;    /* of an earlier call */
    int culprit;              /* the rank that it is about, or -1 */
    void *floats, *sums;      /* scratch: DM_BLOCK float64 each */
    int32_t *message;         /* scratch: DM_BLOCK */
    dm_worker *worker;
    dm_pads *pads;            /* encryption's */
    dm_purse *purse;          /* some ready draws, for short messages */
    _Atomic int references;   /* the communicator's, and one for each operation under way */
    struct dm_group *next;
} dm_group;

void dm_groups_init(void);
/* The group of an intra-communicator, NULL of an intercommunicator. Waits for nobody. */
dm_group *dm_group_of(MPI_Comm comm);
/* Our own communicator and shared memory: at the first call that blocks, by all ranks together. */
void dm_group_establish(dm_group *group);
void dm_group_release(dm_group *group);
void dm_groups_close(void);
/* The lattice for a length, or NULL. */
dm_source *dm_source_for(dm_group *group, size_t count);
/* Ranks and cores of this host. Collective. */
void dm_host_look(dm_group *group);
/* Shared memory for all ranks, if they are on one host; else over MPI. Collective. */
void dm_segment_open(dm_group *group);
void dm_segment_close(dm_group *group);

/* ---- sums ---------------------------------------------------------------------------------- */

/* One call. `root` is -1 for all. */
typedef struct {
    dm_call call;
    dm_kind kind;
    size_t count;
    const void *values;
    void *result; /* NULL where this rank gets none */
    int root;
} dm_sum;

/* Reserve one release on all ranks together: DM_DONE, or DM_SPENT on all of them. With `worker`, by
 * shared memory alone: that thread calls no MPI. */
dm_outcome dm_reserve(dm_group *group, int worker);
/* Clip, protect, sum. `worker` as above. */
dm_outcome dm_run(dm_group *group, const dm_sum *sum, int worker);
/* The factor that brings values into the ball. Clears `finite` where they are none that can count. */
double dm_factor(dm_kind kind, const void *values, size_t count, void *floats, int *finite);
/* No noise, no sum: ends all ranks. */
_Noreturn void dm_no_noise(dither_status status);
/* Scratch memory; 0 if there is none. */
int dm_scratch(dm_group *group);
/* Wait until all ranks have come to this call, and let MPI move other messages meanwhile. */
dither_status dm_meet(dm_group *group);
/* The same in two: come, then wait. */
void dm_come(dm_group *group);
dither_status dm_await(dm_group *group);
/* No call on this communicator will succeed any more; tell the others, so that nobody waits for us. Where they
 * cannot be told all ranks end. */
void dm_break(dm_group *group, dither_status status);
/* Tell them that we leave. */
void dm_depart(dm_group *group);
/* Whether one of them broke it: ends waits of the core's. */
int dm_is_broken(void *group);
/* Short messages, in the same step as meeting. */
int dm_is_short(const dm_group *group, const dm_sum *sum, const dm_source *source);
dither_status dm_short(dm_group *group, const dm_sum *sum, const dm_source *source, double factor,
                       int finite);
void dm_purse_close(dm_group *group);
/* Let MPI move other messages. */
void dm_poll(dm_group *group);
void dm_nap(long nanoseconds);

/* The encrypted baseline. */
dm_outcome dm_run_encrypted(dm_group *group, const dm_sum *sum, int worker);
void dm_pads_open(dm_group *group);
void dm_pads_close(dm_group *group);
void dm_pads_warm(dm_group *group);

/* A call with arguments of any form: checks, runs, reports. */
typedef struct {
    dm_call call;
    const void *send;
    void *receive;
    MPI_Count count;
    MPI_Datatype type;
    MPI_Op op;
    MPI_Comm comm;
    int root;
} dm_arguments;

/* Whether the call is to be protected; if not, *code is what to return, or -1 to pass it in clear. */
int dm_admit(const dm_arguments *arguments, dm_group **group, dm_sum *sum, int *code);
int dm_blocking(const dm_arguments *arguments);
/* In clear: MPI's own call. */
int dm_clear(const dm_arguments *arguments, MPI_Request *request, MPI_Info info);
/* The text for an outcome, and the code to return. */
int dm_conclude(const dm_arguments *arguments, dm_outcome outcome, const dm_group *group);

/* ---- operations that end later -------------------------------------------------------------- */

/* Operations under way, and persistent ones: while there are none, waiting is MPI's own. */
extern _Atomic int dm_live;
extern _Atomic int dm_persistent;

int dm_start(const dm_arguments *arguments, MPI_Request *request);
int dm_prepare(const dm_arguments *arguments, MPI_Info info, MPI_Request *request);
int dm_start_prepared(MPI_Request *request, int *found);
void dm_free_prepared(MPI_Request request);
/* Complete the requests of operations that have ended. */
void dm_progress(void);
/* Sleep shortly, or until an operation ends. `turn` counts the caller's turns. */
void dm_pause(unsigned turn);
/* Wait until no operation of this group is in its thread's hands. */
void dm_drain(dm_group *group);
/* Wait for all. */
void dm_finish(void);
/* The error of a persistent operation that ended just now, if MPI itself found none. */
int dm_late_error(int code);
void dm_worker_close(dm_group *group);

/* MPI_Init and MPI_Finalize. */
void dm_open(void);
void dm_close(void);
/* One MPI in this process; and no other library or tool that takes the protected calls before us. */
void dm_one_mpi(void);
void dm_ours_first(void);

#endif
