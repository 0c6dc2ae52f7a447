/* Paths, guarded memory, repeatable words, and a watch on mappings. */
#include "check.h"

#include <pthread.h>
#include <sys/mman.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, size) ((void)(at), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(at, size) ((void)(at), (void)(size))
#endif

path_list every_path(void) {
    const uint32_t here = dither_cpu_features(), aes = DITHER_FEATURE_AES | DITHER_FEATURE_VAES;
    path_list paths = {.of = {dither_select(here & aes)}, .count = 1};
    for (uint32_t bit = 1; bit <= DITHER_FEATURE_NEON; bit <<= 1) {
        if (bit & aes) continue;
        const dither_kernels *found = dither_select(here & (bit | aes));
        int known = 0;
        for (size_t i = 0; i < paths.count; i++) known |= paths.of[i] == found;
        if (!known) paths.of[paths.count++] = found;
    }
    return paths;
}

uint64_t next_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

enum { FENCE = 64, PATTERN = 0xa5 };

buffer buffer_new(size_t size, size_t offset) {
    buffer b = {.size = size, .offset = offset};
    size_t whole = (FENCE + offset + size + FENCE + 63) / 64 * 64;
    b.block = aligned_alloc(64, whole);
    CHECK(b.block, "no memory");
    memset(b.block, PATTERN, whole);
    b.at = b.block + FENCE + offset;
    ASAN_POISON_MEMORY_REGION(b.block, FENCE + offset);
    ASAN_POISON_MEMORY_REGION(b.at + size, whole - FENCE - offset - size);
    return b;
}

void buffer_free(buffer *b) {
    size_t whole = (FENCE + b->offset + b->size + FENCE + 63) / 64 * 64;
    ASAN_UNPOISON_MEMORY_REGION(b->block, whole);
    for (size_t i = 0; i < whole; i++)
        if (i < FENCE + b->offset || i >= FENCE + b->offset + b->size)
            CHECK(b->block[i] == PATTERN, "byte %zd of %zu was written to",
                  (ssize_t)i - (ssize_t)(FENCE + b->offset), b->size);
    free(b->block);
}

dither_key *agreed_key(void) { return agreed_key_for(DITHER_CHACHA20); }

dither_key *agreed_key_for(dither_cipher cipher) {
    uint8_t bytes[DITHER_KEY_BYTES];
    dither_key *key = NULL;
    for (int i = 0; i < DITHER_KEY_BYTES; i++) bytes[i] = (uint8_t)i;
    CHECK(dither_key_agreed(bytes, cipher, &key) == DITHER_OK, "no key");
    return key;
}

static struct {
    void *at;
    size_t size;
} maps[8];
static int watching, mapped, wiped;

void watch_begin(void) {
    watching = 1;
    mapped = wiped = 0;
}

void watch_end(void) { watching = 0; }

void *watched(size_t *size) {
    CHECK(mapped > 0, "nothing was mapped");
    *size = maps[mapped - 1].size;
    return maps[mapped - 1].at;
}

int watch_wiped(void) { return wiped; }

void *__real_mmap(void *at, size_t size, int protection, int flags, int file, off_t offset);
int __real_munmap(void *at, size_t size);
void *__wrap_mmap(void *at, size_t size, int protection, int flags, int file, off_t offset);
int __wrap_munmap(void *at, size_t size);

/* The one shared mapping of a group of threads, and how many hold it. */
static pthread_mutex_t sharing = PTHREAD_MUTEX_INITIALIZER;
static int shares;
static void *shared;
static unsigned holders;

void share_mappings(int on) { shares = on; }

static void *share(size_t size, int protection, int flags, int file, off_t offset) {
    pthread_mutex_lock(&sharing);
    if (holders == 0) shared = __real_mmap(NULL, size, protection, flags, file, offset);
    if (shared != MAP_FAILED) holders++;
    pthread_mutex_unlock(&sharing);
    return shared;
}

/* Whether it was the shared one. */
static int unshare(void *at, size_t size) {
    pthread_mutex_lock(&sharing);
    int mine = holders > 0 && at == shared;
    if (mine && --holders == 0) (void)__real_munmap(shared, size);
    pthread_mutex_unlock(&sharing);
    return mine;
}

void *__wrap_mmap(void *at, size_t size, int protection, int flags, int file, off_t offset) {
    if (shares && (flags & MAP_SHARED)) return share(size, protection, flags, file, offset);
    void *made = __real_mmap(at, size, protection, flags, file, offset);
    if (watching && made != MAP_FAILED && mapped < 8) {
        maps[mapped].at = made;
        maps[mapped++].size = size;
    }
    return made;
}

int __wrap_munmap(void *at, size_t size) {
    for (int i = 0; i < mapped; i++)
        if (maps[i].at == at) {
            for (size_t b = 0; b < size; b++)
                CHECK(((unsigned char *)at)[b] == 0, "byte %zu of a mapping was left", b);
            maps[i].at = NULL;
            wiped++;
        }
    return shares && unshare(at, size) ? 0 : __real_munmap(at, size);
}
