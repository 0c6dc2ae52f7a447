/* AES-256 with the Armv8 AES extension, eight blocks in flight. */
#include <arm_neon.h>

#include "aes.h"

void aes_stream_armv8aes(const aes_keys *keys, const uint8_t counter[16], uint8_t *out,
                         size_t superblocks) {
    uint8x16_t key[AES_ROUND_KEYS];
    uint64x2_t next = vreinterpretq_u64_u8(vld1q_u8(counter));
    const uint64x2_t one = vsetq_lane_u64(1, vdupq_n_u64(0), 0);
    for (int i = 0; i < AES_ROUND_KEYS; i++) key[i] = vld1q_u8(keys->bytes[i]);
    for (size_t done = 0; done < superblocks * AES_BLOCKS; done += 8) {
        uint8x16_t x[8];
        for (int i = 0; i < 8; i++) {
            x[i] = vreinterpretq_u8_u64(next);
            next = vaddq_u64(next, one);
        }
        for (int round = 0; round < AES_ROUND_KEYS - 2; round++)
            for (int i = 0; i < 8; i++) x[i] = vaesmcq_u8(vaeseq_u8(x[i], key[round]));
        for (int i = 0; i < 8; i++)
            vst1q_u8(out + 16 * (done + (size_t)i),
                     veorq_u8(vaeseq_u8(x[i], key[AES_ROUND_KEYS - 2]), key[AES_ROUND_KEYS - 1]));
    }
}
