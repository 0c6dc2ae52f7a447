/* Floating-point normals, for benchmarks and uses that release nothing. */
#include "kernels/kernels.h"
#include "key.h"
#include "wipe.h"

#define GAUSSIAN(name, type, word_type, each)                                                      \
    dither_status dither_##name(const dither_kernels *kernels, dither_key *key, type *out,         \
                                size_t count) {                                                    \
        word_type words[each];                                                                     \
        type last[each];                                                                           \
        dither_span span;                                                                          \
        dither_status status = dither_key_take(key, (count + (each) - 1) / (each), &span);         \
        if (status != DITHER_OK) return status;                                                    \
        for (size_t done = 0; done < count; done += (each)) {                                      \
            size_t now = count - done < (each) ? count - done : (each);                            \
            dither_span_next(kernels, &span, (uint32_t *)words, 1);                                \
            kernels->simd->name(words, now < (each) ? last : out + done);                          \
            if (now < (each)) memcpy(out + done, last, now * sizeof *out);                         \
        }                                                                                          \
        dither_wipe(words, sizeof words);                                                          \
        dither_wipe(&span, sizeof span);                                                           \
        return DITHER_OK;                                                                          \
    }

GAUSSIAN(gaussian_f32, float, uint32_t, SUPERBLOCK)
GAUSSIAN(gaussian_f64, double, uint64_t, DRAWS)
