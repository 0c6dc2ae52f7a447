/* Pools of noise made ahead: one for each width of noise that communicators need.
 *
 * Where ranks leave no core idle, making noise between two calls of a loop only takes time from the calls:
 * a pool's thread, once woken, is in the way of the next. So there pools are held from the first call of a loop
 * until no call has come for a while, which a thread of ours finds out. */
#include <signal.h>
#include <time.h>

#include "mpi_core.h"

enum { POOLS_MOST = 8, LOG_LENGTH_MOST = 30, TICK_NS = 1000000, POOL_BLOCK = 65536 };

static struct {
    double sigma;
    dither_pool *pool;
} pools[POOLS_MOST];
static int pool_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static _Atomic int held, calls_under_way;
static _Atomic uint64_t calls; /* all so far */
static pthread_cond_t change = PTHREAD_COND_INITIALIZER;
static pthread_t watcher;
static int watched, stopping;

static void hold_all(int on) {
    for (int i = 0; i < pool_count; i++) dither_pool_hold(pools[i].pool, on);
}

/* Let go when a whole tick went by without a call. */
static void *watch(void *unused) {
    pthread_mutex_lock(&lock);
    while (!stopping) {
        if (!held) {
            pthread_cond_wait(&change, &lock);
            continue;
        }
        const uint64_t seen = calls;
        pthread_mutex_unlock(&lock);
        dm_nap(TICK_NS);
        pthread_mutex_lock(&lock);
        if (seen != calls || calls_under_way) continue;
        held = 0;
        hold_all(0);
    }
    pthread_mutex_unlock(&lock);
    return unused;
}

static void watch_begin(void) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    watched = pthread_create(&watcher, NULL, watch, NULL) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void dm_pools_call(int begins) {
    if (!watched) return;
    if (!begins) {
        atomic_fetch_sub_explicit(&calls_under_way, 1, memory_order_relaxed);
        return;
    }
    atomic_fetch_add_explicit(&calls_under_way, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&calls, 1, memory_order_relaxed);
    if (atomic_load_explicit(&held, memory_order_relaxed)) return;
    pthread_mutex_lock(&lock);
    if (!held) {
        hold_all(1);
        held = 1;
        pthread_cond_signal(&change);
    }
    pthread_mutex_unlock(&lock);
}

/* Its thread computes as we do, not as the program does. */
static int made(double sigma, dither_pool **pool) {
    const dm_arithmetic program = dm_arithmetic_enter();
    const dither_status status = dither_pool_new(dm.kernels, dm.key, sigma, dm.plan.pool, pool);
    dm_arithmetic_leave(program);
    return status == DITHER_OK;
}

dither_pool *dm_pool_for(double sigma, int log_length) {
    dither_pool *found = NULL;
    if (!dm.plan.pool || sigma > DITHER_MAX_SIGMA_I32 || log_length > LOG_LENGTH_MOST) return NULL;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < pool_count && !found; i++)
        if (pools[i].sigma == sigma) found = pools[i].pool;
    if (!found && pool_count < POOLS_MOST && made(sigma, &found)) {
        if (held) dither_pool_hold(found, 1);
        pools[pool_count].sigma = sigma;
        pools[pool_count++].pool = found;
    }
    if (found && dm.crowded && !watched) watch_begin();
    pthread_mutex_unlock(&lock);
    return found;
}

/* Full up to the block that is in use: only whole ones are made. */
static int is_full(dither_pool *pool) {
    dither_pool_stats stats;
    dither_pool_stats_get(pool, &stats);
    return stats.ready + POOL_BLOCK > stats.capacity || !stats.running;
}

void dm_pools_warm(void) {
    for (int i = 0; i < pool_count; i++)
        while (!is_full(pools[i].pool)) dm_nap(TICK_NS);
}

void dm_pools_figures(uint64_t *used, uint64_t *dry, uint64_t *wait_ns) {
    *used = *dry = *wait_ns = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < pool_count; i++) {
        dither_pool_stats stats;
        dither_pool_stats_get(pools[i].pool, &stats);
        *used += stats.used;
        *dry += stats.dry;
        *wait_ns += stats.wait_ns;
    }
    pthread_mutex_unlock(&lock);
}

void dm_pools_free(void) {
    pthread_mutex_lock(&lock);
    stopping = 1;
    pthread_cond_signal(&change);
    pthread_mutex_unlock(&lock);
    if (watched) pthread_join(watcher, NULL);
    watched = 0;
    while (pool_count > 0) dither_pool_free(pools[--pool_count].pool);
}
