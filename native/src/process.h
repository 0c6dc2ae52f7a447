/* Whose memory is this: ours, or a parent's that `fork` copied? */
#ifndef DITHER_PROCESS_H
#define DITHER_PROCESS_H

#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

/* Best kept on a page that the system wipes in a forked child: zeros are nobody's. */
typedef struct {
    atomic_long owner;    /* the process that may use the memory as it is */
    atomic_long claiming; /* the process that is making it its own, or 0 */
} dither_owner;

static inline void dither_owner_init(dither_owner *owner) {
    atomic_init(&owner->owner, (long)getpid());
    atomic_init(&owner->claiming, 0);
}

static inline int dither_owned(dither_owner *owner) {
    return atomic_load(&owner->owner) == (long)getpid();
}

/* 1: the caller is the one thread that must renew the memory, then call `dither_claimed`.
 * 0: another thread of this process has done so. */
static inline int dither_claim(dither_owner *owner) {
    long self = (long)getpid();
    for (;;) {
        if (atomic_load(&owner->owner) == self) return 0;
        /* The id of a parent that forked in the middle of its own claim is no lock here. */
        long seen = atomic_load(&owner->claiming);
        if (seen != self && atomic_compare_exchange_strong(&owner->claiming, &seen, self)) {
            if (atomic_load(&owner->owner) != self) return 1;
            atomic_store(&owner->claiming, 0);
            return 0;
        }
        sched_yield();
    }
}

static inline void dither_claimed(dither_owner *owner, int renewed) {
    if (renewed) atomic_store(&owner->owner, (long)getpid());
    atomic_store(&owner->claiming, 0);
}

#endif
