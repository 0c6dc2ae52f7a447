/* Messages between two ranks: a ring of bytes for each ordered pair.
 *
 * A message is its length in eight bytes, then its bytes, padded to eight. Long ones pass through
 * the ring in quarters, so that one end copies in while the other copies out. */
#include "shm.h"

#ifdef __linux__
#include <string.h>

typedef struct {
    shm_ring *ring;
    unsigned char *memory; /* the ring's bytes */
    unsigned peer;
    const unsigned char *from;
    unsigned char *to;
    uint64_t size;
    uint64_t done, total; /* with length and padding */
} transfer;

enum { LENGTH = 8 };

static transfer open_transfer(dither_shm *shm, unsigned from, unsigned to, uint64_t size) {
    const size_t pair = (size_t)from * shm->ranks + to;
    transfer t = {.ring = &shm->rings[pair],
                  .memory = shm->ring_memory + pair * shm->ring_bytes,
                  .peer = from == shm->rank ? to : from,
                  .size = size,
                  .total = LENGTH + (size + 7) / 8 * 8};
    return t;
}

/* How much can move at once, from where in the ring. Everything is a multiple of eight. */
static uint32_t piece(const dither_shm *shm, const transfer *t, uint32_t room, uint32_t at) {
    const uint32_t whole = shm->ring_bytes;
    uint32_t most = room < whole / 4 ? room : whole / 4;
    if (most > whole - at) most = whole - at;
    if (t->done == 0) return LENGTH;
    return t->total - t->done < most ? (uint32_t)(t->total - t->done) : most;
}

/* Bytes of the message, without padding, in the next `now` of the transfer. */
static size_t useful(const transfer *t, uint32_t now) {
    const uint64_t left = t->size - (t->done - LENGTH);
    return left < now ? (size_t)left : now;
}

/* Move a piece into the ring. `*moved` says whether there was room. */
static dither_status push(dither_shm *shm, transfer *t, int *moved) {
    const uint32_t written = atomic_load_explicit(&t->ring->written.count, memory_order_relaxed);
    const uint32_t held = written - atomic_load_explicit(&t->ring->read.count, memory_order_acquire);
    if (held > shm->ring_bytes || held % 8 || written % 8) return DITHER_BROKEN;
    if (t->done == t->total || held == shm->ring_bytes) return DITHER_OK;
    const uint32_t at = written % shm->ring_bytes, now = piece(shm, t, shm->ring_bytes - held, at);
    if (t->done == 0)
        memcpy(t->memory + at, &t->size, LENGTH);
    else if (useful(t, now) > 0)
        memcpy(t->memory + at, t->from + (t->done - LENGTH), useful(t, now));
    t->done += now;
    *moved = 1;
    shm_set(&t->ring->written.count, written + now);
    /* The length alone is of no use yet; what follows it, or fills the ring before it, rings. */
    if (t->done != LENGTH || t->done == t->total) shm_ring_bell(shm, t->peer);
    return DITHER_OK;
}

static dither_status pull(dither_shm *shm, transfer *t, int *moved) {
    const uint32_t read = atomic_load_explicit(&t->ring->read.count, memory_order_relaxed);
    const uint32_t held = atomic_load_explicit(&t->ring->written.count, memory_order_acquire) - read;
    if (held > shm->ring_bytes || held % 8 || read % 8) return DITHER_BROKEN;
    if (t->done == t->total || held == 0) return DITHER_OK;
    const uint32_t at = read % shm->ring_bytes, now = piece(shm, t, held, at);
    if (t->done == 0) {
        uint64_t size;
        memcpy(&size, t->memory + at, LENGTH);
        if (size != t->size) {
            shm->culprit = (int)t->peer;
            return DITHER_MISMATCH;
        }
    } else if (useful(t, now) > 0) {
        memcpy(t->to + (t->done - LENGTH), t->memory + at, useful(t, now));
    }
    t->done += now;
    *moved = 1;
    shm_set(&t->ring->read.count, read + now);
    shm_ring_bell(shm, t->peer);
    return DITHER_OK;
}

/* Move both transfers to their ends; either may be NULL. */
static dither_status move(dither_shm *shm, transfer *out, transfer *in) {
    for (;;) {
        int moved = 0;
        shm_event events[2];
        unsigned count = 0;
        dither_status status = out ? push(shm, out, &moved) : DITHER_OK;
        if (status == DITHER_OK && in) status = pull(shm, in, &moved);
        if (status != DITHER_OK) return status;
        if ((!out || out->done == out->total) && (!in || in->done == in->total)) return DITHER_OK;
        if (moved) continue;
        if (out && out->done < out->total)
            events[count++] = (shm_event){
                &out->ring->read.count,
                atomic_load(&out->ring->written.count) - shm->ring_bytes + LENGTH, out->peer};
        if (in && in->done < in->total)
            events[count++] = (shm_event){&in->ring->written.count,
                                          atomic_load(&in->ring->read.count) + LENGTH, in->peer};
        status = shm_wait(shm, events, count);
        if (status != DITHER_OK) return status;
    }
}

dither_status dither_shm_exchange(dither_shm *shm, unsigned to, const void *message, size_t size,
                                  unsigned from, void *out, size_t out_size) {
    if (to >= shm->ranks || from >= shm->ranks) return DITHER_BAD_ARGUMENT;
    dither_status status = shm_enter(shm);
    if (status != DITHER_OK) return status;
    transfer sent = open_transfer(shm, shm->rank, to, size);
    transfer got = open_transfer(shm, from, shm->rank, out_size);
    sent.from = message;
    got.to = out;
    return shm_leave(shm, move(shm, &sent, &got));
}

dither_status dither_shm_send(dither_shm *shm, unsigned to, const void *message, size_t size) {
    if (to >= shm->ranks) return DITHER_BAD_ARGUMENT;
    dither_status status = shm_enter(shm);
    if (status != DITHER_OK) return status;
    transfer sent = open_transfer(shm, shm->rank, to, size);
    sent.from = message;
    return shm_leave(shm, move(shm, &sent, NULL));
}

dither_status dither_shm_receive(dither_shm *shm, unsigned from, void *out, size_t size) {
    if (from >= shm->ranks) return DITHER_BAD_ARGUMENT;
    dither_status status = shm_enter(shm);
    if (status != DITHER_OK) return status;
    transfer got = open_transfer(shm, from, shm->rank, size);
    got.to = out;
    return shm_leave(shm, move(shm, NULL, &got));
}
#else
typedef int dither_shm_needs_linux;
#endif
