/* Keys: secret bytes on a page of their own, and the position of the next unused number. */
#define _GNU_SOURCE
#include "key.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/random.h>
#endif

#include "process.h"
#include "wipe.h"

/* Zero in a forked child where the system wipes the page: then the bytes are not a key. */
#define ALIVE 0x6469746865726b79u

typedef struct {
    uint32_t words[8];
    uint64_t alive;
} secret;

struct dither_key {
    secret *page;
    size_t page_size;
    unsigned rounds;
    int agreed;            /* fixed bytes: nothing fresh can replace them */
    dither_owner owner;
    _Atomic uint64_t next; /* first unused superblock */
};

static int fill_random(void *out, size_t size) {
#if defined(__linux__)
    unsigned char *at = out;
    while (size > 0) {
        ssize_t got = getrandom(at, size, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return 0;
        at += got;
        size -= (size_t)got;
    }
    return 1;
#else
    return getentropy(out, size) == 0;
#endif
}

static secret *secret_page(size_t *size) {
    *size = (size_t)sysconf(_SC_PAGESIZE);
    void *page = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) return NULL;
    /* All three are the best the system offers; the process id is checked as well. */
    (void)mlock(page, *size);
#ifdef MADV_DONTDUMP
    (void)madvise(page, *size, MADV_DONTDUMP);
#endif
#ifdef MADV_WIPEONFORK
    (void)madvise(page, *size, MADV_WIPEONFORK);
#endif
    return page;
}

static dither_status key_alloc(unsigned rounds, int agreed, dither_key **out) {
    dither_key *key = calloc(1, sizeof *key);
    if (!key) return DITHER_NO_MEMORY;
    key->page = secret_page(&key->page_size);
    if (!key->page) {
        free(key);
        return DITHER_NO_MEMORY;
    }
    key->rounds = rounds == 12 ? 12 : 20;
    key->agreed = agreed;
    dither_owner_init(&key->owner);
    atomic_init(&key->next, 0);
    *out = key;
    return DITHER_OK;
}

dither_status dither_key_new(unsigned rounds, dither_key **out) {
    dither_status status = key_alloc(rounds, 0, out);
    if (status != DITHER_OK) return status;
    if (!fill_random((*out)->page->words, DITHER_KEY_BYTES)) {
        dither_key_free(*out);
        *out = NULL;
        return DITHER_NO_ENTROPY;
    }
    (*out)->page->alive = ALIVE;
    return DITHER_OK;
}

dither_status dither_key_agreed(const uint8_t bytes[DITHER_KEY_BYTES], unsigned rounds,
                                dither_key **out) {
    dither_status status = key_alloc(rounds, 1, out);
    if (status != DITHER_OK) return status;
    for (int i = 0; i < 8; i++)
        (*out)->page->words[i] = (uint32_t)bytes[4 * i] | (uint32_t)bytes[4 * i + 1] << 8 |
                                 (uint32_t)bytes[4 * i + 2] << 16 | (uint32_t)bytes[4 * i + 3] << 24;
    (*out)->page->alive = ALIVE;
    return DITHER_OK;
}

void dither_key_free(dither_key *key) {
    if (!key) return;
    dither_wipe(key->page, sizeof *key->page);
    (void)munlock(key->page, key->page_size);
    (void)munmap(key->page, key->page_size);
    free(key);
}

/* A forked child's key: new bytes, from position 0. */
static dither_status live(dither_key *key) {
    if (dither_owned(&key->owner) && key->page->alive == ALIVE) return DITHER_OK;
    if (key->agreed) return DITHER_FORKED;
    if (!dither_claim(&key->owner)) return DITHER_OK;
    int renewed = fill_random(key->page->words, DITHER_KEY_BYTES);
    if (renewed) {
        key->page->alive = ALIVE;
        atomic_store(&key->next, 0);
    }
    dither_claimed(&key->owner, renewed);
    return renewed ? DITHER_OK : DITHER_NO_ENTROPY;
}

static void make_state(const dither_key *key, uint32_t use, uint32_t stream, uint64_t position,
                       dither_span *span) {
    static const uint32_t constants[4] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574};
    uint64_t block = position * 16;
    memcpy(span->state, constants, sizeof constants);
    memcpy(span->state + 4, key->page->words, DITHER_KEY_BYTES);
    span->state[12] = (uint32_t)block;
    span->state[13] = (uint32_t)(block >> 32);
    span->state[14] = use;
    span->state[15] = stream;
    span->rounds = key->rounds;
}

dither_status dither_key_take(dither_key *key, uint64_t superblocks, dither_span *span) {
    dither_status status = live(key);
    if (status != DITHER_OK) return status;
    make_state(key, USE_STREAM, 0, atomic_fetch_add(&key->next, superblocks), span);
    return DITHER_OK;
}

dither_status dither_key_at(dither_key *key, enum dither_use use, uint32_t stream,
                            uint64_t position, dither_span *span) {
    dither_status status = live(key);
    if (status == DITHER_OK) make_state(key, use, stream, position, span);
    return status;
}

uint64_t dither_key_position(const dither_key *key) {
    return atomic_load_explicit(&((dither_key *)key)->next, memory_order_relaxed);
}

uint64_t dither_span_position(const dither_span *span) {
    return ((uint64_t)span->state[13] << 32 | span->state[12]) / 16;
}

void dither_span_advance(dither_span *span, uint64_t superblocks) {
    uint64_t block = ((uint64_t)span->state[13] << 32 | span->state[12]) + 16 * superblocks;
    span->state[12] = (uint32_t)block;
    span->state[13] = (uint32_t)(block >> 32);
}
