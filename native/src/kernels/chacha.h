/* ChaCha (RFC 8439 §2.1-2.3), one block a lane. */

#define QUARTER(a, b, c, d)                                                                        \
    a += b; d ^= a; d = V_ROTL(d, 16);                                                             \
    c += d; b ^= c; b = V_ROTL(b, 12);                                                             \
    a += b; d ^= a; d = V_ROTL(d, 8);                                                              \
    c += d; b ^= c; b = V_ROTL(b, 7);

INLINE void chacha_rounds(u32v x[16], unsigned rounds) {
    for (unsigned i = 0; i < rounds; i += 2) {
        QUARTER(x[0], x[4], x[8], x[12])
        QUARTER(x[1], x[5], x[9], x[13])
        QUARTER(x[2], x[6], x[10], x[14])
        QUARTER(x[3], x[7], x[11], x[15])
        QUARTER(x[0], x[5], x[10], x[15])
        QUARTER(x[1], x[6], x[11], x[12])
        QUARTER(x[2], x[7], x[8], x[13])
        QUARTER(x[3], x[4], x[9], x[14])
    }
}

INLINE u32v lane_numbers(void) {
    u32v v;
    for (unsigned i = 0; i < LANES32; i++) v[i] = i;
    return v;
}

static void chacha(const uint32_t state[16], unsigned rounds, uint32_t *out, size_t superblocks) {
    uint64_t counter = (uint64_t)state[13] << 32 | state[12];
    u32v lanes = lane_numbers();
    for (size_t s = 0; s < superblocks; s++, out += SUPERBLOCK) {
        for (unsigned first = 0; first < 16; first += LANES32, counter += LANES32) {
            u32v x[16], low, high;
            for (int i = 0; i < 16; i++) x[i] = state[i] - (u32v){0};
            low = (uint32_t)counter + lanes;
            /* A comparison is -1 where true: the carry into the upper word. */
            high = (uint32_t)(counter >> 32) - (u32v)(low < (uint32_t)counter - (u32v){0});
            x[12] = low;
            x[13] = high;
            chacha_rounds(x, rounds);
            for (int i = 0; i < 16; i++) {
                u32v start = i == 12 ? low : i == 13 ? high : state[i] - (u32v){0};
                STORE(out + 16 * i + first, x[i] + start);
            }
        }
    }
}
