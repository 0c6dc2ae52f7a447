/* Encryption in the place of noise: the rival's manner, for comparison in benchmarks alone.
 *
 * As in HEAR, rank r sends x_r + F(k_r) - F(k_{r+1}), pads cancel in the sum but for F(k_0), and all take that
 * away. It is no release: results are exact. The keys come of the plan's token, which all ranks have: good
 * enough to measure, not to protect ranks from each other. */
#include <stdlib.h>
#include <string.h>

#include "mpi_core.h"

struct dm_pads {
    dither_key *own, *next, *all; /* k_r, k_{r+1} (NULL for the last rank), k_0 */
    size_t width;                 /* bytes of an integer that pads were made for */
    size_t ready, used;           /* elements made ahead, and of those used */
    char *pad, *total;            /* made ahead */
    char *pad_now, *total_now;    /* DM_BLOCK elements, made at a call */
    int32_t *no_noise;            /* DM_BLOCK */
};

static dither_key *derive(const dm_group *group, unsigned rank) {
    uint8_t token[DITHER_KEY_BYTES], bytes[DITHER_KEY_BYTES];
    uint32_t words[DITHER_KEY_BYTES / 4];
    dither_key *master = NULL, *key = NULL;
    for (int i = 0; i < DITHER_KEY_BYTES; i++) {
        const char digits[3] = {dm.plan.token[2 * i], dm.plan.token[2 * i + 1], 0};
        token[i] = (uint8_t)strtoul(digits, NULL, 16);
    }
    const dither_cipher cipher = dither_preferred_cipher(dm.kernels);
    if (dither_key_agreed(token, cipher, &master) == DITHER_OK &&
        dither_stream_at(dm.kernels, master, rank, group->nonce, words, DITHER_KEY_BYTES / 4) ==
            DITHER_OK) {
        memcpy(bytes, words, sizeof bytes);
        (void)dither_key_agreed(bytes, cipher, &key);
    }
    dither_key_free(master);
    return key;
}

/* All ranks make the same pieces in the same order, so streams stay together. */
static dither_status make(dm_pads *pads, char *pad, char *total, size_t count) {
    const unsigned width = (unsigned)pads->width;
    memset(pad, 0, count * width);
    memset(total, 0, count * width);
    dither_status status = dither_mask(dm.kernels, pads->own, pad, count, width, 0);
    if (status == DITHER_OK && pads->next)
        status = dither_mask(dm.kernels, pads->next, pad, count, width, 1);
    if (status == DITHER_OK) status = dither_mask(dm.kernels, pads->all, total, count, width, 0);
    return status;
}

static void make_ahead(dm_pads *pads) {
    const size_t most = dm.plan.pool;
    if (!pads->pad) pads->pad = malloc(most * sizeof(int32_t) + 1);
    if (!pads->total) pads->total = malloc(most * sizeof(int32_t) + 1);
    if (!pads->pad || !pads->total) dm_die("no memory for %zu pads", most);
    pads->ready = pads->used = 0;
    for (; pads->ready < most; pads->ready += DM_BLOCK) {
        const size_t at = pads->ready * pads->width, left = most - pads->ready;
        if (make(pads, pads->pad + at, pads->total + at, left < DM_BLOCK ? left : DM_BLOCK) !=
            DITHER_OK)
            dm_die("pads cannot be made");
    }
    pads->ready = most;
}

void dm_pads_open(dm_group *group) {
    dm_pads *pads = calloc(1, sizeof *pads);
    if (!pads || !group->source_count) dm_die("no encryption for %d ranks", group->ranks);
    group->pads = pads;
    pads->width = (size_t)group->sources[0].how.grid.wire_bits / 8;
    pads->own = derive(group, (unsigned)group->rank);
    pads->all = derive(group, 0);
    if (group->rank + 1 < group->ranks) pads->next = derive(group, (unsigned)group->rank + 1);
    pads->pad_now = malloc(DM_BLOCK * sizeof(int32_t));
    pads->total_now = malloc(DM_BLOCK * sizeof(int32_t));
    pads->no_noise = calloc(DM_BLOCK, sizeof(int32_t));
    if (!pads->own || !pads->all || !pads->pad_now || !pads->total_now || !pads->no_noise ||
        (!pads->next && group->rank + 1 < group->ranks))
        dm_die("no keys or memory for encryption");
    if (dm.plan.warm && group->comm == MPI_COMM_WORLD) make_ahead(pads);
}

void dm_pads_warm(dm_group *group) {
    if (group->pads) make_ahead(group->pads);
}

void dm_pads_close(dm_group *group) {
    dm_pads *pads = group->pads;
    if (!pads) return;
    dither_key_free(pads->own);
    dither_key_free(pads->next);
    dither_key_free(pads->all);
    free(pads->pad);
    free(pads->total);
    free(pads->pad_now);
    free(pads->total_now);
    free(pads->no_noise);
    free(pads);
    group->pads = NULL;
}

static void add(void *to, const void *pad, size_t count, size_t width, int subtract) {
    uint16_t *to16 = to;
    uint32_t *to32 = to;
    const uint16_t *pad16 = pad;
    const uint32_t *pad32 = pad;
    if (width == 2)
        for (size_t i = 0; i < count; i++)
            to16[i] = (uint16_t)(subtract ? to16[i] - pad16[i] : to16[i] + pad16[i]);
    else
        for (size_t i = 0; i < count; i++)
            to32[i] = subtract ? to32[i] - pad32[i] : to32[i] + pad32[i];
}

static dither_status by_mpi(dm_group *group, const dm_sum *sum, const dither_release *how,
                            const char *pad, const char *total, const void *from, void *out,
                            size_t count) {
    const dither_float type = dm_kind_float(sum->kind);
    const size_t width = group->pads->width;
    const MPI_Datatype integer = width == 2 ? MPI_UINT16_T : MPI_UINT32_T;
    void *message = group->message;
    int code = MPI_SUCCESS;
    /* What is not finite leaves zeros. */
    (void)dither_encode_ready(dm.kernels, group->pads->no_noise, &how->grid, type, from, message,
                              count, NULL);
    add(message, pad, count, width, 0);
    if (group->ranks > 1 && sum->root < 0)
        code = PMPI_Allreduce(MPI_IN_PLACE, message, (int)count, integer, MPI_SUM, group->own);
    else if (group->ranks > 1 && sum->root == group->rank)
        code = PMPI_Reduce(MPI_IN_PLACE, message, (int)count, integer, MPI_SUM, sum->root, group->own);
    else if (group->ranks > 1)
        code = PMPI_Reduce(message, NULL, (int)count, integer, MPI_SUM, sum->root, group->own);
    if (code != MPI_SUCCESS) return DITHER_PEER_FAILED;
    if (!sum->result) return DITHER_OK;
    add(message, total, count, width, 1);
    return dither_decode(dm.kernels, &how->grid, message, type, out, count);
}

/* The next pads: made ahead, or now. Returns how many. */
static size_t pads_for(dm_pads *pads, size_t count, const char **pad, const char **total) {
    const size_t ahead = pads->ready - pads->used;
    if (ahead > 0) {
        *pad = pads->pad + pads->used * pads->width;
        *total = pads->total + pads->used * pads->width;
        count = count < ahead ? count : ahead;
        pads->used += count;
        return count;
    }
    if (make(pads, pads->pad_now, pads->total_now, count) != DITHER_OK) return 0;
    *pad = pads->pad_now;
    *total = pads->total_now;
    return count;
}

static dither_status piece(dm_group *group, const dm_sum *sum, const dither_release *how, size_t at,
                           size_t *count) {
    const size_t size = dm_kind_size(sum->kind);
    const dither_float type = dm_kind_float(sum->kind);
    const int converts = sum->kind != DM_F32 && sum->kind != DM_F64;
    const char *pad, *total;
    const void *from = sum->values ? (const char *)sum->values + at * size : NULL;
    void *to = sum->result ? (char *)sum->result + at * size : NULL;
    void *out = converts || !to ? group->sums : to;
    dither_status status;
    if (*count > 0 && !(*count = pads_for(group->pads, *count, &pad, &total))) return DITHER_NO_MEMORY;
    if (*count == 0) pad = total = group->pads->pad_now;
    if (converts) dm_to_floats(sum->kind, from, group->floats, *count), from = group->floats;
    if (group->shm)
        status = dither_shm_encrypted(group->shm, dm.kernels, how, pad, total, type, from, type, out,
                                      *count, NULL);
    else
        status = by_mpi(group, sum, how, pad, total, from, out, *count);
    if (status == DITHER_OK && converts && to) dm_from_floats(sum->kind, out, to, *count);
    return status;
}

dm_outcome dm_run_encrypted(dm_group *group, const dm_sum *sum, int worker) {
    const dm_source *source = dm_source_for(group, sum->count);
    dm_pads *pads = group->pads;
    dither_status status = group->shm && !worker ? dm_meet(group) : DITHER_OK;
    const uint64_t began = dm_ticks();
    const size_t width = (size_t)source->how.grid.wire_bits / 8;
    if (width != pads->width) pads->width = width, pads->ready = pads->used = 0;
    size_t at = 0, now;
    do {
        now = sum->count - at < DM_BLOCK ? sum->count - at : DM_BLOCK;
        if (status == DITHER_OK) status = piece(group, sum, &source->how, at, &now);
        at += now;
    } while (at < sum->count && status == DITHER_OK);
    dm_add(&dm_stats.sum, dm_ticks() - began);
    if (status == DITHER_OK) return DM_DONE;
    dm_break(group, status);
    return DM_FAILED;
}
