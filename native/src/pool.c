/* Lattice noise made ahead by a thread of its own.
 *
 * A ring of blocks, filled at the head by the producer and consumed at the tail. A draw serves
 * once: the tail only moves on, and the producer overwrites a consumed block with zeros at once,
 * then with fresh draws: wiping is off the critical path. Consumers wipe what they take of a block
 * that they do not empty, and everything where there is no producer. The blocks lie on pages that a
 * forked child sees as zeros (Linux), the mark of their owner among them; elsewhere the process id
 * tells. So a child finds that nothing is its own, drops it, and starts a thread and key numbers of
 * its own. When nothing is ready, the caller's draws are made in place, from the same key. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "codec.h"
#include "dither_arithmetic.h"
#include "lattice.h"
#include "process.h"
#include "wipe.h"

enum { BLOCK = 65536 };

struct dither_pool {
    const dither_kernels *kernels;
    dither_key *key;
    double sigma;
    size_t blocks;
    int32_t *ring;          /* blocks · BLOCK draws */
    pthread_mutex_t lock;   /* guards what follows */
    pthread_mutex_t taking; /* one consumer at a time */
    pthread_cond_t space;
    pthread_t producer;
    size_t head, tail;      /* blocks ever filled, blocks ever consumed */
    size_t offset;          /* draws used of the tail block */
    int stop, joinable;
    _Atomic uint64_t holds; /* low half: releases under way that keep the thread waiting; high: all so far */
    _Atomic int wanted;     /* whether there is work for the thread once nobody holds it */
    _Atomic long linger_ns;
    dither_pool_stats stats;
    dither_owner *owner;    /* whose draws these are; behind the ring, wiped with it by `fork` */
};

static size_t pages(const dither_pool *pool) {
    return pool->blocks * BLOCK * sizeof(int32_t) + sizeof(dither_owner);
}

/* Noise ahead is worth idle time only: a compute thread that must wait for this one's time slice
 * would hold up all threads of its barrier. Where nothing is idle, draws are made in place. */
static void yield_to_others(void) {
#ifdef __linux__
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 19); /* Linux: of the thread alone */
#endif
}

enum { HALF = 32 };

static unsigned held(const dither_pool *pool) { return (uint32_t)atomic_load(&pool->holds); }

static unsigned held_ever(const dither_pool *pool) {
    return (unsigned)(atomic_load(&pool->holds) >> HALF);
}

static int is_full(const dither_pool *pool) { return pool->head - pool->tail >= pool->blocks; }

/* Who sees work says so before it looks for holds, and who ends a hold looks for work after that: so one of the
 * two sees the other. Where there is none, the end of a hold wakes nobody. */
static void sleep_until_woken(dither_pool *pool) {
    if (!is_full(pool)) atomic_store(&pool->wanted, 1);
    if (!pool->stop && (is_full(pool) || held(pool)))
        pthread_cond_wait(&pool->space, &pool->lock);
}

/* Wait, with the lock, until a block shall be made. Whoever lingers looks by itself whether holds still come:
 * to be woken after each of them would cost the caller more than what is waited for. */
static void await_work(dither_pool *pool, unsigned *quiet) {
    while (!pool->stop) {
        const unsigned holds = held_ever(pool);
        const struct timespec linger = {0, atomic_load(&pool->linger_ns)};
        if (!held(pool) && !is_full(pool) && (!linger.tv_nsec || holds == *quiet))
            return;
        if (is_full(pool) || !linger.tv_nsec) {
            sleep_until_woken(pool);
            continue;
        }
        pthread_mutex_unlock(&pool->lock);
        (void)nanosleep(&linger, NULL);
        pthread_mutex_lock(&pool->lock);
        if (!held(pool) && holds == held_ever(pool)) *quiet = holds;
    }
}

static void *produce(void *argument) {
    dither_pool *pool = argument;
    unsigned quiet = held_ever(pool);
    (void)dither_arithmetic_enter();
    yield_to_others();
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        await_work(pool, &quiet);
        if (pool->stop) break;
        int32_t *block = pool->ring + pool->head % pool->blocks * BLOCK;
        pthread_mutex_unlock(&pool->lock);
        dither_wipe(block, BLOCK * sizeof *block);
        lattice_source source;
        dither_status status =
            lattice_open(&source, pool->kernels, pool->key, pool->sigma, BLOCK);
        if (status == DITHER_OK) {
            lattice_fill_i32(&source, block, BLOCK);
            lattice_close(&source);
        }
        pthread_mutex_lock(&pool->lock);
        if (status != DITHER_OK) break; /* consumers make their own, and meet the error there */
        pool->head++;
        pool->stats.filled += BLOCK;
    }
    pool->stats.running = 0;
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

static dither_status start(dither_pool *pool) {
    sigset_t all, before;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_mutex_init(&pool->taking, NULL);
    pthread_cond_init(&pool->space, NULL);
    pool->stop = 0;
    pool->holds = 0;
    pool->wanted = 0;
    pool->stats.running = 1;
    /* Signals are for the program's own threads: it may have blocked one to wait for it. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pool->joinable = pthread_create(&pool->producer, NULL, produce, pool) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (pool->joinable) return DITHER_OK;
    pool->stats.running = 0;
    return DITHER_NO_THREAD;
}

dither_status dither_pool_new(const dither_kernels *kernels, dither_key *key, double sigma,
                              size_t capacity, dither_pool **out) {
    *out = NULL;
    if (!(sigma > 0 && sigma <= DITHER_MAX_SIGMA_I32)) return DITHER_BAD_SIGMA;
    size_t blocks = capacity / BLOCK + (capacity % BLOCK != 0);
    if (blocks > SIZE_MAX / sizeof(int32_t) / BLOCK - 1) return DITHER_NO_MEMORY;
    dither_pool *pool = calloc(1, sizeof *pool);
    if (!pool) return DITHER_NO_MEMORY;
    pool->kernels = kernels;
    pool->key = key;
    pool->sigma = sigma;
    pool->blocks = blocks < 2 ? 2 : blocks;
    size_t bytes = pages(pool);
    pool->ring = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pool->ring == MAP_FAILED) {
        free(pool);
        return DITHER_NO_MEMORY;
    }
#ifdef MADV_HUGEPAGE
    (void)madvise(pool->ring, bytes, MADV_HUGEPAGE);
#endif
#ifdef MADV_DONTDUMP
    (void)madvise(pool->ring, bytes, MADV_DONTDUMP);
#endif
#ifdef MADV_WIPEONFORK
    (void)madvise(pool->ring, bytes, MADV_WIPEONFORK);
#endif
    pool->stats.capacity = pool->blocks * BLOCK;
    pool->owner = (dither_owner *)(pool->ring + pool->blocks * BLOCK);
    dither_owner_init(pool->owner);
    dither_status status = start(pool);
    if (status != DITHER_OK) {
        (void)munmap(pool->ring, bytes);
        free(pool);
        return status;
    }
    *out = pool;
    return DITHER_OK;
}

static size_t ready(const dither_pool *pool) {
    return (pool->head - pool->tail) * BLOCK - pool->offset;
}

/* In a forked child the locks are in an unknown state, the thread is gone and the draws are the
 * parent's. */
static void adopt(dither_pool *pool) {
    if (dither_owned(pool->owner) || !dither_claim(pool->owner)) return;
    size_t left = ready(pool);
    dither_wipe(pool->ring, pool->blocks * BLOCK * sizeof(int32_t));
    memset(&pool->stats, 0, sizeof pool->stats);
    pool->stats.capacity = pool->blocks * BLOCK;
    pool->stats.discarded = left;
    pool->head = pool->tail = pool->offset = 0;
    /* Without a thread it is a pool that is always dry: right, only slower. */
    (void)start(pool);
    dither_claimed(pool->owner, 1);
}

void dither_pool_free(dither_pool *pool) {
    if (!pool) return;
    if (dither_owned(pool->owner)) {
        pthread_mutex_lock(&pool->lock);
        pool->stop = 1;
        pthread_cond_broadcast(&pool->space);
        pthread_mutex_unlock(&pool->lock);
        if (pool->joinable) pthread_join(pool->producer, NULL);
        pthread_cond_destroy(&pool->space);
        pthread_mutex_destroy(&pool->taking);
        pthread_mutex_destroy(&pool->lock);
    }
    size_t bytes = pages(pool);
    dither_wipe(pool->ring, bytes);
    (void)munmap(pool->ring, bytes);
    free(pool);
}

void dither_pool_stats_get(dither_pool *pool, dither_pool_stats *stats) {
    adopt(pool);
    pthread_mutex_lock(&pool->lock);
    *stats = pool->stats;
    stats->ready = ready(pool);
    pthread_mutex_unlock(&pool->lock);
}

void dither_pool_linger(dither_pool *pool, double seconds) {
    const double most = 0.999999999;
    const double asked = seconds > 0 ? seconds < most ? seconds : most : 0;
    atomic_store(&pool->linger_ns, (long)(asked * 1e9));
}

void dither_pool_hold(dither_pool *pool, int on) {
    if (on) {
        atomic_fetch_add(&pool->holds, ((uint64_t)1 << HALF) + 1);
        return;
    }
    uint64_t seen = atomic_load(&pool->holds); /* none in a child that was forked meanwhile */
    while ((uint32_t)seen > 0 && !atomic_compare_exchange_weak(&pool->holds, &seen, seen - 1)) continue;
    if ((uint32_t)seen != 1 || !atomic_load(&pool->wanted) || !atomic_exchange(&pool->wanted, 0))
        return;
    adopt(pool); /* not before: it asks the system who we are, which costs more than a short release */
    pthread_mutex_lock(&pool->lock);
    pthread_cond_signal(&pool->space);
    pthread_mutex_unlock(&pool->lock);
}

/* Up to `most` ready draws in one piece, or none. They are the caller's until `give_back`. */
static int32_t *borrow(dither_pool *pool, size_t most, size_t *count, int *wipe) {
    pthread_mutex_lock(&pool->lock);
    size_t left = pool->head == pool->tail ? 0 : BLOCK - pool->offset;
    *count = left < most ? left : most;
    /* What empties a block is left to the producer; a part of one could lie there for long. */
    *wipe = !pool->stats.running || *count < left;
    int32_t *draws = pool->ring + pool->tail % pool->blocks * BLOCK + pool->offset;
    pthread_mutex_unlock(&pool->lock);
    return draws;
}

static void give_back(dither_pool *pool, size_t count) {
    pthread_mutex_lock(&pool->lock);
    pool->offset += count;
    pool->stats.used += count;
    if (pool->offset == BLOCK) {
        pool->offset = 0;
        pool->tail++;
        atomic_store(&pool->wanted, 1);
        if (!held(pool)) {
            atomic_store(&pool->wanted, 0);
            pthread_cond_signal(&pool->space);
        }
    }
    pthread_mutex_unlock(&pool->lock);
}

static uint64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void count_dry(dither_pool *pool, size_t count, uint64_t began) {
    pthread_mutex_lock(&pool->lock);
    pool->stats.dry += count;
    pool->stats.wait_ns += nanoseconds() - began;
    pthread_mutex_unlock(&pool->lock);
}

dither_status dither_pool_encode_factor(dither_pool *pool, const dither_grid *grid, double factor,
                                        dither_float type, const void *values, void *message,
                                        size_t count, uint64_t *saturated) {
    const size_t width = (size_t)grid->wire_bits / 8;
    codec_numbers numbers;
    /* Before any draw is taken: it would be spent, and stay where it is. */
    dither_status status = codec_open(grid, factor, type, &numbers);
    if (status != DITHER_OK) return status;
    uint64_t clamped = 0;
    adopt(pool);
    pthread_mutex_lock(&pool->taking);
    int wipe;
    for (size_t done = 0, now = 0; done < count && status == DITHER_OK; done += now) {
        const char *from = (const char *)values + done * type;
        char *to = (char *)message + done * width;
        int32_t *noise = borrow(pool, count - done, &now, &wipe);
        if (now > 0) {
            status = codec_encode_ready(pool->kernels, noise, wipe, grid, factor, type, from, to,
                                        now, &clamped);
            give_back(pool, now);
        } else {
            uint64_t began = nanoseconds();
            now = count - done < BLOCK ? count - done : BLOCK;
            status = dither_encode_factor(pool->kernels, pool->key, pool->sigma, grid, factor, type,
                                          from, to, now, &clamped);
            count_dry(pool, now, began);
        }
    }
    pthread_mutex_unlock(&pool->taking);
    if (status != DITHER_OK) dither_wipe(message, count * width);
    if (status == DITHER_OK && saturated) *saturated += clamped;
    return status;
}

dither_status dither_pool_encode(dither_pool *pool, const dither_grid *grid, dither_float type,
                                 const void *values, void *message, size_t count,
                                 uint64_t *saturated) {
    return dither_pool_encode_factor(pool, grid, 1.0, type, values, message, count, saturated);
}

dither_status dither_pool_take(dither_pool *pool, int32_t *out, size_t count) {
    dither_status status = DITHER_OK;
    adopt(pool);
    pthread_mutex_lock(&pool->taking);
    int wipe;
    for (size_t done = 0, now = 0; done < count && status == DITHER_OK; done += now) {
        int32_t *noise = borrow(pool, count - done, &now, &wipe);
        if (now > 0) {
            memcpy(out + done, noise, now * sizeof *out);
            if (wipe) dither_wipe(noise, now * sizeof *noise);
            give_back(pool, now);
        } else {
            uint64_t began = nanoseconds();
            now = count - done < BLOCK ? count - done : BLOCK;
            status = dither_lattice_i32(pool->kernels, pool->key, pool->sigma, out + done, now, NULL);
            count_dry(pool, now, began);
        }
    }
    pthread_mutex_unlock(&pool->taking);
    if (status != DITHER_OK) dither_wipe(out, count * sizeof *out);
    return status;
}
