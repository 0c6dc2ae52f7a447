/* Overwriting secrets in a way that the compiler may not remove. */
#ifndef DITHER_WIPE_H
#define DITHER_WIPE_H

#include <stddef.h>
#include <string.h>

static inline void dither_wipe(void *memory, size_t size) {
    memset(memory, 0, size);
    __asm__ __volatile__("" : : "r"(memory) : "memory");
}

#endif
