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

typedef struct {
    uint8_t bytes[DITHER_KEY_BYTES];
    aes_keys expanded;
    /* Here, because the system wipes this page in a forked child (Linux): then nobody owns it, even
     * where the child's id is the parent's (another id namespace, or an id used again). */
    dither_owner owner;
} secret;

struct dither_key {
    secret *page;
    size_t page_size;
    dither_cipher cipher;
    int agreed; /* fixed bytes: nothing fresh can replace them */
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
    /* The best the system offers; where it does not wipe, the process id tells a child. */
    (void)mlock(page, *size);
#ifdef MADV_DONTDUMP
    (void)madvise(page, *size, MADV_DONTDUMP);
#endif
#ifdef MADV_WIPEONFORK
    (void)madvise(page, *size, MADV_WIPEONFORK);
#endif
    return page;
}

static dither_status key_alloc(dither_cipher cipher, int agreed, dither_key **out) {
    *out = NULL;
    if (cipher != DITHER_CHACHA12 && cipher != DITHER_CHACHA20 && cipher != DITHER_AES256)
        return DITHER_BAD_ARGUMENT;
    dither_key *key = calloc(1, sizeof *key);
    if (!key) return DITHER_NO_MEMORY;
    key->page = secret_page(&key->page_size);
    if (!key->page) {
        free(key);
        return DITHER_NO_MEMORY;
    }
    key->cipher = cipher;
    key->agreed = agreed;
    atomic_init(&key->next, 0);
    *out = key;
    return DITHER_OK;
}

static void expand(dither_key *key) {
    if (key->cipher == DITHER_AES256) aes_expand(key->page->bytes, &key->page->expanded);
}

dither_status dither_key_new(dither_cipher cipher, dither_key **out) {
    dither_status status = key_alloc(cipher, 0, out);
    if (status != DITHER_OK) return status;
    if (!fill_random((*out)->page->bytes, DITHER_KEY_BYTES)) {
        dither_key_free(*out);
        *out = NULL;
        return DITHER_NO_ENTROPY;
    }
    expand(*out);
    dither_owner_init(&(*out)->page->owner);
    return DITHER_OK;
}

dither_status dither_key_agreed(const uint8_t bytes[DITHER_KEY_BYTES], dither_cipher cipher,
                                dither_key **out) {
    dither_status status = key_alloc(cipher, 1, out);
    if (status != DITHER_OK) return status;
    memcpy((*out)->page->bytes, bytes, DITHER_KEY_BYTES);
    expand(*out);
    dither_owner_init(&(*out)->page->owner);
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
    dither_owner *owner = &key->page->owner;
    if (dither_owned(owner)) return DITHER_OK;
    if (key->agreed) return DITHER_FORKED;
    if (!dither_claim(owner)) return DITHER_OK;
    int renewed = fill_random(key->page->bytes, DITHER_KEY_BYTES);
    if (renewed) {
        expand(key);
        atomic_store(&key->next, 0);
    }
    dither_claimed(owner, renewed);
    return renewed ? DITHER_OK : DITHER_NO_ENTROPY;
}

static void open_span(const dither_key *key, uint32_t use, uint32_t stream, uint64_t position,
                      dither_span *span) {
    span->cipher = key->cipher;
    span->position = position;
    span->use = use;
    span->stream = stream;
    span->bytes = key->page->bytes;
    span->expanded = &key->page->expanded;
}

dither_status dither_key_take(dither_key *key, uint64_t superblocks, dither_span *span) {
    dither_status status = live(key);
    if (status == DITHER_OK)
        open_span(key, USE_STREAM, 0, atomic_fetch_add(&key->next, superblocks), span);
    return status;
}

dither_status dither_key_at(dither_key *key, uint32_t stream, uint64_t position, dither_span *span) {
    dither_status status = live(key);
    if (status == DITHER_OK) open_span(key, USE_SEEK, stream, position, span);
    return status;
}

uint64_t dither_key_position(const dither_key *key) {
    dither_key *mine = (dither_key *)key;
    if (!dither_owned(&mine->page->owner)) return 0; /* a forked child's, not yet used */
    return atomic_load_explicit(&mine->next, memory_order_relaxed);
}

static void chacha_next(const dither_kernels *kernels, const dither_span *span, uint32_t *out,
                        size_t superblocks) {
    uint32_t state[16] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574};
    uint64_t block = span->position * 16;
    memcpy(state + 4, span->bytes, DITHER_KEY_BYTES);
    state[12] = (uint32_t)block;
    state[13] = (uint32_t)(block >> 32);
    state[14] = span->use;
    state[15] = span->stream;
    kernels->simd->chacha(state, (unsigned)span->cipher, out, superblocks);
    dither_wipe(state, sizeof state);
}

static void aes_next(const dither_kernels *kernels, const dither_span *span, uint32_t *out,
                     size_t superblocks) {
    uint8_t counter[16];
    uint64_t block = span->position * AES_BLOCKS;
    memcpy(counter, &block, 8);
    memcpy(counter + 8, &span->use, 4);
    memcpy(counter + 12, &span->stream, 4);
    kernels->aes(span->expanded, counter, (uint8_t *)out, superblocks);
}

void dither_span_next(const dither_kernels *kernels, dither_span *span, uint32_t *out,
                      size_t superblocks) {
    (span->cipher == DITHER_AES256 ? aes_next : chacha_next)(kernels, span, out, superblocks);
    span->position += superblocks;
}
