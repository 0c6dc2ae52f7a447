/* Pools of noise made ahead: one for each width of noise that communicators need.
 *
 * Where ranks leave no core idle, making noise between two calls of a loop only takes time from the calls:
 * so there pools are held during calls, and linger. */
#include "mpi_core.h"

enum { POOLS_MOST = 8, LOG_LENGTH_MOST = 30, TICK_NS = 1000000, POOL_BLOCK = 65536 };

static const double LINGER = 1e-3; /* seconds */

static struct {
    double sigma;
    dither_pool *pool;
} pools[POOLS_MOST];
static _Atomic int pool_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void dm_pools_call(int begins) {
    if (!dm.crowded) return;
    const int count = atomic_load_explicit(&pool_count, memory_order_acquire);
    for (int i = 0; i < count; i++) dither_pool_hold(pools[i].pool, begins);
}

static dither_pool *made(double sigma) {
    dither_pool *pool = NULL;
    if (dither_pool_new(dm.kernels, dm.key, sigma, dm.plan.pool, &pool) != DITHER_OK) return NULL;
    if (dm.crowded) dither_pool_linger(pool, LINGER);
    return pool;
}

dither_pool *dm_pool_for(double sigma, int log_length) {
    dither_pool *found = NULL;
    if (!dm.plan.pool || sigma > DITHER_MAX_SIGMA_I32 || log_length > LOG_LENGTH_MOST) return NULL;
    pthread_mutex_lock(&lock);
    const int count = pool_count;
    for (int i = 0; i < count && !found; i++)
        if (pools[i].sigma == sigma) found = pools[i].pool;
    if (!found && count < POOLS_MOST && (found = made(sigma))) {
        pools[count].sigma = sigma;
        pools[count].pool = found;
        atomic_store_explicit(&pool_count, count + 1, memory_order_release);
    }
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
    while (pool_count > 0) {
        const int last = pool_count - 1;
        pool_count = last; /* first: a call that holds pools must not meet one that is gone */
        dither_pool_free(pools[last].pool);
    }
}
