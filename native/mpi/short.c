/* Short messages between ranks of one host: each rank's goes with the word that it has come, and what it takes
 * is one meeting in the place of two.
 *
 * Draws for the shortest are taken out of the pool some at a time: the pool's locks cost more than their sum. They
 * lie where the pool's lie: in memory that is kept out of core dumps and that a forked child sees as
 * zeros, their count too, so it never uses what its parent uses. */
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>

#include "mpi_core.h"

enum { DRAWS = 4096, FEW = 512, SUMMED = 1 << 16 };

struct dm_purse {
    size_t left; /* the last of `draws` are unused */
    double scaled[FEW];
    int32_t draws[DRAWS];
};

static dm_purse *purse_of(dm_group *group) {
    if (group->purse) return group->purse;
    void *memory =
        mmap(NULL, sizeof(dm_purse), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
#ifdef MADV_DONTDUMP
    (void)madvise(memory, sizeof(dm_purse), MADV_DONTDUMP);
#endif
#ifdef MADV_WIPEONFORK
    if (madvise(memory, sizeof(dm_purse), MADV_WIPEONFORK) == 0) return group->purse = memory;
#endif
    (void)munmap(memory, sizeof(dm_purse)); /* a child would have the parent's draws */
    return NULL;
}

void dm_purse_close(dm_group *group) {
    if (!group->purse) return;
    memset(group->purse, 0, sizeof *group->purse);
    (void)munmap(group->purse, sizeof *group->purse);
    group->purse = NULL;
}

int dm_is_short(const dm_group *group, const dm_sum *sum, const dm_source *source) {
    const size_t width = (size_t)source->how.grid.wire_bits / 8;
    return sum->count * width <= DM_SHORT && sum->count * (size_t)group->ranks <= SUMMED;
}

/* With draws of the purse. Those are used with values that the factor was applied to: as float64, like the
 * core does it. */
static dither_status encode_few(dm_purse *purse, const dither_release *how, dither_float type,
                                const void *values, void *message, size_t count,
                                uint64_t *saturated) {
    if (purse->left < count) {
        const dither_status status =
            dither_pool_take(how->pool, purse->draws, DRAWS - purse->left);
        if (status != DITHER_OK) return status;
        purse->left = DRAWS;
    }
    int32_t *noise = purse->draws + (DRAWS - purse->left);
    if (how->factor < 1) {
        for (size_t i = 0; i < count; i++)
            purse->scaled[i] = how->factor * (type == DITHER_F32 ? (double)((const float *)values)[i]
                                                                 : ((const double *)values)[i]);
        values = purse->scaled;
        type = DITHER_F64;
    }
    const dither_status status = dither_encode_ready(dm.kernels, noise, &how->grid, type, values,
                                                     message, count, saturated);
    purse->left -= count; /* and they are zeros now */
    return status;
}

static dither_status encode(dm_group *group, const dither_release *how, dither_float type,
                            const void *values, void *message, size_t count) {
    uint64_t saturated = 0;
    dither_status status;
    dm_purse *purse = how->pool && count <= FEW ? purse_of(group) : NULL;
    if (purse) {
        status = encode_few(purse, how, type, values, message, count, &saturated);
    } else if (how->pool) {
        status = dither_pool_encode_factor(how->pool, &how->grid, how->factor, type, values, message,
                                           count, &saturated);
    } else {
        status = dither_encode_factor(dm.kernels, how->key, how->sigma, &how->grid, how->factor,
                                      type, values, message, count, &saturated);
        dm_add(&dm_stats.drawn, count);
    }
    if (saturated) dm_add(&dm_stats.saturated, saturated);
    return status;
}

static void *message_of(const dm_group *group, int rank, size_t bytes) {
    dm_arrival *arrival = &group->arrivals[rank];
    const unsigned turn = group->calls & 1;
    return bytes <= DM_TINY ? arrival->line[turn].tiny : arrival->message[turn];
}

/* The sum of all messages, mod 2^16 or 2^32, into the group's own memory. */
static void add_up(const dm_group *group, size_t count, size_t width) {
    uint32_t *sums = (uint32_t *)group->message;
    uint16_t *halves = (uint16_t *)group->message;
    memcpy(group->message, message_of(group, 0, count * width), count * width);
    for (int rank = 1; rank < group->ranks; rank++) {
        const void *message = message_of(group, rank, count * width);
        if (width == 2)
            for (size_t i = 0; i < count; i++)
                halves[i] = (uint16_t)(halves[i] + ((const uint16_t *)message)[i]);
        else
            for (size_t i = 0; i < count; i++) sums[i] += ((const uint32_t *)message)[i];
    }
}

static uint32_t digest_of(const dm_sum *sum, const dither_grid *grid) {
    return (uint32_t)sum->count * 2654435761u ^ (uint32_t)(sum->root + 1) << 8 ^
           (uint32_t)grid->wire_bits;
}

static dither_status same_call(dm_group *group, uint32_t digest) {
    for (int rank = 0; rank < group->ranks; rank++)
        if (group->arrivals[rank].line[group->calls & 1].digest != digest) return DITHER_MISMATCH;
    return DITHER_OK;
}

dither_status dm_short(dm_group *group, const dm_sum *sum, const dm_source *source, double factor,
                       int finite) {
    const size_t width = (size_t)source->how.grid.wire_bits / 8, count = sum->count;
    const dither_float type = dm_kind_float(sum->kind);
    const int direct = sum->kind == DM_F32 || sum->kind == DM_F64;
    const uint32_t digest = digest_of(sum, &source->how.grid);
    const unsigned turn = (group->calls + 1) & 1;
    dm_arrival *mine = &group->arrivals[group->rank];
    void *message = count * width <= DM_TINY ? mine->line[turn].tiny : mine->message[turn];
    const void *values = direct && finite ? sum->values : group->floats;
    dither_release how = source->how;
    how.factor = factor;
    if (!finite)
        memset(group->floats, 0, count * sizeof(double));
    else if (!direct)
        dm_to_floats(sum->kind, sum->values, group->floats, count);
    dither_status status = encode(group, &how, type, values, message, count);
    if (status != DITHER_OK) dm_no_noise(status);
    mine->line[turn].digest = digest;
    dm_come(group);
    status = dm_await(group);
    if (status == DITHER_OK) status = same_call(group, digest);
    if (status != DITHER_OK || !sum->result) return status;
    add_up(group, count, width);
    status = dither_decode(dm.kernels, &how.grid, group->message, type,
                           direct ? sum->result : group->sums, count);
    if (!direct) dm_from_floats(sum->kind, group->sums, sum->result, count);
    return status;
}
