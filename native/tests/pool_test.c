/* The pool and the key under threads: every number once, nothing left behind. */
#include "check.h"

#include <pthread.h>
#include <time.h>

enum { THREADS = 3, EACH = 700000, BLOCK = 65536, MESSAGES = 20000 };

static const double SIGMA = 0x1p26; /* draws hardly ever repeat */
static const dither_grid GRID = {0, 0, 0, INT32_MAX, 32};

typedef struct {
    dither_pool *pool;
    dither_key *key;
    int number;
    int32_t *draws;
} consumer;

static size_t chunk(int thread, size_t turn) {
    const size_t sizes[] = {1, 1000, 65537, 129, 7, 200003, 128, 65536, 12345};
    return sizes[(turn + 2 * (size_t)thread) % (sizeof sizes / sizeof *sizes)];
}

/* By turns the noise alone and messages of zeros, which are the noise. */
static void *consume(void *argument) {
    consumer *c = argument;
    static const float zeros[BLOCK * 4];
    for (size_t done = 0, turn = 0, now; done < EACH; done += now, turn++) {
        now = chunk(c->number, turn);
        if (now > EACH - done) now = EACH - done;
        const int held = turn % 3 == 0;
        if (held) dither_pool_hold(c->pool, 1);
        dither_status status = turn % 2 ? dither_pool_take(c->pool, c->draws + done, now)
                                        : dither_pool_encode(c->pool, &GRID, DITHER_F32, zeros,
                                                             c->draws + done, now, NULL);
        CHECK(status == DITHER_OK, "%s", dither_status_text(status));
        if (held) dither_pool_hold(c->pool, 0);
    }
    return NULL;
}

static int by_value(const void *a, const void *b) {
    int32_t x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

/* Every draw taken stands in the key's stream, and none more often than it stands there. */
static void check_once(int32_t *taken, size_t count, uint64_t superblocks) {
    size_t all = (size_t)superblocks * DRAWS, at = 0;
    int32_t *stream = malloc(all * sizeof *stream);
    dither_key *again = agreed_key();
    CHECK(stream, "no memory");
    CHECK(dither_lattice_i32(dither_select(0), again, SIGMA, stream, all, NULL) == DITHER_OK,
          "no draws");
    qsort(stream, all, sizeof *stream, by_value);
    qsort(taken, count, sizeof *taken, by_value);
    for (size_t i = 0; i < count; i++, at++) {
        while (at < all && stream[at] < taken[i]) at++;
        CHECK(at < all && stream[at] == taken[i], "%d was made up, or served twice", taken[i]);
    }
    dither_key_free(again);
    free(stream);
}

static void run_threads(consumer *consumers, void *(*body)(void *)) {
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, body, &consumers[i]) == 0, "no thread");
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
}

/* With holds: a thread that lingers meets them as it sleeps, naps and works. */
static void test_consumers(size_t capacity, double linger) {
    const path_list paths = every_path();
    dither_key *key = agreed_key();
    dither_pool *pool = NULL;
    dither_pool_stats stats;
    consumer consumers[THREADS];
    int32_t *draws = malloc((size_t)THREADS * EACH * sizeof *draws);
    CHECK(draws &&
              dither_pool_new(paths.of[paths.count - 1], key, SIGMA, capacity, &pool) == DITHER_OK,
          "no pool");
    dither_pool_linger(pool, linger);
    for (int i = 0; i < THREADS; i++)
        consumers[i] = (consumer){pool, key, i, draws + (size_t)i * EACH};
    run_threads(consumers, consume);
    dither_pool_stats_get(pool, &stats);
    CHECK(stats.used + stats.dry == (uint64_t)THREADS * EACH, "draws were lost from the books");
    CHECK(stats.ready <= stats.capacity && stats.filled == stats.used + stats.ready &&
              stats.discarded == 0,
          "the books do not balance");
    CHECK(stats.capacity % BLOCK == 0 && stats.capacity >= capacity && stats.capacity >= 2 * BLOCK,
          "a capacity of %llu", (unsigned long long)stats.capacity);
    dither_pool_free(pool);
    check_once(draws, (size_t)THREADS * EACH, dither_key_position(key));
    dither_key_free(key);
    free(draws);
}

/* One key under three threads: the messages' noise adds up to the key's stream. */
static void *mask_zeros(void *argument) {
    consumer *c = argument;
    memset(c->draws, 0, MESSAGES * sizeof *c->draws);
    for (size_t i = 0; i < MESSAGES; i += 200)
        CHECK(dither_mask(dither_select(0), c->key, c->draws + i, 200, 4, 0) == DITHER_OK,
              "no mask");
    return NULL;
}

static void test_key_threads(void) {
    dither_key *key = agreed_key(), *again = agreed_key();
    consumer consumers[THREADS];
    static int32_t words[THREADS * MESSAGES];
    static uint32_t all[THREADS * MESSAGES / 200 * SUPERBLOCK];
    static int32_t used[THREADS * MESSAGES];
    for (int i = 0; i < THREADS; i++) consumers[i] = (consumer){NULL, key, i, words + i * MESSAGES};
    run_threads(consumers, mask_zeros);
    CHECK(dither_stream(dither_select(0), again, all, sizeof all / sizeof *all) == DITHER_OK,
          "no words");
    CHECK(dither_key_position(key) == dither_key_position(again), "positions differ");
    for (int i = 0; i < THREADS * MESSAGES / 200; i++)
        memcpy(used + 200 * i, all + SUPERBLOCK * i, 200 * sizeof *used);
    qsort(used, THREADS * MESSAGES, sizeof *used, by_value);
    qsort(words, THREADS * MESSAGES, sizeof *words, by_value);
    CHECK(memcmp(used, words, sizeof used) == 0, "numbers were used twice or skipped");
    dither_key_free(key);
    dither_key_free(again);
}

static void wait_full(dither_pool *pool) {
    const struct timespec moment = {0, 1000000};
    dither_pool_stats stats = {0};
    for (int i = 0; i < 60000; i++) {
        dither_pool_stats_get(pool, &stats);
        if (stats.ready == stats.capacity) return;
        nanosleep(&moment, NULL);
    }
    CHECK(0, "the pool did not fill");
}

static size_t left_over(const int32_t *ring, const int32_t *taken) {
    size_t same = 0;
    for (size_t i = 0; i < BLOCK; i++) same += ring[i] == taken[i];
    return same;
}

/* A consumed block does not stay in the ring, and the ring is zeros when it is given back. */
static void test_wiped(void) {
    enum { TAKEN = 30001 };
    dither_key *key = agreed_key();
    dither_pool *pool = NULL;
    size_t size;
    static int32_t taken[BLOCK];
    static float zeros[BLOCK];
    watch_begin();
    CHECK(dither_pool_new(dither_select(0), key, SIGMA, 1, &pool) == DITHER_OK, "no pool");
    watch_end();
    const int32_t *ring = watched(&size);
    CHECK(size >= 2 * BLOCK * sizeof *ring, "another ring");
    wait_full(pool);
    CHECK(ring[0] | ring[1] | ring[BLOCK - 1], "the ring is not what is watched");
    CHECK(dither_pool_take(pool, taken, TAKEN) == DITHER_OK, "no draws");
    CHECK(dither_pool_encode(pool, &GRID, DITHER_F32, zeros, taken + TAKEN, BLOCK - TAKEN, NULL) ==
              DITHER_OK,
          "no draws");
    /* The producer fills only what it has wiped; the mutex in between makes the read a safe one. */
    wait_full(pool);
    /* Two draws at σ = 2^26 agree with probability 2^-28, so chance leaves one here at 2^-12. */
    CHECK(left_over(ring, taken) < 4, "%zu draws stayed in the ring", left_over(ring, taken));
    dither_pool_free(pool);
    CHECK(watch_wiped() == 1, "the ring stayed");
    dither_key_free(key);
}

static void test_refusals(void) {
    enum { COUNT = 3 * BLOCK };
    dither_key *key = agreed_key();
    dither_pool *pool = NULL;
    const double bad[] = {0.0, -1.0, (double)NAN, nextafter(DITHER_MAX_SIGMA_I32, 1e9)};
    static double values[COUNT];
    static int16_t message[COUNT];
    dither_grid bad_grid = {0, 1, 49, 1, 16}, grid = {0, 1, 0, 1000, 16};
    for (size_t i = 0; i < 4; i++)
        CHECK(dither_pool_new(dither_select(0), key, bad[i], 1, &pool) == DITHER_BAD_SIGMA, "%a",
              bad[i]);
    /* Sizes whose bytes do not fit an integer. */
    for (size_t size = SIZE_MAX, i = 0; i < 4; i++, size = SIZE_MAX / 4 + (i - 1) * BLOCK)
        CHECK(dither_pool_new(dither_select(0), key, 1.0, size, &pool) == DITHER_NO_MEMORY, "%zu",
              size);
    CHECK(dither_pool_new(dither_select(0), key, 1.0, 1, &pool) == DITHER_OK, "no pool");
    memset(message, 0x5a, sizeof message);
    CHECK(dither_pool_encode(pool, &bad_grid, DITHER_F64, values, message, COUNT, NULL) ==
              DITHER_BAD_GRID,
          "the grid was taken");
    for (size_t i = 0; i < COUNT; i++) CHECK(message[i] == 0x5a5a, "message %zu was written", i);
    /* In the last block: what the blocks before it wrote goes as well. */
    values[COUNT - 1] = (double)NAN;
    CHECK(dither_pool_encode(pool, &grid, DITHER_F64, values, message, COUNT, NULL) ==
              DITHER_NOT_FINITE,
          "NaN was taken");
    for (size_t i = 0; i < COUNT; i++) CHECK(message[i] == 0, "message %zu was left", i);
    dither_pool_free(pool);
    dither_pool_free(NULL);
    dither_key_free(key);
}

void test_pool(void) {
    test_consumers(1, 0);
    test_consumers(10 * BLOCK - 1, 0);
    test_consumers(10 * BLOCK - 1, 1e-4);
    test_key_threads();
    test_wiped();
    test_refusals();
}
