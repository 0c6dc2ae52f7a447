/* Groups of threads and of processes: sums, messages, the fused pass, and what becomes of errors. */
#define _GNU_SOURCE
#include "check.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST = 3 * DITHER_SHM_BLOCK + 5, RANKS = 5 };

typedef struct {
    int file;
    unsigned rank, ranks;
    void (*body)(dither_shm *, unsigned rank, unsigned ranks);
} member;

static void test_forked(dither_shm *shm, unsigned rank, unsigned ranks);

static void *enter_group(void *argument) {
    const member *m = argument;
    dither_shm *shm = NULL;
    dither_status status = dither_shm_attach(m->file, m->rank, 30.0, NULL, NULL, &shm);
    CHECK(status == DITHER_OK, "rank %u of %u: %s", m->rank, m->ranks, dither_status_text(status));
    m->body(shm, m->rank, m->ranks);
    dither_shm_free(shm);
    return NULL;
}

static void run_group(unsigned ranks, void (*body)(dither_shm *, unsigned, unsigned)) {
    pthread_t threads[RANKS];
    member members[RANKS];
    int file = -1;
    CHECK(dither_shm_create(ranks, &file) == DITHER_OK, "no segment");
    share_mappings(body != test_forked);
    for (unsigned r = 0; r < ranks; r++) {
        members[r] = (member){file, r, ranks, body};
        CHECK(pthread_create(&threads[r], NULL, enter_group, &members[r]) == 0, "no thread");
    }
    for (unsigned r = 0; r < ranks; r++) pthread_join(threads[r], NULL);
    share_mappings(0);
    close(file);
}

static const size_t SIZES[] = {0, 1, 7, DITHER_SHM_BLOCK - 1, DITHER_SHM_BLOCK,
                               DITHER_SHM_BLOCK + 1, MOST};
enum { SIZE_COUNT = sizeof SIZES / sizeof *SIZES };

static uint64_t word_of(unsigned rank, size_t i) {
    uint64_t state = (uint64_t)rank << 40 | i;
    return next_random(&state);
}

#define CHECK_SUMS(name, type, sum, make)                                                          \
    static void name(dither_shm *shm, const dither_kernels *k, unsigned rank, unsigned ranks,      \
                     size_t count) {                                                               \
        buffer b = buffer_new(count * sizeof(type), count % 5);                                    \
        for (size_t i = 0; i < count; i++) {                                                       \
            type x = make(word_of(rank, i));                                                       \
            memcpy(b.at + i * sizeof x, &x, sizeof x);                                             \
        }                                                                                          \
        CHECK(dither_shm_sum(shm, k, sum, b.at, count) == DITHER_OK, "no sum");                    \
        for (size_t i = 0; i < count; i++) {                                                       \
            type want = make(word_of(0, i)), got;                                                  \
            for (unsigned q = 1; q < ranks; q++) want = (type)(want + make(word_of(q, i)));        \
            memcpy(&got, b.at + i * sizeof got, sizeof got);                                       \
            CHECK(got == want, "%s of %u ranks, element %zu of %zu", #type, ranks, i, count);      \
        }                                                                                          \
        buffer_free(&b);                                                                           \
    }

#define AS_REAL(word) ((float)((double)(int64_t)(word) * 0x1p-63))
CHECK_SUMS(sum_8, uint8_t, DITHER_SUM_8, (uint8_t))
CHECK_SUMS(sum_16, uint16_t, DITHER_SUM_16, (uint16_t))
CHECK_SUMS(sum_32, uint32_t, DITHER_SUM_32, (uint32_t))
CHECK_SUMS(sum_64, uint64_t, DITHER_SUM_64, (uint64_t))
CHECK_SUMS(sum_f32, float, DITHER_SUM_F32, AS_REAL)
CHECK_SUMS(sum_f64, double, DITHER_SUM_F64, AS_REAL)

static void test_sums(dither_shm *shm, unsigned rank, unsigned ranks) {
    const path_list paths = every_path();
    for (size_t s = 0; s < SIZE_COUNT; s++) {
        const dither_kernels *k = paths.of[s % paths.count];
        sum_8(shm, k, rank, ranks, SIZES[s]);
        sum_16(shm, k, rank, ranks, SIZES[s]);
        sum_32(shm, k, rank, ranks, SIZES[s]);
        sum_64(shm, k, rank, ranks, SIZES[s]);
        sum_f32(shm, k, rank, ranks, SIZES[s]);
        sum_f64(shm, k, rank, ranks, SIZES[s]);
    }
}

/* Round the ring at odd sizes and addresses, past the size of a ring's memory too. */
static void test_messages(dither_shm *shm, unsigned rank, unsigned ranks) {
    const size_t sizes[] = {0, 1, 7, 8, 9, 65535, 65536, 65537, 1000003};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        const size_t size = sizes[s];
        const unsigned next = (rank + 1) % ranks, last = (rank + ranks - 1) % ranks;
        buffer out = buffer_new(size, s % 3), in = buffer_new(size, s % 7);
        for (size_t i = 0; i < size; i++) out.at[i] = (unsigned char)word_of(rank, i);
        CHECK(dither_shm_exchange(shm, next, out.at, size, last, in.at, size) == DITHER_OK, "no exchange");
        for (size_t i = 0; i < size; i++)
            CHECK(in.at[i] == (unsigned char)word_of(last, i), "byte %zu of %zu", i, size);
        if (ranks > 1 && rank == 0) CHECK(dither_shm_send(shm, 1, out.at, size) == DITHER_OK, "not sent");
        if (ranks > 1 && rank == 1) {
            CHECK(dither_shm_receive(shm, 0, in.at, size) == DITHER_OK, "not received");
            for (size_t i = 0; i < size; i++)
                CHECK(in.at[i] == (unsigned char)word_of(0, i), "byte %zu of %zu", i, size);
        }
        buffer_free(&out);
        buffer_free(&in);
    }
}

static const dither_grid GRIDS[] = {{20, 1 << 20, 10, 6000, 16}, {30, 1ll << 40, 5, 1 << 28, 32}};

static dither_key *key_of(unsigned a, unsigned b) {
    uint8_t bytes[DITHER_KEY_BYTES] = {(uint8_t)a, (uint8_t)b, 77};
    dither_key *key = NULL;
    CHECK(dither_key_agreed(bytes, DITHER_CHACHA20, &key) == DITHER_OK, "no key");
    return key;
}

static void values_of(unsigned rank, dither_float type, unsigned char *to, size_t count) {
    for (size_t i = 0; i < count; i++) {
        float narrow = AS_REAL(word_of(rank, i));
        double wide = narrow;
        memcpy(to + i * type, type == DITHER_F32 ? (void *)&narrow : (void *)&wide, type);
    }
}

static double factor_of(unsigned rank) { return 1.0 / (rank + 1.3); }

/* What the existing functions make of all ranks' values. */
static void expect(const dither_kernels *k, const dither_grid *grid, unsigned ranks, dither_float type,
                   unsigned char *out, size_t count, double scale) {
    const size_t width = (size_t)grid->wire_bits / 8;
    unsigned char *values = malloc(count * type + 1), *one = malloc(count * width + 1),
                  *all = calloc(count + 1, width);
    CHECK(values && one && all, "no memory");
    for (unsigned q = 0; q < ranks; q++) {
        dither_key *key = key_of(200, q);
        values_of(q, type, values, count);
        CHECK(dither_encode_factor(k, key, 0x1p14, grid, factor_of(q), type, values, one, count,
                                   NULL) == DITHER_OK,
              "no message");
        for (size_t i = 0; i < count; i++) {
            uint32_t a = 0, b = 0;
            memcpy(&a, all + i * width, width);
            memcpy(&b, one + i * width, width);
            a += b;
            memcpy(all + i * width, &a, width);
        }
        dither_key_free(key);
    }
    CHECK(dither_decode_scaled(k, grid, scale, all, type, out, count) == DITHER_OK, "no values");
    free(values);
    free(one);
    free(all);
}

static void check_release(dither_shm *shm, const dither_kernels *k, const dither_grid *grid,
                          unsigned rank, unsigned ranks, dither_float type, size_t count, int masked,
                          double scale, size_t offset) {
    buffer values = buffer_new(count * type, offset), want = buffer_new(count * type, 0);
    dither_key *keys[RANKS], *own = key_of(200, rank);
    int signs[RANKS];
    dither_release how = {.grid = *grid, .key = own, .sigma = 0x1p14, .factor = factor_of(rank),
                          .scale = scale, .mask_keys = keys, .mask_signs = signs};
    for (unsigned q = 0; masked && q < ranks; q++)
        if (q != rank) {
            keys[how.masks] = key_of(q < rank ? q : rank, q < rank ? rank : q);
            signs[how.masks++] = q < rank;
        }
    expect(k, grid, ranks, type, want.at, count, how.scale);
    values_of(rank, type, values.at, count);
    uint64_t saturated = 3;
    dither_status status = dither_shm_release(shm, k, &how, type, values.at, type, values.at, count,
                                              &saturated); /* in place */
    CHECK(status == DITHER_OK, "%s", dither_status_text(status));
    CHECK(memcmp(values.at, want.at, want.size) == 0, "%u ranks, %zu to %d bits, masks %d", ranks,
          count, grid->wire_bits, masked);
    for (size_t m = 0; m < how.masks; m++) dither_key_free(keys[m]);
    dither_key_free(own);
    buffer_free(&values);
    buffer_free(&want);
}

static void test_releases(dither_shm *shm, unsigned rank, unsigned ranks) {
    const path_list paths = every_path();
    for (size_t s = 0; s < SIZE_COUNT; s++)
        for (int g = 0; g < 2; g++)
            for (int masked = 0; masked < 2; masked++)
                check_release(shm, paths.of[s % paths.count], &GRIDS[g], rank, ranks,
                              (s + (size_t)g) % 2 ? DITHER_F32 : DITHER_F64, SIZES[s], masked,
                              s % 3 ? 1.0 : 1.0 / 3, s % 2 * 3);
}

/* Results so long that they are stored past the caches, at any alignment. */
static void test_long(dither_shm *shm, unsigned rank, unsigned ranks) {
    const path_list paths = every_path();
    for (size_t p = 0; p < paths.count; p++)
        for (size_t offset = 4; offset <= 12; offset += 8)
            for (int g = 0; g < 2; g++)
                check_release(shm, paths.of[p], &GRIDS[g], rank, ranks, DITHER_F32, (1u << 20) + 19,
                              0, offset == 4 ? 1.0 / 3 : 0.5, offset == 12 ? 3 : offset);
    check_release(shm, paths.of[0], &GRIDS[0], rank, ranks, DITHER_F64, 600011, 0, 1.0, 8);
    check_release(shm, paths.of[paths.count - 1], &GRIDS[1], rank, ranks, DITHER_F64, 600011, 0, 1.0, 8);
}

/* Pads cancel at the end; what is left is the plain sum on the lattice. */
static void test_encryption(dither_shm *shm, unsigned rank, unsigned ranks) {
    const dither_kernels *k = dither_select(dither_cpu_features());
    const dither_grid grid = {4, 3000, 0, 6000, 16};
    for (size_t s = 0; s < SIZE_COUNT; s++) {
        const size_t count = SIZES[s];
        buffer values = buffer_new(4 * count, 0), out = buffer_new(8 * count, 0),
               pad = buffer_new(2 * count, 0), total = buffer_new(2 * count, 0);
        for (size_t i = 0; i < count; i++) {
            uint16_t mine = (uint16_t)word_of(rank, i), all = 0;
            float value = (float)(i % 100) + (float)rank / 4;
            for (unsigned q = 0; q < ranks; q++) all = (uint16_t)(all + word_of(q, i));
            memcpy(values.at + 4 * i, &value, 4);
            memcpy(pad.at + 2 * i, &mine, 2);
            memcpy(total.at + 2 * i, &all, 2);
        }
        dither_release how = {.grid = grid, .factor = 1, .scale = 1};
        dither_status status = dither_shm_encrypted(shm, k, &how, pad.at, total.at, DITHER_F32, values.at,
                                                    DITHER_F64, out.at, count, NULL);
        CHECK(status == DITHER_OK, "%s", dither_status_text(status));
        for (size_t i = 0; i < count; i++) {
            double got, want = (double)(i % 100) * ranks + ranks * (ranks - 1) / 8.0;
            memcpy(&got, out.at + 8 * i, 8);
            CHECK(got == want, "element %zu of %zu: %a, not %a", i, count, got, want);
        }
        buffer_free(&values);
        buffer_free(&out);
        buffer_free(&pad);
        buffer_free(&total);
    }
}

/* A value that is not finite, in rank 1's last block: an error on all, and zeros in every result. */
static void test_not_finite(dither_shm *shm, unsigned rank, unsigned ranks) {
    const dither_kernels *k = dither_select(dither_cpu_features());
    static float values[RANKS][MOST], out[RANKS][MOST];
    dither_key *key = key_of(200, rank);
    dither_release how = {.grid = GRIDS[0], .key = key, .sigma = 0x1p14, .factor = 1, .scale = 1};
    for (size_t i = 0; i < MOST; i++) {
        values[rank][i] = 0.5f;
        out[rank][i] = 7;
    }
    if (rank == 1) values[1][MOST - 1] = (float)NAN;
    dither_status status = dither_shm_release(shm, k, &how, DITHER_F32, values[rank], DITHER_F32,
                                              out[rank], MOST, NULL);
    CHECK(status == (rank == 1 ? DITHER_NOT_FINITE : DITHER_PEER_FAILED), "%s", dither_status_text(status));
    CHECK(dither_shm_culprit(shm) == 1, "culprit %d", dither_shm_culprit(shm));
    for (size_t i = 0; i < MOST; i++) CHECK(out[rank][i] == 0, "something is left at %zu", i);
    CHECK(dither_shm_sum(shm, k, DITHER_SUM_F32, out[rank], 1) == DITHER_BROKEN, "used again");
    CHECK(dither_shm_send(shm, (rank + 1) % ranks, out[rank], 4) == DITHER_BROKEN, "used again");
    dither_key_free(key);
}

static void test_mismatch(dither_shm *shm, unsigned rank, unsigned ranks) {
    const dither_kernels *k = dither_select(dither_cpu_features());
    static int32_t buffers[RANKS][100];
    (void)ranks;
    dither_status status = dither_shm_sum(shm, k, DITHER_SUM_32, buffers[rank], rank == 1 ? 99 : 100);
    CHECK(status == DITHER_MISMATCH, "%s", dither_status_text(status));
}

static void test_message_sizes(dither_shm *shm, unsigned rank, unsigned ranks) {
    char bytes[16] = {0};
    (void)ranks;
    dither_status status = rank == 0 ? dither_shm_send(shm, 1, bytes, 16) : DITHER_OK;
    if (rank == 1) status = dither_shm_receive(shm, 0, bytes, 15);
    CHECK(status == (rank == 1 ? DITHER_MISMATCH : DITHER_OK), "%s", dither_status_text(status));
}

static void test_left(dither_shm *shm, unsigned rank, unsigned ranks) {
    const dither_kernels *k = dither_select(dither_cpu_features());
    int32_t one = 1;
    CHECK(dither_shm_sum(shm, k, DITHER_SUM_32, &one, 1) == DITHER_OK && one == (int)ranks, "no sum");
    if (rank == ranks - 1) return;
    dither_status status = dither_shm_sum(shm, k, DITHER_SUM_32, &one, 1);
    CHECK(status == DITHER_PEER_LEFT && dither_shm_culprit(shm) == (int)ranks - 1, "%s",
          dither_status_text(status));
}

/* When a process began, as the system tells it. */
static unsigned long long began(pid_t process) {
    char path[40], text[512] = "";
    unsigned long long found = 0;
    snprintf(path, sizeof path, "/proc/%ld/stat", (long)process);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    if (fread(text, 1, sizeof text - 1, file) > 0) {
        const char *at = strrchr(text, ')');
        for (int field = 2; at && field < 22; field++) at = strchr(at + 1, ' ');
        if (at) found = strtoull(at + 1, NULL, 10);
    }
    fclose(file);
    return found;
}

/* Emulators of a processor make up what a process reads of itself: there, peers cannot be told. */
static int told_truly(void) {
    int state = 0;
    const pid_t parent = getpid();
    const unsigned long long mine = began(parent);
    pid_t child = fork();
    if (child == 0) _exit(began(parent) == mine ? 0 : 1);
    waitpid(child, &state, 0);
    return WIFEXITED(state) && WEXITSTATUS(state) == 0;
}

/* Rank 1 is a process that is killed, after `calls` sums. The other sees it in time. */
static void test_killed(int calls) {
    const dither_kernels *k = dither_select(dither_cpu_features());
    dither_shm *shm = NULL;
    int32_t one = 1;
    int file = -1;
    CHECK(dither_shm_create(2, &file) == DITHER_OK, "no segment");
    pid_t child = fork();
    if (child == 0) {
        if (dither_shm_attach(file, 1, 10.0, NULL, NULL, &shm) != DITHER_OK) _exit(1);
        for (int i = 0; i < calls; i++) (void)dither_shm_sum(shm, k, DITHER_SUM_32, &one, 1);
        for (;;) kill(getpid(), SIGKILL);
    }
    dither_status status = dither_shm_attach(file, 0, 10.0, NULL, NULL, &shm);
    CHECK(status == DITHER_OK || (status == DITHER_PEER_DEAD && calls == 0), "not joined");
    for (int i = 0; i < calls; i++)
        CHECK(dither_shm_sum(shm, k, DITHER_SUM_32, &one, 1) == DITHER_OK, "sum %d", i);
    if (shm) status = dither_shm_sum(shm, k, DITHER_SUM_32, &one, 1);
    CHECK(status == DITHER_PEER_DEAD && (!shm || dither_shm_culprit(shm) == 1), "%s",
          dither_status_text(status));
    waitpid(child, NULL, 0);
    dither_shm_free(shm);
    close(file);
}

static void test_forked(dither_shm *shm, unsigned rank, unsigned ranks) {
    int32_t one = 1;
    int state = 0;
    (void)rank, (void)ranks;
    pid_t child = fork();
    if (child == 0) {
        dither_status status =
            dither_shm_sum(shm, dither_select(0), DITHER_SUM_32, &one, 1);
        dither_shm_free(shm);
        _exit(status == DITHER_FORKED ? 0 : 1);
    }
    waitpid(child, &state, 0);
    CHECK(WIFEXITED(state) && WEXITSTATUS(state) == 0, "the child was let in");
    CHECK(dither_shm_sum(shm, dither_select(0), DITHER_SUM_32, &one, 1) == DITHER_OK, "no more");
}

static void test_refusals(void) {
    dither_shm *shm = NULL;
    int file = -1, other = dup(0);
    CHECK(dither_shm_create(0, &file) == DITHER_BAD_ARGUMENT && file == -1, "no ranks");
    CHECK(dither_shm_create(DITHER_SHM_RANKS + 1, &file) == DITHER_BAD_ARGUMENT, "too many");
    CHECK(dither_shm_attach(other, 0, 1.0, NULL, NULL, &shm) == DITHER_BAD_ARGUMENT && !shm, "joined stdin");
    CHECK(dither_shm_create(2, &file) == DITHER_OK, "no segment");
    CHECK(dither_shm_attach(file, 2, 1.0, NULL, NULL, &shm) == DITHER_BAD_ARGUMENT, "rank 2 of 2");
    CHECK(dither_shm_attach(file, 0, 0.0, NULL, NULL, &shm) == DITHER_BAD_ARGUMENT, "no time");
    CHECK(dither_shm_attach(file, 0, 0.05, NULL, NULL, &shm) == DITHER_PEER_LATE && !shm, "alone");
    CHECK(dither_shm_attach(file, 0, 1.0, NULL, NULL, &shm) != DITHER_OK && !shm, "twice");
    close(file);
    close(other);
}

void test_shm(void) {
    for (unsigned ranks = 1; ranks <= RANKS; ranks += 1 + (ranks == 3)) {
        run_group(ranks, test_sums);
        run_group(ranks, test_messages);
        run_group(ranks, test_encryption);
        run_group(ranks, test_releases);
    }
    run_group(2, test_long);
    run_group(3, test_not_finite);
    run_group(3, test_mismatch);
    run_group(2, test_message_sizes);
    run_group(3, test_left);
    run_group(1, test_forked);
    if (told_truly()) {
        test_killed(0);
        test_killed(5);
    } else {
        printf("killed peers: not tested, /proc is an emulator's\n");
    }
    test_refusals();
}
