/* An operation over MPI: encoded at its start, in parts that are summed side by side and decoded as they
 * come. All is in MPI's hands from the start on, on the program's own communicator and in the program's
 * order, so that it goes on during whatever call of MPI's and waits for nobody.
 *
 * So ranks do not agree beforehand that all can pay. One that cannot sends zeros, and says so in a sum beside: then
 * all refuse at the end. What the others sent is charged to them, and was protected. */
#include <string.h>

#include "later.h"

static size_t width_of(const dm_operation *operation) {
    return (size_t)operation->how.grid.wire_bits / 8;
}

static size_t length_of(const dm_operation *operation, size_t part) {
    const size_t left = operation->sum.count - part * operation->part_length;
    return left < operation->part_length ? left : operation->part_length;
}

static void *message_of(const dm_operation *operation, size_t part) {
    return (char *)operation->copy + part * operation->part_length * width_of(operation);
}

static dither_status encode(dm_operation *operation, const void *values, void *message,
                            size_t count) {
    const dither_release *how = &operation->how;
    const dither_float type = dm_kind_float(operation->sum.kind);
    uint64_t saturated = 0;
    if (how->pool)
        return dither_pool_encode_factor(how->pool, &how->grid, how->factor, type, values, message,
                                         count, &saturated);
    dm_add(&dm_stats.drawn, count);
    return dither_encode_factor(dm.kernels, how->key, how->sigma, &how->grid, how->factor, type,
                                values, message, count, &saturated);
}

/* One part's message; of zeros where the contribution is not finite. */
static void encode_part(dm_operation *operation, size_t part, int finite) {
    const dm_sum *sum = &operation->sum;
    dm_group *group = operation->group;
    const size_t size = dm_kind_size(sum->kind), count = length_of(operation, part);
    const int direct = finite && (sum->kind == DM_F32 || sum->kind == DM_F64);
    for (size_t at = 0; at < count; at += DM_BLOCK) {
        const size_t now = count - at < DM_BLOCK ? count - at : DM_BLOCK;
        const void *from =
            (const char *)sum->values + (part * operation->part_length + at) * size;
        if (!finite)
            memset(group->floats, 0, now * sizeof(double));
        else if (!direct)
            dm_to_floats(sum->kind, from, group->floats, now);
        const dither_status status =
            encode(operation, direct ? from : group->floats,
                   (char *)message_of(operation, part) + at * width_of(operation), now);
        if (status != DITHER_OK) dm_no_noise(status);
    }
}

static int post(dm_operation *operation, size_t part) {
    const dm_sum *sum = &operation->sum;
    const dm_group *group = operation->group;
    const MPI_Comm comm = group->comm;
    const MPI_Datatype type = width_of(operation) == 2 ? MPI_INT16_T : MPI_INT32_T;
    void *message = message_of(operation, part);
    const int count = (int)length_of(operation, part);
    MPI_Request *request = &operation->parts[part];
    if (sum->root < 0)
        return PMPI_Iallreduce(MPI_IN_PLACE, message, count, type, MPI_SUM, comm, request);
    if (sum->root == group->rank)
        return PMPI_Ireduce(MPI_IN_PLACE, message, count, type, MPI_SUM, sum->root, comm,
                            request);
    return PMPI_Ireduce(message, NULL, count, type, MPI_SUM, sum->root, comm, request);
}

static void divide(dm_operation *operation) {
    const size_t count = operation->sum.count, least = (count + DM_PARTS - 1) / DM_PARTS;
    operation->part_length = least > DM_BLOCK ? least : DM_BLOCK;
    operation->part_count = count ? (count + operation->part_length - 1) / operation->part_length : 1;
    for (size_t p = 0; p < DM_PARTS; p++) operation->parts[p] = MPI_REQUEST_NULL;
}

static void post_all(dm_operation *operation, int paid, int finite) {
    dm_group *group = operation->group;
    for (size_t p = 0; p < operation->part_count; p++) {
        if (paid)
            encode_part(operation, p, finite);
        else
            memset(message_of(operation, p), 0, length_of(operation, p) * width_of(operation));
        if (post(operation, p) != MPI_SUCCESS) group->failure = DITHER_PEER_FAILED;
    }
}

/* The message was made room for. */
void dm_parts_start(dm_operation *operation, int paid) {
    dm_group *group = operation->group;
    const dm_sum *sum = &operation->sum;
    int finite = 1;
    const dither_arithmetic program = dither_arithmetic_enter();
    divide(operation);
    dm_pools_call(1);
    const uint64_t began = dm_ticks();
    operation->unpaid = !paid;
    if (PMPI_Iallreduce(MPI_IN_PLACE, &operation->unpaid, 1, MPI_INT, MPI_SUM, group->comm,
                        &operation->vote) != MPI_SUCCESS)
        group->failure = DITHER_PEER_FAILED;
    operation->how.factor = dm_factor(sum->kind, sum->values, sum->count, group->floats, &finite);
    const uint64_t clipped = dm_ticks();
    post_all(operation, paid, finite);
    dm_pools_call(0);
    dither_arithmetic_leave(program);
    dm_add(&dm_stats.clip, clipped - began);
    dm_add(&dm_stats.sum, dm_ticks() - clipped);
}

static dither_status decode_part(dm_operation *operation, size_t part) {
    enum { SOME = 1024 };
    double floats[SOME];
    const dm_sum *sum = &operation->sum;
    const dither_float type = dm_kind_float(sum->kind);
    const size_t size = dm_kind_size(sum->kind), count = length_of(operation, part);
    const int direct = sum->kind == DM_F32 || sum->kind == DM_F64;
    const size_t step = direct ? count : SOME;
    if (!sum->result) return DITHER_OK;
    for (size_t at = 0; at < count; at += step) {
        const size_t now = count - at < step ? count - at : step;
        char *to = (char *)sum->result + (part * operation->part_length + at) * size;
        const void *message =
            (const char *)message_of(operation, part) + at * width_of(operation);
        const dither_status status = dither_decode(dm.kernels, &operation->how.grid, message, type,
                                                   direct ? (void *)to : floats, now);
        if (status != DITHER_OK) return status;
        if (!direct) dm_from_floats(sum->kind, floats, to, now);
    }
    return DITHER_OK;
}

static dither_status decode(dm_operation *operation, size_t part) {
    const dither_arithmetic program = dither_arithmetic_enter();
    const dither_status status = decode_part(operation, part);
    dither_arithmetic_leave(program);
    return status;
}

static int tested(dm_operation *operation, MPI_Request *request) {
    int flag = 0;
    if (PMPI_Test(request, &flag, MPI_STATUS_IGNORE) == MPI_SUCCESS) return flag;
    operation->group->failure = DITHER_PEER_FAILED;
    *request = MPI_REQUEST_NULL;
    return 1;
}

int dm_parts_ended(dm_operation *operation) {
    dm_sum *sum = &operation->sum;
    const uint64_t began = dm_ticks();
    int left = operation->vote != MPI_REQUEST_NULL && !tested(operation, &operation->vote);
    for (size_t p = 0; p < operation->part_count; p++) {
        if (operation->parts[p] == MPI_REQUEST_NULL) continue;
        if (left || !tested(operation, &operation->parts[p])) /* no result before the vote */
            left = 1;
        else if (!operation->unpaid && decode(operation, p) != DITHER_OK)
            operation->group->failure = DITHER_BAD_GRID;
    }
    dm_add(&dm_stats.sum, dm_ticks() - began);
    if (left) return 0;
    operation->outcome = operation->group->failure != DITHER_OK ? DM_FAILED
                         : operation->unpaid                    ? DM_SPENT
                                                                : DM_DONE;
    if (operation->outcome == DM_FAILED && sum->result)
        memset(sum->result, 0, sum->count * dm_kind_size(sum->kind));
    return 1;
}
