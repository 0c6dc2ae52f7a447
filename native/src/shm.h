/* What a segment of shared memory holds, and one rank's view of it. Linux. */
#ifndef DITHER_SHM_H
#define DITHER_SHM_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "dither.h"
#include "process.h"

/* Slots of blocks that each rank has: it may be this far ahead of the slowest reader. */
enum { SHM_SLOTS = 4, SHM_LINE = 128, SHM_CPUS = 1024 };
#define SHM_SLOT ((size_t)DITHER_SHM_BLOCK * 8)

/* A count of blocks or bytes that goes up only, mod 2^32, on a cache line (pair) of its own. */
typedef struct {
    _Alignas(SHM_LINE) _Atomic uint32_t count;
} shm_counter;

/* What one rank tells the others. */
typedef struct {
    _Alignas(SHM_LINE) _Atomic uint32_t bell; /* rung when something changes that the rank waits for */
    _Atomic uint32_t waiting;                 /* whether somebody listens */
    _Atomic int32_t core;                     /* where it ran when it last entered or woke */
    shm_counter attached, left;
    shm_counter posted;  /* blocks that lie in its slots */
    shm_counter reduced; /* blocks of which its section is summed */
    shm_counter done;    /* blocks that it needs no more of anybody */
    uint64_t digest[SHM_SLOTS]; /* of the call that a slot's block belongs to */
    int64_t process;
    uint64_t started;   /* clock ticks after boot: tells a process from a later one of its number */
    uint64_t id_space;  /* of the process's number; 0 if unknown */
    uint64_t cpus[SHM_CPUS / 64];
} shm_rank;

/* Bytes on their way from one rank to another. */
typedef struct {
    shm_counter written, read;
} shm_ring;

typedef struct {
    uint64_t magic;
    uint32_t ranks, ring_bytes;
    uint64_t size;
    _Alignas(SHM_LINE) _Atomic uint32_t broken; /* status << 16 | culprit + 1, of the first error */
} shm_head;

struct dither_shm {
    shm_head *head;
    size_t size;
    unsigned rank, ranks;
    uint32_t ring_bytes;
    shm_rank *rank_of;       /* ranks */
    shm_ring *rings;         /* ranks · ranks, by sender, then receiver */
    unsigned char *ring_memory, *slots;
    uint32_t blocks;         /* blocks of all calls so far, mod 2^32 */
    double timeout;
    int64_t deadline;        /* ns; 0 until this call has to wait */
    int spins;               /* whether every rank can have a core */
    int culprit;
    int failed;              /* whether a call of ours has said that the segment is broken */
    int *lives;              /* descriptors of the peers' processes, -1 unknown */
    int (*interrupted)(void *);
    void *context;
    atomic_flag busy;
    dither_owner *owner;     /* on a page that `fork` wipes */
    unsigned char *private;  /* a block that is not ready to leave */
};

/* Happens when counter - target ≥ 0; `peer` is who makes it so. */
typedef struct {
    _Atomic uint32_t *counter;
    uint32_t target;
    unsigned peer;
} shm_event;

static inline int shm_happened(const shm_event *event) {
    return (int32_t)(atomic_load_explicit(event->counter, memory_order_acquire) - event->target) >= 0;
}

/* Wait for the first of some events. */
dither_status shm_wait(dither_shm *shm, const shm_event *events, unsigned count);

/* Set a counter, then ring the bells of those who may wait for it. */
void shm_set(_Atomic uint32_t *counter, uint32_t value);
void shm_ring_bell(dither_shm *shm, unsigned rank);

/* Note where this rank runs. */
void shm_place(dither_shm *shm);

/* Begin a call: refuse a forked child, a second thread, a broken segment. */
dither_status shm_enter(dither_shm *shm);

/* What has broken the segment, or DITHER_OK. */
dither_status shm_told(dither_shm *shm);

/* End it. After an error the segment is broken, for all ranks. */
dither_status shm_leave(dither_shm *shm, dither_status status);

/* Who of a group is alive. */
void shm_describe(shm_rank *mine);
dither_status shm_watch_peers(dither_shm *shm);
int shm_first_dead(dither_shm *shm);
int shm_cores(const dither_shm *shm);

static inline unsigned char *shm_slot(const dither_shm *shm, unsigned rank, uint32_t block) {
    return shm->slots + ((size_t)rank * SHM_SLOTS + block % SHM_SLOTS) * SHM_SLOT;
}

int64_t shm_now(void);

#endif
