/* AES-256 in counter mode: the stream for processors with AES instructions. */
#ifndef DITHER_AES_H
#define DITHER_AES_H

#include "dither.h"

enum { AES_ROUND_KEYS = 15, AES_BLOCKS = 64 }; /* blocks in a superblock */

typedef struct { uint8_t bytes[AES_ROUND_KEYS][16]; } aes_keys;

/* The key schedule, in constant time. */
void aes_expand(const uint8_t key[32], aes_keys *keys);

/* Writes `superblocks` of 64 blocks in order: block i is the encryption of the counter block whose
 * first 64 bits, little-endian, are those of `counter` plus i. */
typedef void aes_stream(const aes_keys *keys, const uint8_t counter[16], uint8_t *out,
                        size_t superblocks);

aes_stream aes_stream_portable;
#ifdef DITHER_HAVE_AESNI
aes_stream aes_stream_aesni;
#endif
#ifdef DITHER_HAVE_VAES
aes_stream aes_stream_vaes;
#endif
#ifdef DITHER_HAVE_ARMV8AES
aes_stream aes_stream_armv8aes;
#endif

#endif
