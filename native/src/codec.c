/* The fused pass from values to a noisy message, and back. */
#include <math.h>

#include "codec.h"
#include "lattice.h"
#include "wipe.h"

dither_status codec_open(const dither_grid *grid, double factor, dither_float type,
                         codec_numbers *numbers) {
    if (type != DITHER_F32 && type != DITHER_F64) return DITHER_BAD_ARGUMENT;
    if (!(factor >= 0 && factor <= 1)) return DITHER_BAD_ARGUMENT;
    int64_t widest = grid->wire_bits == 16 ? INT16_MAX : INT32_MAX;
    if ((grid->wire_bits != 16 && grid->wire_bits != 32) || grid->wire_limit < 0 ||
        grid->wire_limit > widest || grid->clamp < 0 || grid->clamp > (int64_t)1 << 50 ||
        grid->wire_shift < 0 || grid->wire_shift > 48 || grid->scale_exponent > 500 ||
        grid->scale_exponent < -500)
        return DITHER_BAD_GRID;
    /* Taking the power of two into the factor rounds nothing while the product is normal, and then
     * value · scale is the rounded value · factor, scaled. Else 0: smaller, so still clipped. */
    numbers->scale = ldexp(factor, grid->scale_exponent);
    if (!isnormal(numbers->scale)) numbers->scale = 0;
    numbers->clamp = (double)grid->clamp;
    numbers->wire_scale = ldexp(1.0, -grid->wire_shift);
    numbers->wire_limit = (double)grid->wire_limit;
    return DITHER_OK;
}

dither_status codec_close(const dither_grid *grid, const codec_counts *counts, void *message,
                          size_t count, uint64_t *saturated) {
    if (counts->broken) {
        /* A message with a hole in it must not leave. */
        dither_wipe(message, count * (size_t)grid->wire_bits / 8);
        return DITHER_NOT_FINITE;
    }
    if (saturated) *saturated += counts->saturated;
    return DITHER_OK;
}

/* Bring memory near while the draws are made: a batch is about a page, where the processor's own
 * prefetching starts anew. */
static void fetch(const char *from, const char *to, size_t from_size, size_t to_size) {
    for (size_t i = 0; i < from_size; i += 64) __builtin_prefetch(from + i, 0);
    for (size_t i = 0; i < to_size; i += 64) __builtin_prefetch(to + i, 1);
}

dither_status dither_encode_factor(const dither_kernels *kernels, dither_key *key, double sigma,
                                   const dither_grid *grid, double factor, dither_float type,
                                   const void *values, void *message, size_t count,
                                   uint64_t *saturated) {
    codec_numbers numbers;
    codec_counts counts = {0, 0};
    lattice_source source;
    double noise[LATTICE_BATCH * DRAWS];
    dither_status status = codec_open(grid, factor, type, &numbers);
    if (status == DITHER_OK) status = lattice_open(&source, kernels, key, sigma, count);
    if (status != DITHER_OK) return status;
    codec_kernel *encode = kernels->simd->encode[type == DITHER_F64][grid->wire_bits == 32];
    const size_t width = (size_t)grid->wire_bits / 8;
    for (size_t done = 0, now; done < count; done += now) {
        const char *from = (const char *)values + done * type;
        char *to = (char *)message + done * width;
        size_t next = count - done < LATTICE_BATCH * DRAWS ? count - done : LATTICE_BATCH * DRAWS;
        fetch(from, to, next * type, next * width);
        now = lattice_some(&source, noise, count - done);
        encode(&numbers, from, noise, to, now, &counts);
    }
    dither_wipe(noise, sizeof noise);
    lattice_close(&source);
    return codec_close(grid, &counts, message, count, saturated);
}

dither_status dither_encode(const dither_kernels *kernels, dither_key *key, double sigma,
                            const dither_grid *grid, dither_float type, const void *values,
                            void *message, size_t count, uint64_t *saturated) {
    return dither_encode_factor(kernels, key, sigma, grid, 1.0, type, values, message, count,
                                saturated);
}

dither_status codec_encode_ready(const dither_kernels *kernels, int32_t *noise, int wipe,
                                 const dither_grid *grid, double factor, dither_float type,
                                 const void *values, void *message, size_t count,
                                 uint64_t *saturated) {
    codec_numbers numbers;
    codec_counts counts = {0, 0};
    dither_status status = codec_open(grid, factor, type, &numbers);
    if (status != DITHER_OK) return status;
    codec_ready_kernel *encode = kernels->simd->encode_ready[type == DITHER_F64][grid->wire_bits == 32];
    encode(&numbers, values, noise, wipe, message, count, &counts);
    return codec_close(grid, &counts, message, count, saturated);
}

dither_status dither_encode_ready(const dither_kernels *kernels, int32_t *noise,
                                  const dither_grid *grid, dither_float type, const void *values,
                                  void *message, size_t count, uint64_t *saturated) {
    return codec_encode_ready(kernels, noise, 1, grid, 1.0, type, values, message, count, saturated);
}

dither_status codec_step(const dither_grid *grid, double factor, dither_float type, double *step) {
    codec_numbers numbers;
    dither_status status = codec_open(grid, 1.0, type, &numbers);
    if (status != DITHER_OK) return status;
    /* The wire step is a power of two: taking it into the factor rounds nothing while both are normal. */
    *step = ldexp(factor, grid->wire_shift - grid->scale_exponent);
    return isnormal(factor) && isnormal(*step) ? DITHER_OK : DITHER_BAD_ARGUMENT;
}

dither_status dither_decode_scaled(const dither_kernels *kernels, const dither_grid *grid,
                                   double factor, const void *message, dither_float type,
                                   void *values, size_t count) {
    double step;
    dither_status status = codec_step(grid, factor, type, &step);
    if (status != DITHER_OK) return status;
    kernels->simd->decode(message, grid->wire_bits == 32, step, type == DITHER_F64, values, count);
    return DITHER_OK;
}

dither_status dither_decode(const dither_kernels *kernels, const dither_grid *grid,
                            const void *message, dither_float type, void *values, size_t count) {
    return dither_decode_scaled(kernels, grid, 1.0, message, type, values, count);
}
