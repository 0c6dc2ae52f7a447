/* AES-256 with VAES on 512-bit vectors: four blocks a vector, eight vectors in flight. */
#include <immintrin.h>

#include "aes.h"

void aes_stream_vaes(const aes_keys *keys, const uint8_t counter[16], uint8_t *out,
                     size_t superblocks) {
    __m512i key[AES_ROUND_KEYS];
    __m512i next = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)counter));
    const __m512i four = _mm512_set_epi64(0, 4, 0, 4, 0, 4, 0, 4);
    next = _mm512_add_epi64(next, _mm512_set_epi64(0, 3, 0, 2, 0, 1, 0, 0));
    for (int i = 0; i < AES_ROUND_KEYS; i++)
        key[i] = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)keys->bytes[i]));
    for (size_t done = 0; done < superblocks * AES_BLOCKS / 4; done += 8) {
        __m512i x[8];
        for (int i = 0; i < 8; i++) {
            x[i] = _mm512_xor_si512(next, key[0]);
            next = _mm512_add_epi64(next, four);
        }
        for (int round = 1; round < AES_ROUND_KEYS - 1; round++)
            for (int i = 0; i < 8; i++) x[i] = _mm512_aesenc_epi128(x[i], key[round]);
        for (int i = 0; i < 8; i++)
            _mm512_storeu_si512(out + 64 * (done + (size_t)i),
                                _mm512_aesenclast_epi128(x[i], key[AES_ROUND_KEYS - 1]));
    }
}
