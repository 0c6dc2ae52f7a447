/* Ranks meet before a call through shared memory.
 *
 * While a rank waits inside the core's call nothing moves MPI's other messages, and the rank that is
 * waited for may be stuck in a send to us until something does. Here we wait as MPI itself would; once all
 * ranks are in the call, none depends on anything but the call. */
#include <sched.h>

#include "mpi_core.h"

enum { LOOKS = 600, LOOKS_CROWDED = 20, NAP_NS = 50000 };
/* From here on a wait leaves the core to others, say to those who make noise. A nap is much shorter: else two
 * ranks could take turns in napping for each other. */
static const uint64_t LONG_NS = 5000000;

void dm_poll(dm_group *group) {
    int flag;
    PMPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, group->own, &flag, MPI_STATUS_IGNORE);
}

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* Counters go up by one a call, mod 2^32. */
static inline int came(const dm_group *group, int rank, uint32_t call) {
    const _Atomic uint32_t *at = &group->arrivals[rank].line[call & 1].call;
    return (int32_t)(atomic_load_explicit(at, memory_order_acquire) - call) >= 0;
}

static int looked(const dm_group *group, int rank, uint32_t call) {
    const int looks = group->spins ? LOOKS : LOOKS_CROWDED;
    for (int i = 0; i < looks; i++) {
        relax();
        if (came(group, rank, call)) return 1;
    }
    return 0;
}

void dm_break(dm_group *group, dither_status status) {
    group->failure = status;
    if (group->arrivals)
        atomic_store(&group->arrivals[group->rank].end, DM_BROKE);
    else if (group->ranks > 1 && status == DITHER_NO_MEMORY)
        dm_no_noise(status); /* the others are in MPI's hands already */
}

void dm_depart(dm_group *group) {
    uint32_t none = 0;
    (void)atomic_compare_exchange_strong(&group->arrivals[group->rank].end, &none, DM_LEFT);
}

/* What the others say; `waited_for` may have come and then left. */
static dither_status told(dm_group *group, int waited_for, uint32_t call) {
    for (int rank = 0; rank < group->ranks; rank++) {
        const uint32_t end = atomic_load(&group->arrivals[rank].end);
        if (end != DM_BROKE && (end != DM_LEFT || rank != waited_for)) continue;
        if (rank == waited_for && came(group, rank, call)) continue;
        group->culprit = rank;
        return end == DM_BROKE ? DITHER_PEER_FAILED : DITHER_PEER_LEFT;
    }
    return DITHER_OK;
}

int dm_is_broken(void *context) {
    dm_group *group = context;
    for (int rank = 0; rank < group->ranks; rank++) {
        if (atomic_load(&group->arrivals[rank].end) != DM_BROKE) continue;
        group->culprit = rank;
        return 1;
    }
    return 0;
}

static dither_status late(dm_group *group, int rank) {
    group->culprit = rank;
    return DITHER_PEER_LATE;
}

static dither_status wait_for(dm_group *group, int rank, uint32_t call) {
    if (looked(group, rank, call)) return DITHER_OK;
    const uint64_t began = dm_now(), ticks = dm_ticks(), most = (uint64_t)(dm.plan.timeout * 1e9);
    dither_status status = DITHER_OK;
    for (unsigned turn = 1; !came(group, rank, call) && status == DITHER_OK; turn++) {
        dm_poll(group);
        if (dm_live) dm_progress();
        if (!group->spins && turn % 16) sched_yield();
        if (turn % 16) continue;
        const uint64_t waited = dm_now() - began;
        if (!group->spins || waited > LONG_NS) dm_nap(NAP_NS);
        status = told(group, rank, call);
        if (status == DITHER_OK && waited > most) status = late(group, rank);
    }
    dm_add(&dm_stats.wait, dm_ticks() - ticks);
    return status;
}

void dm_come(dm_group *group) {
    const uint32_t call = ++group->calls;
    atomic_store_explicit(&group->arrivals[group->rank].line[call & 1].call, call,
                          memory_order_release);
}

dither_status dm_await(dm_group *group) {
    const uint32_t call = group->calls;
    for (int rank = 0; rank < group->ranks; rank++) {
        if (rank == group->rank || came(group, rank, call)) continue;
        const dither_status status = wait_for(group, rank, call);
        if (status != DITHER_OK) return status;
    }
    return DITHER_OK;
}

dither_status dm_meet(dm_group *group) {
    dm_come(group);
    return dm_await(group);
}
