/* Pads applied piece by piece. */
#ifndef DITHER_MASK_H
#define DITHER_MASK_H

#include "key.h"

typedef struct {
    dither_span span;
    unsigned width;
    int subtract;
} mask_pad;

/* Take the pad of `count` integers of `width` bytes from the key: that of one `dither_mask`. */
dither_status mask_open(mask_pad *pad, dither_key *key, size_t count, unsigned width, int subtract);

/* to[i] = from[i] ± the pad's next integers; `to` may be `from`. All calls but the last take a
 * multiple of 1024 bytes, or the pad is another. Wipe the pad after the last. */
void mask_some(const dither_kernels *kernels, mask_pad *pad, void *to, const void *from,
               size_t count);

#endif
