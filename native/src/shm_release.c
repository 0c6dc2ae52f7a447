/* The private sum in one pass: encode into slots, sum and decode out of them. */
#include "shm_blocks.h"

#ifdef __linux__
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "codec.h"
#include "mask.h"
#include "wipe.h"

/* Encryption's elements at once: in three passes, which the first-level cache holds. */
enum { STEP = 2048 };
static const int32_t NO_NOISE[STEP];

/* Results beyond this size, in bytes, are stored past the caches, which they would not fit into. */
static const size_t PAST_CACHE = (size_t)4 << 20;

typedef struct {
    dither_shm *shm;
    const dither_kernels *kernels;
    const dither_release *how;
    const unsigned char *values;
    unsigned char *out;
    dither_float type, out_type;
    unsigned width; /* bytes of a message's integer */
    double step;    /* wire step · scale */
    int past_cache;
    uint64_t saturated;
    mask_pad *pads;
    const unsigned char *pad, *total; /* encryption's */
} release;

/* Encode with noise. */
static dither_status encode(release *r, size_t first, size_t count, void *message) {
    const dither_release *how = r->how;
    const void *from = r->values + first * r->type;
    if (how->pool)
        return dither_pool_encode_factor(how->pool, &how->grid, how->factor, r->type, from, message,
                                         count, &r->saturated);
    return dither_encode_factor(r->kernels, how->key, how->sigma, &how->grid, how->factor, r->type,
                                from, message, count, &r->saturated);
}

/* A noisy message may go straight into the slot. One that pads protect goes there with the last of
 * them, and not before. */
static dither_status write_release(void *context, size_t first, size_t count, void *slot) {
    release *r = context;
    void *noisy = r->how->masks ? r->shm->private : slot;
    dither_status status = encode(r, first, count, noisy);
    for (size_t m = 0; status == DITHER_OK && m < r->how->masks; m++)
        mask_some(r->kernels, &r->pads[m], m + 1 < r->how->masks ? noisy : slot, noisy, count);
    return status;
}

static void read_release(void *context, size_t first, size_t count, const void *const *from,
                         unsigned parts) {
    release *r = context;
    r->kernels->simd->decode_sum(from, parts, r->width == 4, r->step, r->out_type == DITHER_F64,
                                 r->past_cache, r->out + first * r->out_type, count);
}

static dither_status write_encrypted(void *context, size_t first, size_t count, void *slot) {
    release *r = context;
    const dither_release *how = r->how;
    for (size_t done = 0, now; done < count; done += now) {
        const size_t at = first + done;
        now = count - done < STEP ? count - done : STEP;
        /* Not wiped, so not written. */
        dither_status status = codec_encode_ready(
            r->kernels, (int32_t *)(uintptr_t)NO_NOISE, 0, &how->grid, how->factor, r->type,
            r->values + at * r->type, r->shm->private, now, &r->saturated);
        if (status != DITHER_OK) return status;
        r->kernels->simd->mask((unsigned char *)slot + done * r->width, r->shm->private,
                               r->pad + at * r->width, now, r->width, 0);
    }
    return DITHER_OK;
}

static void read_encrypted(void *context, size_t first, size_t count, const void *const *from,
                           unsigned parts) {
    release *r = context;
    const simd_kernels *simd = r->kernels->simd;
    const void *plain = r->shm->private, *some[DITHER_SHM_RANKS];
    for (size_t done = 0, now; done < count; done += now) {
        now = count - done < STEP ? count - done : STEP;
        for (unsigned p = 0; p < parts; p++) some[p] = (const char *)from[p] + done * r->width;
        simd->sum[r->width == 4 ? SUM_U32 : SUM_U16](r->shm->private, some, parts, now);
        simd->mask(r->shm->private, r->shm->private, r->total + (first + done) * r->width, now,
                   r->width, 1);
        read_release(r, first + done, now, &plain, 1);
    }
}

/* What all ranks must agree on; factors are their own. */
static uint64_t digest(const release *r, size_t count, uint64_t kind) {
    const dither_grid *grid = &r->how->grid;
    uint64_t scale;
    memcpy(&scale, &r->how->scale, sizeof scale);
    uint64_t mixed = shm_mix(shm_mix(kind, count), (uint64_t)grid->scale_exponent);
    mixed = shm_mix(shm_mix(mixed, (uint64_t)grid->clamp), (uint64_t)grid->wire_shift);
    mixed = shm_mix(shm_mix(mixed, (uint64_t)grid->wire_limit), (uint64_t)grid->wire_bits);
    mixed = shm_mix(mixed, scale);
    /* Masks that drifted apart would not cancel; keys of all ranks advance alike. */
    if (r->how->masks) mixed = shm_mix(mixed, dither_key_position(r->how->mask_keys[0]));
    return mixed;
}

/* Everything that can be refused before anything leaves. */
static dither_status prepare(release *r, const dither_release *how, size_t count) {
    codec_numbers numbers;
    dither_status status = codec_open(&how->grid, how->factor, r->type, &numbers);
    if (status == DITHER_OK) status = codec_step(&how->grid, how->scale, r->out_type, &r->step);
    if (status != DITHER_OK) return status;
    r->how = how;
    r->width = (unsigned)how->grid.wire_bits / 8;
    r->past_cache = count * r->out_type > PAST_CACHE;
    if (!how->pool && !r->pad && (!how->key || !(how->sigma > 0 && how->sigma <= DITHER_MAX_SIGMA)))
        return DITHER_BAD_SIGMA;
    if (how->masks && !(r->pads = calloc(how->masks, sizeof *r->pads))) return DITHER_NO_MEMORY;
    return DITHER_OK;
}

/* The pads of the whole message. Between `shm_enter` and `shm_leave`: taking them spends them. */
static dither_status open_pads(release *r, size_t count) {
    for (size_t m = 0; m < r->how->masks; m++) {
        dither_status status = mask_open(&r->pads[m], r->how->mask_keys[m], count, r->width,
                                         r->how->mask_signs[m]);
        if (status != DITHER_OK) return status;
    }
    return DITHER_OK;
}

static dither_status run_release(release *r, const shm_work *work, size_t count,
                                 uint64_t *saturated) {
    dither_pool *pool = r->pad ? NULL : r->how->pool;
    dither_status status = shm_enter(r->shm);
    if (status == DITHER_OK) {
        if (pool) dither_pool_hold(pool, 1);
        status = open_pads(r, count);
        if (status == DITHER_OK) status = shm_run(r->shm, r->kernels, work, count);
        r->kernels->simd->fence();
        if (r->pads || r->pad)
            dither_wipe(r->shm->private,
                        (count < DITHER_SHM_BLOCK ? count : DITHER_SHM_BLOCK) * r->width);
        if (pool) dither_pool_hold(pool, 0);
        status = shm_leave(r->shm, status);
    }
    if (status != DITHER_OK) dither_wipe(r->out, count * r->out_type);
    if (status == DITHER_OK && saturated) *saturated += r->saturated;
    return status;
}

dither_status dither_shm_release(dither_shm *shm, const dither_kernels *kernels,
                                 const dither_release *how, dither_float type, const void *values,
                                 dither_float out_type, void *out, size_t count,
                                 uint64_t *saturated) {
    release r = {.shm = shm, .kernels = kernels, .values = values, .out = out,
                 .type = type, .out_type = out_type};
    dither_status status = prepare(&r, how, count);
    if (status == DITHER_OK) {
        const shm_work work = {.type = r.width == 4 ? SUM_U32 : SUM_U16,
                               .width = r.width,
                               .digest = digest(&r, count, 2),
                               .write = write_release,
                               .read = read_release,
                               .context = &r};
        status = run_release(&r, &work, count, saturated);
    }
    if (r.pads) dither_wipe(r.pads, how->masks * sizeof *r.pads);
    free(r.pads);
    return status;
}

/* Results of a block would be read again as values of a later one, beyond what was clipped. */
static int apart_or_same(dither_float type, const void *values, dither_float out_type,
                         const void *out, size_t count) {
    const uintptr_t from = (uintptr_t)values, to = (uintptr_t)out;
    if (from == to && type == out_type) return 1;
    return from + count * type <= to || to + count * out_type <= from;
}

dither_status dither_shm_contribute(dither_shm *shm, const dither_kernels *kernels,
                                    const dither_release *how, double clip, dither_float type,
                                    const void *values, dither_float out_type, void *out,
                                    size_t count, int *finite, uint64_t *saturated) {
    dither_release clipped = *how;
    double norm = 0;
    if (!(clip >= 0x1p-400 && clip <= 0x1p400) ||
        !apart_or_same(type, values, out_type, out, count))
        return DITHER_BAD_ARGUMENT;
    dither_status status = dither_norm(kernels, type, values, count, &norm);
    *finite = status != DITHER_NOT_FINITE;
    if (*finite && status != DITHER_OK) return status;
    clipped.factor = dither_clip_factor(norm, count, clip);
    if (!*finite) { /* in the result's own memory, once all of the values were read */
        memset(out, 0, count * out_type);
        values = out;
        type = out_type;
    }
    return dither_shm_release(shm, kernels, &clipped, type, values, out_type, out, count, saturated);
}

dither_status dither_shm_encrypted(dither_shm *shm, const dither_kernels *kernels,
                                   const dither_release *how, const void *pad, const void *total,
                                   dither_float type, const void *values, dither_float out_type,
                                   void *out, size_t count, uint64_t *saturated) {
    dither_release bare = *how;
    release r = {.shm = shm, .kernels = kernels, .values = values, .out = out,
                 .type = type, .out_type = out_type, .pad = pad, .total = total};
    bare.masks = 0;
    dither_status status = prepare(&r, &bare, count);
    if (status != DITHER_OK) return status;
    const shm_work work = {.type = r.width == 4 ? SUM_U32 : SUM_U16,
                           .width = r.width,
                           .digest = digest(&r, count, 3),
                           .write = write_encrypted,
                           .read = read_encrypted,
                           .context = &r};
    return run_release(&r, &work, count, saturated);
}
#else
typedef int dither_shm_needs_linux;
#endif
