/* Segments: made, joined, entered, left.
 *
 * The memory is a sealed memfd, which no name leads to. Its content is zeros (nobody's data) until
 * ranks describe themselves and calls write blocks (shm_blocks.c) and messages (shm_ring.c). */
#define _GNU_SOURCE
#include "shm.h"

#ifdef __linux__
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "wipe.h"

static const uint64_t MAGIC = 0x31304d4853687464; /* "dthSHM01": changes with the layout */

enum { PAGE = 4096, PRIVATE = PAGE + (int)SHM_SLOT };

static size_t pages(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

static uint32_t ring_bytes(unsigned ranks) { return ranks <= 8 ? 1u << 18 : ranks <= 64 ? 1u << 16 : 1u << 14; }

/* Lay the parts out from `base` on; returns the size. `shm` may be NULL. */
static size_t lay_out(unsigned ranks, unsigned char *base, dither_shm *shm) {
    const size_t pairs = (size_t)ranks * ranks;
    size_t at[5] = {0};
    at[1] = pages(sizeof(shm_head));
    at[2] = at[1] + pages(ranks * sizeof(shm_rank));
    at[3] = at[2] + pages(pairs * sizeof(shm_ring));
    at[4] = at[3] + pairs * ring_bytes(ranks);
    if (shm) {
        shm->head = (shm_head *)base;
        shm->rank_of = (shm_rank *)(base + at[1]);
        shm->rings = (shm_ring *)(base + at[2]);
        shm->ring_memory = base + at[3];
        shm->slots = base + at[4];
        shm->ring_bytes = ring_bytes(ranks);
    }
    return at[4] + ranks * SHM_SLOTS * SHM_SLOT;
}

dither_status dither_shm_create(unsigned ranks, int *file) {
    *file = -1;
    if (ranks < 1 || ranks > DITHER_SHM_RANKS) return DITHER_BAD_ARGUMENT;
    const size_t size = lay_out(ranks, NULL, NULL);
    const shm_head head = {.magic = MAGIC, .ranks = ranks, .size = size};
    int made = memfd_create("dither", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (made < 0) return DITHER_UNSUPPORTED;
    /* Nobody can shrink it under the others' feet. */
    if (ftruncate(made, (off_t)size) != 0 || pwrite(made, &head, sizeof head, 0) != sizeof head ||
        fcntl(made, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        close(made);
        return DITHER_NO_MEMORY;
    }
    *file = made;
    return DITHER_OK;
}

static dither_status map(int file, dither_shm *shm) {
    struct stat state;
    shm_head head;
    if (fcntl(file, F_GET_SEALS) != (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) ||
        fstat(file, &state) != 0 || pread(file, &head, sizeof head, 0) != sizeof head)
        return DITHER_BAD_ARGUMENT;
    if (head.magic != MAGIC || head.ranks < 1 || head.ranks > DITHER_SHM_RANKS ||
        head.size != (uint64_t)state.st_size || head.size != lay_out(head.ranks, NULL, NULL))
        return DITHER_MISMATCH;
    void *base = mmap(NULL, head.size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (base == MAP_FAILED) return DITHER_NO_MEMORY;
    (void)madvise(base, head.size, MADV_DONTFORK);
    (void)madvise(base, head.size, MADV_DONTDUMP);
    shm->size = head.size;
    shm->ranks = head.ranks;
    (void)lay_out(head.ranks, base, shm);
    return DITHER_OK;
}

/* A page that says whose the view is, and a block that has not left yet; both are zeros in a forked
 * child. */
static dither_status own(dither_shm *shm) {
    void *memory = mmap(NULL, PRIVATE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return DITHER_NO_MEMORY;
    (void)madvise(memory, PRIVATE, MADV_WIPEONFORK);
    (void)madvise(memory, PRIVATE, MADV_DONTDUMP);
    shm->owner = memory;
    shm->private = (unsigned char *)memory + PAGE;
    dither_owner_init(shm->owner);
    return DITHER_OK;
}

/* Take the place, wait for the others, see who they are. */
static dither_status meet(dither_shm *shm) {
    uint32_t free_place = 0;
    shm_rank *mine = &shm->rank_of[shm->rank];
    if (!atomic_compare_exchange_strong(&mine->attached.count, &free_place, 1))
        return DITHER_MISMATCH;
    shm_describe(mine);
    shm_set(&mine->attached.count, 2);
    for (unsigned q = 0; q < shm->ranks; q++) shm_ring_bell(shm, q);
    for (unsigned q = 0; q < shm->ranks; q++) {
        const shm_event attached = {&shm->rank_of[q].attached.count, 2, q};
        dither_status status = shm_wait(shm, &attached, 1);
        if (status != DITHER_OK) return status;
    }
    shm->spins = shm_cores(shm) >= (int)shm->ranks;
    return shm_watch_peers(shm);
}

static dither_status join(dither_shm *shm, int file) {
    dither_status status = map(file, shm);
    if (status == DITHER_OK && shm->rank >= shm->ranks) status = DITHER_BAD_ARGUMENT;
    if (status == DITHER_OK) status = own(shm);
    if (status != DITHER_OK) return status;
    shm->lives = malloc(shm->ranks * sizeof *shm->lives);
    if (!shm->lives) return DITHER_NO_MEMORY;
    for (unsigned q = 0; q < shm->ranks; q++) shm->lives[q] = -1;
    status = shm_enter(shm);
    return status == DITHER_OK ? shm_leave(shm, meet(shm)) : status;
}

dither_status dither_shm_attach(int file, unsigned rank, double timeout,
                                int (*interrupted)(void *context), void *context,
                                dither_shm **out) {
    *out = NULL;
    if (!(timeout > 0 && timeout < 1e9)) return DITHER_BAD_ARGUMENT;
    dither_shm *shm = calloc(1, sizeof *shm);
    if (!shm) return DITHER_NO_MEMORY;
    shm->rank = rank;
    shm->timeout = timeout;
    shm->culprit = -1;
    shm->interrupted = interrupted;
    shm->context = context;
    atomic_flag_clear(&shm->busy);
    dither_status status = join(shm, file);
    if (status == DITHER_OK)
        *out = shm;
    else
        dither_shm_free(shm);
    return status;
}

void dither_shm_free(dither_shm *shm) {
    if (!shm) return;
    for (unsigned q = 0; shm->lives && q < shm->ranks; q++)
        if (shm->lives[q] >= 0) close(shm->lives[q]);
    free(shm->lives);
    if (shm->owner && dither_owned(shm->owner)) { /* in a forked child the segment is not mapped */
        shm_set(&shm->rank_of[shm->rank].left.count, 1);
        for (unsigned q = 0; q < shm->ranks; q++) shm_ring_bell(shm, q);
        (void)munmap(shm->head, shm->size);
    } else if (shm->head && !shm->owner) {
        (void)munmap(shm->head, shm->size);
    }
    if (shm->owner) {
        dither_wipe(shm->owner, PRIVATE);
        (void)munmap(shm->owner, PRIVATE);
    }
    free(shm);
}

unsigned dither_shm_ranks(const dither_shm *shm) { return shm->ranks; }

int dither_shm_culprit(const dither_shm *shm) { return shm->culprit; }

dither_status shm_told(dither_shm *shm) {
    const uint32_t broken = atomic_load(&shm->head->broken), kind = broken >> 16;
    if (!broken) return DITHER_OK;
    shm->culprit = (int)(broken & 0xffff) - 1;
    return kind >= DITHER_PEER_DEAD && kind <= DITHER_MISMATCH ? (dither_status)kind : DITHER_BROKEN;
}

dither_status shm_enter(dither_shm *shm) {
    if (!dither_owned(shm->owner)) return DITHER_FORKED;
    if (atomic_flag_test_and_set_explicit(&shm->busy, memory_order_acquire)) return DITHER_BUSY;
    shm->deadline = 0;
    shm_place(shm);
    const dither_status status = shm->failed ? DITHER_BROKEN : shm_told(shm);
    if (status == DITHER_OK) return DITHER_OK;
    return shm_leave(shm, status); /* the first time says why */
}

dither_status shm_leave(dither_shm *shm, dither_status status) {
    if (status != DITHER_OK) {
        shm->failed = 1;
        const int of_peers = status >= DITHER_PEER_DEAD && status <= DITHER_MISMATCH;
        if (!of_peers && status != DITHER_BROKEN) shm->culprit = (int)shm->rank;
        const uint32_t kind = of_peers ? (uint32_t)status : DITHER_PEER_FAILED;
        uint32_t whole = 0;
        if (atomic_compare_exchange_strong(&shm->head->broken, &whole,
                                           kind << 16 | (uint32_t)(shm->culprit + 1)))
            for (unsigned q = 0; q < shm->ranks; q++) shm_ring_bell(shm, q);
    }
    atomic_flag_clear_explicit(&shm->busy, memory_order_release);
    return status;
}
#else
dither_status dither_shm_create(unsigned ranks, int *file) {
    (void)ranks;
    *file = -1;
    return DITHER_UNSUPPORTED;
}
#endif
