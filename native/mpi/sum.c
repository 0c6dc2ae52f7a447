/* The private sum: reserve a release, clip, add noise, sum, decode. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "mpi_core.h"

/* Below this many elements reading the clock costs more than it tells. */
enum { TIMED = 2048 };

int dm_scratch(dm_group *group) {
    if (group->message) return 1;
    if (!group->floats) group->floats = malloc(DM_BLOCK * sizeof(double));
    if (!group->sums) group->sums = malloc(DM_BLOCK * sizeof(double));
    if (group->floats && group->sums) group->message = malloc(DM_BLOCK * sizeof(int32_t));
    return group->message != NULL;
}

/* The smallest of what the ranks offer, by shared memory: one place a rank in a sum. */
static dither_status least_shared(dm_group *group, uint64_t *offer) {
    uint64_t offers[DITHER_SHM_RANKS] = {0};
    offers[group->rank] = *offer;
    const dither_status status =
        dither_shm_sum(group->shm, dm.kernels, DITHER_SUM_64, offers, (size_t)group->ranks);
    for (int rank = 0; rank < group->ranks; rank++)
        if (offers[rank] < *offer) *offer = offers[rank];
    return status;
}

dm_outcome dm_reserve(dm_group *group, int worker) {
    if (dm.plan.mode == DM_ENCRYPTED) return DM_DONE;
    if (group->quota == 0) {
        const uint64_t mine = dm_budget_take();
        uint64_t least = mine;
        if (group->shm)
            group->failure = least_shared(group, &least);
        else if (group->ranks > 1 && !worker &&
                 PMPI_Allreduce(MPI_IN_PLACE, &least, 1, MPI_UINT64_T, MPI_MIN, group->own))
            group->failure = DITHER_PEER_FAILED;
        if (group->failure != DITHER_OK) least = 0;
        dm_budget_return(mine - least);
        if (least == 0) return group->failure == DITHER_OK ? DM_SPENT : DM_FAILED;
        group->quota = least;
    }
    group->quota--;
    dm_add(&dm_stats.releases, 1);
    return DM_DONE;
}

double dm_factor(dm_kind kind, const void *values, size_t count, void *floats, int *finite) {
    const dither_float type = dm_kind_float(kind);
    double norm = 0, squares = 0, one;
    size_t blocks = 0;
    dither_status status = DITHER_OK;
    if (kind == DM_F32 || kind == DM_F64) {
        status = dither_norm(dm.kernels, type, values, count, &norm);
    } else {
        for (size_t at = 0; at < count && status == DITHER_OK; at += DM_BLOCK, blocks++) {
            const size_t now = count - at < DM_BLOCK ? count - at : DM_BLOCK;
            dm_to_floats(kind, (const char *)values + at * dm_kind_size(kind), floats, now);
            status = dither_norm(dm.kernels, type, floats, now, &one);
            squares += one * one;
        }
        /* Each block's square and sum round once more than dither_norm_error counts. */
        norm = sqrt(squares) * (1 + (double)(blocks + 8) * 0x1p-52);
    }
    if (status != DITHER_OK) {
        *finite = 0;
        dm_add(&dm_stats.not_finite, 1);
        return 1;
    }
    return dither_clip_factor(norm, count, dm.plan.clip);
}

/* This rank's message, summed over MPI in place, where the rank gets the sum. */
static int sum_message(dm_group *group, const dm_sum *sum, const dither_grid *grid, int count) {
    const MPI_Datatype type = grid->wire_bits == 16 ? MPI_INT16_T : MPI_INT32_T;
    if (group->ranks == 1) return MPI_SUCCESS;
    if (sum->root < 0)
        return PMPI_Allreduce(MPI_IN_PLACE, group->message, count, type, MPI_SUM, group->own);
    if (sum->root == group->rank)
        return PMPI_Reduce(MPI_IN_PLACE, group->message, count, type, MPI_SUM, sum->root, group->own);
    return PMPI_Reduce(group->message, NULL, count, type, MPI_SUM, sum->root, group->own);
}

/* Without this rank's noise the others' sum would have less than was promised: nobody shall get it. */
void dm_no_noise(dither_status status) {
    dm_die("rank %d cannot make its message (%s), so all ranks end", dm.rank,
           dither_status_text(status));
}

/* A block over MPI. */
static dither_status block_by_mpi(dm_group *group, const dm_sum *sum, const dither_release *how,
                                  const void *from, void *out, size_t count) {
    const dither_float type = dm_kind_float(sum->kind);
    uint64_t saturated = 0;
    dither_status status;
    if (how->pool) {
        status = dither_pool_encode_factor(how->pool, &how->grid, how->factor, type, from,
                                           group->message, count, &saturated);
    } else {
        status = dither_encode_factor(dm.kernels, how->key, how->sigma, &how->grid, how->factor,
                                      type, from, group->message, count, &saturated);
        dm_add(&dm_stats.drawn, count);
    }
    if (status != DITHER_OK) dm_no_noise(status);
    dm_add(&dm_stats.saturated, saturated);
    if (sum_message(group, sum, &how->grid, (int)count) != MPI_SUCCESS) return DITHER_PEER_FAILED;
    if (!sum->result) return DITHER_OK;
    return dither_decode(dm.kernels, &how->grid, group->message, type, out, count);
}

static dither_status block_by_shm(dm_group *group, const dm_sum *sum, const dither_release *how,
                                  const void *from, void *out, size_t count) {
    const dither_float type = dm_kind_float(sum->kind);
    uint64_t saturated = 0;
    const dither_status status = dither_shm_release(group->shm, dm.kernels, how, type, from, type,
                                                    out, count, &saturated);
    if (!how->pool) dm_add(&dm_stats.drawn, count);
    dm_add(&dm_stats.saturated, saturated);
    return status;
}

/* Block by block, converting where the kind is no float of the core's. */
static dither_status in_blocks(dm_group *group, const dm_sum *sum, const dither_release *how,
                               int finite) {
    const int converts = sum->kind != DM_F32 && sum->kind != DM_F64;
    const size_t size = dm_kind_size(sum->kind);
    dither_status status = DITHER_OK;
    size_t at = 0;
    do {
        const size_t now = sum->count - at < DM_BLOCK ? sum->count - at : DM_BLOCK;
        const void *from = sum->values ? (const char *)sum->values + at * size : NULL;
        void *to = sum->result ? (char *)sum->result + at * size : NULL;
        void *out = converts || !to ? group->sums : to;
        if (!finite)
            memset(group->floats, 0, now * sizeof(double));
        else if (converts)
            dm_to_floats(sum->kind, from, group->floats, now);
        if (!finite || converts) from = group->floats;
        status = group->shm ? block_by_shm(group, sum, how, from, out, now)
                            : block_by_mpi(group, sum, how, from, out, now);
        if (status == DITHER_OK && converts && to) dm_from_floats(sum->kind, out, to, now);
        at += now;
    } while (at < sum->count && status == DITHER_OK);
    return status;
}

static dither_status protect(dm_group *group, const dm_sum *sum, const dm_source *source,
                             double factor, int finite) {
    dither_release how = source->how;
    how.factor = factor;
    if (group->shm && sum->root < 0 && (sum->kind == DM_F32 || sum->kind == DM_F64)) {
        const void *values = sum->values;
        if (!finite) { /* the result's own memory, once all that it held was read */
            memset(sum->result, 0, sum->count * dm_kind_size(sum->kind));
            values = sum->result;
        }
        return block_by_shm(group, sum, &how, values, sum->result, sum->count);
    }
    if (how.pool && !group->shm) dither_pool_hold(how.pool, 1);
    const dither_status status = in_blocks(group, sum, &how, finite);
    if (how.pool && !group->shm) dither_pool_hold(how.pool, 0);
    return status;
}

static dm_outcome failed(dm_group *group, const dm_sum *sum, dither_status status) {
    dm_break(group, status);
    if (sum->result) memset(sum->result, 0, sum->count * dm_kind_size(sum->kind));
    return DM_FAILED;
}

/* Through shared memory ranks meet first, or with a short message; the group's thread never does. */
static dither_status sum_all(dm_group *group, const dm_sum *sum, const dm_source *source,
                             double factor, int finite, int is_short) {
    return is_short ? dm_short(group, sum, source, factor, finite)
                    : protect(group, sum, source, factor, finite);
}

static dm_outcome run(dm_group *group, const dm_sum *sum, int worker) {
    if (dm.plan.mode == DM_ENCRYPTED) return dm_run_encrypted(group, sum, worker);
    const dm_source *source = dm_source_for(group, sum->count);
    const int meets = group->shm && !worker, is_short = meets && dm_is_short(group, sum, source),
              timed = sum->count >= TIMED;
    int finite = 1;
    uint64_t began = dm_ticks();
    const double factor = dm_factor(sum->kind, sum->values, sum->count, group->floats, &finite);
    if (timed) {
        const uint64_t clipped = dm_ticks();
        dm_add(&dm_stats.clip, clipped - began);
        began = clipped;
    }
    if (meets && (!is_short || group->quota == 0)) {
        const dither_status status = dm_meet(group);
        if (status != DITHER_OK) return failed(group, sum, status);
        began = dm_ticks();
    }
    const dm_outcome outcome = dm_reserve(group, worker);
    if (outcome != DM_DONE) return outcome;
    const dither_status status = sum_all(group, sum, source, factor, finite, is_short);
    dm_add(&dm_stats.sum, dm_ticks() - began);
    return status == DITHER_OK ? DM_DONE : failed(group, sum, status);
}

dm_outcome dm_run(dm_group *group, const dm_sum *sum, int worker) {
    const dither_arithmetic program = dither_arithmetic_enter();
    dm_pools_call(1);
    pthread_mutex_lock(&group->turn);
    const dm_outcome outcome = run(group, sum, worker);
    pthread_mutex_unlock(&group->turn);
    dm_pools_call(0);
    dither_arithmetic_leave(program);
    return outcome;
}
