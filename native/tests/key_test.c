/* Keys: positions, wiping, forks. */
#define _GNU_SOURCE
#include "check.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "key.h"

enum { WORDS = 1000, PATTERN_BYTE = 0x5a };

static dither_key *make(dither_cipher cipher, int agreed) {
    dither_key *key = NULL;
    if (agreed) return agreed_key_for(cipher);
    CHECK(dither_key_new(cipher, &key) == DITHER_OK, "no key");
    return key;
}

static void test_wiped(void) {
    const dither_cipher ciphers[] = {DITHER_CHACHA12, DITHER_CHACHA20, DITHER_AES256};
    for (int i = 0; i < 6; i++) {
        size_t size, set = 0;
        watch_begin();
        dither_key *key = make(ciphers[i / 2], i % 2);
        watch_end();
        const unsigned char *page = watched(&size);
        for (size_t b = 0; b < size; b++) set += page[b] != 0;
        CHECK(set > 8, "the key is not on the page that is watched");
        dither_key_free(key);
        CHECK(watch_wiped() == 1, "the page stayed");
    }
    dither_key_free(NULL);
}

/* Reads do not overlap, and a position is what was taken. */
static void test_positions(void) {
    dither_key *key = agreed_key(), *again = agreed_key();
    const dither_kernels *k = dither_select(0);
    uint32_t whole[4 * SUPERBLOCK], first[WORDS], second[SUPERBLOCK];
    CHECK(dither_stream(k, again, whole, 4 * SUPERBLOCK) == DITHER_OK, "no stream");
    CHECK(dither_stream(k, key, first, 513) == DITHER_OK, "no stream");
    CHECK(dither_key_position(key) == 3, "%llu", (unsigned long long)dither_key_position(key));
    CHECK(dither_stream(k, key, second, 1) == DITHER_OK, "no stream");
    CHECK(memcmp(first, whole, 513 * sizeof *whole) == 0, "another stream");
    CHECK(second[0] == whole[3 * SUPERBLOCK], "a word was read twice or skipped");
    CHECK(dither_key_position(key) == dither_key_position(again), "positions differ");
    dither_key_free(key);
    dither_key_free(again);
}

/* Spans go on where they stopped, also over 2^32 blocks; uses and streams of a key never meet. */
static void test_spans(dither_cipher cipher) {
    const dither_kernels *k = every_path().of[every_path().count - 1];
    dither_key *key = agreed_key_for(cipher);
    dither_span span, other;
    uint32_t whole[4 * SUPERBLOCK], parts[4 * SUPERBLOCK];
    uint64_t place = (1ull << (cipher == DITHER_AES256 ? 26 : 28)) - 2;
    CHECK(dither_key_at(key, 7, place, &span) == DITHER_OK, "no span");
    CHECK(dither_stream_at(k, key, 7, place, whole, 4 * SUPERBLOCK) == DITHER_OK, "no stream");
    dither_span_next(k, &span, parts, 1);
    dither_span_next(k, &span, parts + SUPERBLOCK, 2);
    dither_span_next(k, &span, parts + 3 * SUPERBLOCK, 1);
    CHECK(memcmp(whole, parts, sizeof whole) == 0, "cipher %d: pieces differ", cipher);
    for (uint32_t use = 0; use < 3; use++)
        for (uint32_t stream = 6; stream < 9; stream++) {
            CHECK(dither_key_at(key, stream, place, &other) == DITHER_OK, "no span");
            other.use = use;
            dither_span_next(k, &other, parts, 1);
            CHECK((memcmp(whole, parts, SUPERBLOCK * 4) == 0) == (use == USE_SEEK && stream == 7),
                  "cipher %d: use %u of stream %u", cipher, use, stream);
        }
    dither_key_free(key);
}

/* Run in a forked child, whose exit status says whether `what` holds there. */
static void in_child(int (*what)(dither_key *), dither_key *key, const char *name) {
    int status = -1;
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0, "no fork");
    if (child == 0) _exit(what(key) ? 0 : 1);
    CHECK(waitpid(child, &status, 0) == child, "the child is lost");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s: status %d", name, status);
}

/* Shared with the children. */
static uint32_t *childs;
static uint32_t parents[WORDS];

static int agreed_is_refused(dither_key *key) {
    const dither_kernels *k = dither_select(0);
    uint32_t words[WORDS];
    int32_t draws[WORDS];
    memset(words, PATTERN_BYTE, sizeof words);
    int refused = dither_stream(k, key, words, WORDS) == DITHER_FORKED &&
                  dither_stream_at(k, key, 0, 0, words, WORDS) == DITHER_FORKED &&
                  dither_mask(k, key, words, WORDS, 4, 0) == DITHER_FORKED &&
                  dither_lattice_i32(k, key, 4.0, draws, WORDS, NULL) == DITHER_FORKED;
    for (int i = 0; i < WORDS; i++) refused &= words[i] == 0x5a5a5a5au;
    return refused;
}

static int draw_fresh(dither_key *key) {
    return dither_stream(dither_select(0), key, childs, WORDS) == DITHER_OK &&
           dither_key_position(key) == (WORDS + SUPERBLOCK - 1) / SUPERBLOCK;
}

/* One word in 1000 agrees by chance with probability 2^-22, three with 2^-69. */
static int others(void) {
    int same = 0;
    for (int i = 0; i < WORDS; i++) same += childs[i] == parents[i];
    return same < 3;
}

static void test_forks(void) {
    dither_key *agreed = agreed_key(), *fresh = NULL;
    size_t size = WORDS * sizeof *childs;
    childs = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(childs != MAP_FAILED, "no memory");
    CHECK(dither_key_new(DITHER_CHACHA20, &fresh) == DITHER_OK, "no key");
    in_child(agreed_is_refused, agreed, "an agreed key");
    in_child(draw_fresh, fresh, "an unused key");
    CHECK(dither_stream(dither_select(0), fresh, parents, WORDS) == DITHER_OK, "no stream");
    CHECK(others(), "parent and child drew the same from an unused key");
    in_child(draw_fresh, fresh, "a used key");
    CHECK(others(), "the child drew its parent's numbers again");
    CHECK(dither_stream(dither_select(0), agreed, parents, WORDS) == DITHER_OK,
          "the parent lost it");
    munmap(childs, size);
    dither_key_free(agreed);
    dither_key_free(fresh);
}

void test_key(void) {
    test_wiped();
    test_positions();
    test_spans(DITHER_CHACHA12);
    test_spans(DITHER_CHACHA20);
    test_spans(DITHER_AES256);
    test_forks();
}
