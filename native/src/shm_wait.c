/* Waiting for other ranks: spin shortly, then sleep.
 *
 * Every rank has a bell, a futex. Who waits says so in `waiting`, looks once more, and sleeps until
 * its bell changes; who changes a counter looks at `waiting` afterwards and rings. All four accesses
 * are sequentially consistent, so at least one of the two sees the other: no wake-up is lost. */
#define _GNU_SOURCE
#include "shm.h"

#ifdef __linux__
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* About what going to sleep and being woken costs: then waiting takes at most twice the best. */
enum { SPIN_NS = 20000, PAUSES = 16 };
/* Between two looks whether peers still live. */
static const int64_t LOOK_NS = 25000000;

int64_t shm_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

void shm_set(_Atomic uint32_t *counter, uint32_t value) { atomic_store(counter, value); }

void shm_ring_bell(dither_shm *shm, unsigned rank) {
    shm_rank *to = &shm->rank_of[rank];
    if (!atomic_load(&to->waiting)) return;
    atomic_fetch_add(&to->bell, 1);
    (void)syscall(SYS_futex, &to->bell, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void shm_place(dither_shm *shm) {
    atomic_store_explicit(&shm->rank_of[shm->rank].core, sched_getcpu(), memory_order_relaxed);
}

/* Whether a peer may be running at this moment: not if it waits for this very core. */
static int may_run(const dither_shm *shm, const shm_event *events, unsigned count) {
    const int32_t core = sched_getcpu();
    for (unsigned i = 0; i < count; i++)
        if (atomic_load_explicit(&shm->rank_of[events[i].peer].core, memory_order_relaxed) != core)
            return 1;
    return 0;
}

static int happened(const shm_event *events, unsigned count) {
    for (unsigned i = 0; i < count; i++)
        if ((int32_t)(atomic_load(events[i].counter) - events[i].target) >= 0) return 1;
    return 0;
}

static int spin(const shm_event *events, unsigned count) {
    const int64_t end = shm_now() + SPIN_NS;
    do {
        for (int i = 0; i < PAUSES; i++) {
            relax();
            for (unsigned e = 0; e < count; e++)
                if (shm_happened(&events[e])) return 1;
        }
    } while (shm_now() < end);
    return 0;
}

static dither_status fail(dither_shm *shm, dither_status status, unsigned culprit) {
    shm->culprit = (int)culprit;
    return status;
}

/* What the segment itself says. */
static dither_status told(dither_shm *shm, const shm_event *events, unsigned count) {
    const dither_status status = shm_told(shm);
    if (status != DITHER_OK) return status;
    for (unsigned i = 0; i < count; i++)
        if (atomic_load(&shm->rank_of[events[i].peer].left.count))
            return fail(shm, DITHER_PEER_LEFT, events[i].peer);
    return DITHER_OK;
}

/* What the system says, asked now and then. */
static dither_status looked(dither_shm *shm, const shm_event *events) {
    const int dead = shm_first_dead(shm);
    if (dead >= 0) return fail(shm, DITHER_PEER_DEAD, (unsigned)dead);
    if (shm->interrupted && shm->interrupted(shm->context)) return DITHER_INTERRUPTED;
    if (shm_now() >= shm->deadline) return fail(shm, DITHER_PEER_LATE, events->peer);
    return DITHER_OK;
}

static void sleep_until(_Atomic uint32_t *bell, uint32_t seen, int64_t end) {
    const int64_t left = end - shm_now();
    if (left <= 0) return;
    const struct timespec most = {left / 1000000000, left % 1000000000};
    (void)syscall(SYS_futex, bell, FUTEX_WAIT, seen, &most, NULL, 0);
}

static dither_status sleep_for(dither_shm *shm, const shm_event *events, unsigned count) {
    shm_rank *mine = &shm->rank_of[shm->rank];
    int64_t look = shm_now() + LOOK_NS;
    for (;;) {
        const uint32_t bell = atomic_load(&mine->bell);
        atomic_store(&mine->waiting, 1);
        dither_status status = told(shm, events, count);
        const int64_t now = shm_now();
        if (status == DITHER_OK && (now >= look || now >= shm->deadline)) {
            look = now + LOOK_NS;
            status = looked(shm, events);
        }
        /* After the rest: a peer may have done its part and then left, or died. */
        if (happened(events, count)) return DITHER_OK;
        if (status != DITHER_OK) return status;
        sleep_until(&mine->bell, bell, look < shm->deadline ? look : shm->deadline);
    }
}

dither_status shm_wait(dither_shm *shm, const shm_event *events, unsigned count) {
    for (unsigned i = 0; i < count; i++)
        if (shm_happened(&events[i])) return DITHER_OK;
    if (shm->spins && may_run(shm, events, count) && spin(events, count)) return DITHER_OK;
    if (!shm->deadline) shm->deadline = shm_now() + (int64_t)(shm->timeout * 1e9);
    dither_status status = sleep_for(shm, events, count);
    atomic_store(&shm->rank_of[shm->rank].waiting, 0);
    shm_place(shm);
    return status;
}
#else
typedef int dither_shm_needs_linux;
#endif
