/* AES-256 with AES-NI, eight blocks in flight. The round keys are loaded where they are used: fifteen
 * in registers would be more than there are, and the compiler would leave some on the stack. */
#include <immintrin.h>

#include "aes.h"

static __m128i key(const aes_keys *keys, int round) {
    return _mm_loadu_si128((const __m128i *)keys->bytes[round]);
}

void aes_stream_aesni(const aes_keys *keys, const uint8_t counter[16], uint8_t *out,
                      size_t superblocks) {
    __m128i next = _mm_loadu_si128((const __m128i *)counter);
    const __m128i one = _mm_set_epi64x(0, 1);
    for (size_t done = 0; done < superblocks * AES_BLOCKS; done += 8) {
        __m128i x[8];
        for (int i = 0; i < 8; i++) {
            x[i] = _mm_xor_si128(next, key(keys, 0));
            next = _mm_add_epi64(next, one);
        }
        for (int round = 1; round < AES_ROUND_KEYS - 1; round++)
            for (int i = 0; i < 8; i++) x[i] = _mm_aesenc_si128(x[i], key(keys, round));
        for (int i = 0; i < 8; i++)
            _mm_storeu_si128((__m128i *)(out + 16 * (done + (size_t)i)),
                             _mm_aesenclast_si128(x[i], key(keys, AES_ROUND_KEYS - 1)));
    }
}
