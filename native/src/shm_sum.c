/* The plain sum over ranks. */
#include "shm_blocks.h"

#ifdef __linux__
#include <string.h>

static const unsigned WIDTHS[SUM_TYPES] = {1, 2, 4, 8, 4, 8};

typedef struct {
    const dither_kernels *kernels;
    unsigned char *buffer;
    enum sum_type type;
} plain;

static dither_status write_plain(void *context, size_t first, size_t count, void *slot) {
    const plain *p = context;
    memcpy(slot, p->buffer + first * WIDTHS[p->type], count * WIDTHS[p->type]);
    return DITHER_OK;
}

static void read_plain(void *context, size_t first, size_t count, const void *const *from,
                       unsigned parts) {
    const plain *p = context;
    void *to = p->buffer + first * WIDTHS[p->type];
    if (parts == 1)
        memcpy(to, from[0], count * WIDTHS[p->type]);
    else
        p->kernels->simd->sum[p->type](to, from, parts, count);
}

dither_status dither_shm_sum(dither_shm *shm, const dither_kernels *kernels, dither_sum type,
                             void *buffer, size_t count) {
    static const enum sum_type types[] = {SUM_U8, SUM_U16, SUM_U32, SUM_U64, SUM_F32, SUM_F64};
    if ((unsigned)type > DITHER_SUM_F64) return DITHER_BAD_ARGUMENT;
    plain p = {kernels, buffer, types[type]};
    const shm_work work = {.type = p.type,
                           .width = WIDTHS[p.type],
                           .digest = shm_mix(shm_mix(1, (uint64_t)type), count),
                           .write = write_plain,
                           .read = read_plain,
                           .context = &p};
    dither_status status = shm_enter(shm);
    if (status != DITHER_OK) return status;
    return shm_leave(shm, shm_run(shm, kernels, &work, count));
}
#else
typedef int dither_shm_needs_linux;
#endif
