/* A thread for each communicator with operations under way in shared memory. It calls no MPI, so any
 * thread level will do, and runs them in their order. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "later.h"

struct dm_worker {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t work;
    dm_operation *first, *last;
    int stop;
    _Atomic int pending;
};

static pthread_mutex_t end_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t end_seen = PTHREAD_COND_INITIALIZER;
static _Atomic int in_threads; /* operations of all communicators */

void dm_operation_ended(dm_operation *operation) {
    pthread_mutex_lock(&end_lock);
    atomic_store(&operation->done, 1);
    pthread_cond_broadcast(&end_seen);
    pthread_mutex_unlock(&end_lock);
}

static void nap_until_end(long nanoseconds) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += nanoseconds;
    if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
    pthread_mutex_lock(&end_lock);
    pthread_cond_timedwait(&end_seen, &end_lock, &until);
    pthread_mutex_unlock(&end_lock);
}

/* Where a thread of ours does the work it gets the core; MPI does its own work while it is asked. */
void dm_pause(unsigned turn) {
    enum { TURNS = 64, NAP_NS = 20000, LONG_NAP_NS = 100000 };
    if (turn < TURNS || !atomic_load(&in_threads)) return;
    nap_until_end(turn < 16 * TURNS ? NAP_NS : LONG_NAP_NS);
}

static void *run(void *argument) {
    dm_worker *worker = argument;
    pthread_mutex_lock(&worker->lock);
    for (;;) {
        while (!worker->first && !worker->stop) pthread_cond_wait(&worker->work, &worker->lock);
        dm_operation *operation = worker->first;
        if (!operation) break;
        worker->first = operation->queued;
        if (!worker->first) worker->last = NULL;
        pthread_mutex_unlock(&worker->lock);
        dm_group *group = operation->group;
        operation->outcome = DM_FAILED;
        if (group->failure == DITHER_OK)
            operation->outcome = dm_run(group, &operation->sum, 1);
        atomic_fetch_sub(&worker->pending, 1);
        atomic_fetch_sub(&in_threads, 1);
        dm_operation_ended(operation);
        pthread_mutex_lock(&worker->lock);
    }
    pthread_mutex_unlock(&worker->lock);
    return NULL;
}

static dm_worker *begin(void) {
    sigset_t all, before;
    dm_worker *worker = calloc(1, sizeof *worker);
    if (!worker) return NULL;
    pthread_mutex_init(&worker->lock, NULL);
    pthread_cond_init(&worker->work, NULL);
    /* Signals are for the program's own threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int failed = pthread_create(&worker->thread, NULL, run, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!failed) return worker;
    free(worker);
    return NULL;
}

int dm_worker_submit(dm_operation *operation) {
    dm_group *group = operation->group;
    if (!group->worker && !(group->worker = begin())) return 0;
    dm_worker *worker = group->worker;
    operation->queued = NULL;
    pthread_mutex_lock(&worker->lock);
    if (worker->last)
        worker->last->queued = operation;
    else
        worker->first = operation;
    worker->last = operation;
    atomic_fetch_add(&worker->pending, 1);
    atomic_fetch_add(&in_threads, 1);
    pthread_cond_signal(&worker->work);
    pthread_mutex_unlock(&worker->lock);
    return 1;
}

void dm_drain(dm_group *group) {
    for (unsigned turn = 0; atomic_load(&group->worker->pending) > 0; turn++) {
        dm_poll(group);
        dm_pause(turn);
    }
}

void dm_worker_close(dm_group *group) {
    dm_worker *worker = group->worker;
    if (!worker) return;
    pthread_mutex_lock(&worker->lock);
    worker->stop = 1;
    pthread_cond_signal(&worker->work);
    pthread_mutex_unlock(&worker->lock);
    pthread_join(worker->thread, NULL);
    pthread_cond_destroy(&worker->work);
    pthread_mutex_destroy(&worker->lock);
    free(worker);
    group->worker = NULL;
}
