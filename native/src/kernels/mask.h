/* Keystream added or subtracted mod 2^16, 2^32 or 2^64. Plain loops: the compiler vectorises them.
 * memcpy because values may stand at any address. */

#define MASK(type)                                                                                 \
    static void mask_##type(unsigned char *to, const unsigned char *from,                          \
                            const unsigned char *stream, size_t count, int subtract) {             \
        const type sign = subtract ? (type)-1 : 1;                                                 \
        for (size_t i = 0; i < count; i++) {                                                       \
            type value, pad;                                                                       \
            memcpy(&value, from + i * sizeof value, sizeof value);                                 \
            memcpy(&pad, stream + i * sizeof pad, sizeof pad);                                     \
            value = (type)(value + (type)(sign * pad));                                            \
            memcpy(to + i * sizeof value, &value, sizeof value);                                   \
        }                                                                                          \
    }

MASK(uint16_t)
MASK(uint32_t)
MASK(uint64_t)

static void mask(void *to, const void *from, const void *stream, size_t count, unsigned width,
                 int subtract) {
    if (width == 2)
        mask_uint16_t(to, from, stream, count, subtract);
    else if (width == 4)
        mask_uint32_t(to, from, stream, count, subtract);
    else
        mask_uint64_t(to, from, stream, count, subtract);
}
