/* What the parts of the test program share. */
#ifndef DITHER_CHECK_H
#define DITHER_CHECK_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

/* End the program with a line that says where and why. */
#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);                        \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fputc('\n', stderr);                                                                   \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* Every instruction set that this build and processor have, with the fastest AES for it. */
typedef struct {
    const dither_kernels *of[4];
    size_t count;
} path_list;

path_list every_path(void);

/* SplitMix64: repeatable words. */
uint64_t next_random(uint64_t *state);

/* Memory at any address, between guards that `buffer_free` looks at (and that ASan forbids). */
typedef struct {
    unsigned char *block, *at;
    size_t size, offset;
} buffer;

buffer buffer_new(size_t size, size_t offset);
void buffer_free(buffer *b);

/* A key of the bytes 0 to 31: for ChaCha20, or any cipher. */
dither_key *agreed_key(void);
dither_key *agreed_key_for(dither_cipher cipher);

/* Mappings made between `watch_begin` and `watch_end` are remembered (newest in `watched`); what is
 * unmapped of them must be all zeros by then. `watch_wiped`: how many were seen so. */
void watch_begin(void);
void watch_end(void);
void *watched(size_t *size);
int watch_wiped(void);

/* Threads that map a file shared get one mapping, so that the thread sanitizer sees what they do to
 * each other. One file at a time. */
void share_mappings(int on);

/* A radius word and an angle word. */
typedef struct {
    uint64_t m, w;
} word_pair;

/* Radius words below FAST_FROM or from FAST_END on are exact.c's (kernels/gauss64.h). */
#define FAST_FROM (1ull << 44)
#define FAST_END (0ull - (1ull << 30))

/* Words near everything that the fast path treats apart: powers of two, its limits, √½·2^k, ties of
 * the rounding to float64; every octant, angles 0 and all ones. `*pairs` is the caller's. */
size_t adversarial_words(word_pair **pairs);

/* All 64 pairs of a superblock the same. */
void spread_pair(word_pair pair, uint64_t words[DRAWS]);

void test_codec(void);
void test_exact(void);
void test_key(void);
void test_lattice(void);
void test_norm(void);
void test_paths(void);
void test_pool(void);
void test_shm(void);
/* For the Python tests: float64 normals of adversarial words, and one key's output of all kinds. */
void report_normals(FILE *to);
void report_draws(FILE *to);

#endif
