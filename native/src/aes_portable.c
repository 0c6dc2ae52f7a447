/* AES-256 (FIPS 197) without instructions for it, and without tables: a table look-up would tell
 * the key through the cache. The S-box is computed, x^254 in GF(2^8), sixteen bytes at a time.
 * Slow (some 1000 cycles a byte): new keys never need it, but a key made for AES must give the same
 * numbers everywhere. */
#include <string.h>

#include "aes.h"
#include "wipe.h"

typedef uint8_t block __attribute__((vector_size(16)));

static block twice(block x) { return (x << 1) ^ (0x1b & (0 - (x >> 7))); }

static block product(block x, block y) {
    block sum = {0};
    for (int bit = 0; bit < 8; bit++) {
        sum ^= x & (0 - (y & 1));
        x = twice(x);
        y >>= 1;
    }
    return sum;
}

static block substitute(block x) {
    block x2 = product(x, x), x3 = product(x2, x), x6 = product(x3, x3), x12 = product(x6, x6);
    block power = product(x12, x3);                                  /* x^15 */
    for (int i = 0; i < 4; i++) power = product(power, power);       /* x^240 */
    block inverse = product(product(power, x12), x2);                /* x^254 */
    block sum = inverse;
    for (int i = 1; i < 5; i++) sum ^= (inverse << i) | (inverse >> (8 - i));
    return sum ^ 0x63;
}

static block shift_rows(block x) {
    block y;
    for (int i = 0; i < 16; i++) y[i] = x[(i + 4 * (i % 4)) % 16];
    return y;
}

/* Row r of each column becomes row r + by. */
static block rotate_columns(block x, int by) {
    block y;
    for (int i = 0; i < 16; i++) y[i] = x[i / 4 * 4 + (i + by) % 4];
    return y;
}

static block mix_columns(block x) {
    block next = rotate_columns(x, 1);
    return twice(x ^ next) ^ next ^ rotate_columns(x, 2) ^ rotate_columns(x, 3);
}

static block encrypt(const aes_keys *keys, block x) {
    block key;
    for (int round = 0; round < AES_ROUND_KEYS - 1; round++) {
        memcpy(&key, keys->bytes[round], sizeof key);
        x = shift_rows(substitute(x ^ key));
        if (round < AES_ROUND_KEYS - 2) x = mix_columns(x);
    }
    memcpy(&key, keys->bytes[AES_ROUND_KEYS - 1], sizeof key);
    return x ^ key;
}

void aes_expand(const uint8_t key[32], aes_keys *keys) {
    uint8_t *words = keys->bytes[0], constant = 1;
    memcpy(words, key, 32);
    for (int i = 8; i < 4 * AES_ROUND_KEYS; i++) {
        block last = {0};
        memcpy(&last, words + 4 * (i - 1), 4);
        if (i % 8 == 0) {
            last = substitute(rotate_columns(last, 1));
            last[0] ^= constant;
            constant = (uint8_t)(constant << 1);
        } else if (i % 8 == 4) {
            last = substitute(last);
        }
        for (int b = 0; b < 4; b++) words[4 * i + b] = words[4 * (i - 8) + b] ^ last[b];
        dither_wipe(&last, sizeof last);
    }
}

static __attribute__((noinline)) void stream(const aes_keys *keys, const uint8_t counter[16],
                                             uint8_t *out, size_t blocks) {
    uint64_t low;
    block x;
    memcpy(&low, counter, sizeof low);
    memcpy(&x, counter, sizeof x);
    for (size_t i = 0; i < blocks; i++, low++) {
        memcpy(&x, &low, sizeof low);
        block y = encrypt(keys, x);
        memcpy(out + 16 * i, &y, sizeof y);
    }
}

/* Round keys and states that the compiler left on the stack. */
static __attribute__((noinline)) void wipe_stack(void) {
    uint8_t below[4096];
    dither_wipe(below, sizeof below);
}

void aes_stream_portable(const aes_keys *keys, const uint8_t counter[16], uint8_t *out,
                         size_t superblocks) {
    stream(keys, counter, out, superblocks * AES_BLOCKS);
    wipe_stack();
}
