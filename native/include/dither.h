/* dither.h: the C core's whole public surface. Plain C11, no Python, no global state.
 *
 * Every function that computes takes a `dither_kernels`, the code for one instruction set, chosen
 * once by `dither_select`. Lattice draws are the same integers for every choice. */
#ifndef DITHER_H
#define DITHER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* CPU features that the dispatch chooses by; one bit each. */
enum dither_feature {
    DITHER_FEATURE_AVX2 = 1u << 0,   /* and FMA */
    DITHER_FEATURE_AVX512 = 1u << 1, /* F, BW, DQ and VL together: never used apart here */
    DITHER_FEATURE_AES = 1u << 2,    /* AES-NI, or the Armv8 AES extension */
    DITHER_FEATURE_VAES = 1u << 3,
    DITHER_FEATURE_NEON = 1u << 4
};

/* Whatever is not DITHER_OK leaves no output behind: what was written is overwritten with zeros, and
 * a key or pool asked for is NULL. */
typedef enum {
    DITHER_OK = 0,
    DITHER_NO_ENTROPY, /* the operating system gave no random bytes */
    DITHER_NO_MEMORY,
    DITHER_FORKED,     /* an agreed key crossed `fork`: parent and child would use the same numbers */
    DITHER_BAD_SIGMA,  /* not in (0, DITHER_MAX_SIGMA], or too wide for the integers asked for */
    DITHER_BAD_GRID,   /* a lattice beyond the limits of `dither_grid` */
    DITHER_NOT_FINITE, /* a value to encode is NaN or infinite */
    DITHER_NO_THREAD,
    DITHER_BAD_ARGUMENT, /* a cipher, width, type or factor that is none of those named here */
    /* Of groups of processes; `dither_shm_culprit` names the rank. */
    DITHER_PEER_DEAD,   /* a process of the group ended without leaving */
    DITHER_PEER_LEFT,   /* a rank left while it was needed */
    DITHER_PEER_LATE,   /* a rank did not answer in time */
    DITHER_PEER_FAILED, /* a rank met an error of its own */
    DITHER_MISMATCH,    /* ranks made different calls */
    DITHER_BROKEN,      /* an earlier call failed, or the segment's content is not to be trusted */
    DITHER_BUSY,        /* another thread is in a call */
    DITHER_INTERRUPTED, /* the caller's `interrupted` said so */
    DITHER_UNSUPPORTED  /* this system has no such thing */
} dither_status;

/* The version of this build, "MAJOR.MINOR.PATCH". */
const char *dither_version(void);

/* One line for people. */
const char *dither_status_text(dither_status status);

/* Features of the processor we run on, as the operating system lets us use them. */
uint32_t dither_cpu_features(void);

/* ---- dispatch ------------------------------------------------------------------------------ */

typedef struct dither_kernels dither_kernels;

/* The widest built path whose features are all in `features`; "portable" needs none. */
const dither_kernels *dither_select(uint32_t features);

/* "avx512", "avx2", "neon" or "portable". */
const char *dither_kernels_name(const dither_kernels *kernels);

/* ---- keys and the stream ------------------------------------------------------------------- */

/* What makes the stream. ChaCha is fast in plain vector arithmetic; AES-256 in counter mode is faster
 * still where the processor has instructions for it. */
typedef enum {
    DITHER_CHACHA12 = 12, /* fewer rounds: faster, unbroken, with less margin */
    DITHER_CHACHA20 = 20, /* RFC 8439 */
    DITHER_AES256 = 256   /* FIPS 197, SP 800-38A */
} dither_cipher;

/* The fastest full-strength cipher for these kernels, by measurement (docs/decisions). */
dither_cipher dither_preferred_cipher(const dither_kernels *kernels);

/* Name of the AES code: "vaes", "aesni", "armv8aes" or "portable". */
const char *dither_aes_name(const dither_kernels *kernels);

/* A key with the position of the first number not yet used. One may serve many threads:
 * positions are handed out atomically, so no number is used twice. Key bytes live on a page that
 * is kept out of core dumps, is zeroed in a forked child where the system can (Linux), and is
 * wiped by `dither_key_free`. A child of `fork` gets fresh key bytes on first use; an agreed key is
 * refused there with DITHER_FORKED. */
typedef struct dither_key dither_key;

enum { DITHER_KEY_BYTES = 32, DITHER_SUPERBLOCK_WORDS = 256 };

/* A key from the operating system's entropy. */
dither_status dither_key_new(dither_cipher cipher, dither_key **key);

/* A key that two parties agreed on, or that a test fixes. Its stream always starts at position 0, so
 * the bytes must serve one key, one direction and one run: derive new ones (HKDF over peers, direction
 * and run) for each, or pads repeat and their difference tells the messages. */
dither_status dither_key_agreed(const uint8_t bytes[DITHER_KEY_BYTES], dither_cipher cipher,
                                dither_key **key);

/* NULL is fine. */
void dither_key_free(dither_key *key);

/* Superblocks handed out so far in this process. */
uint64_t dither_key_position(const dither_key *key);

/* For tests: the bare ciphers. ChaCha, `state`: the 16 words of RFC 8439 §2.3, words 12 and 13 a 64-bit block counter.
 * Writes `superblocks` times 256 words. In a superblock, word w of block b stands at [16 w + b]:
 * 16 consecutive blocks, word by word, which no instruction set needs to transpose. */
void dither_chacha(const dither_kernels *kernels, const uint32_t state[16], unsigned rounds,
                   uint32_t *out, size_t superblocks);

/* AES-256 of counter blocks, `superblocks` times 64 of them, in order: the first 64 bits of
 * `counter`, little-endian, go up by one a block. */
void dither_aes256(const dither_kernels *kernels, const uint8_t key[DITHER_KEY_BYTES],
                   const uint8_t counter[16], uint8_t *out, size_t superblocks);

/* Fresh keystream: the next unused words of the key. */
dither_status dither_stream(const dither_kernels *kernels, dither_key *key, uint32_t *out,
                            size_t words);

/* The words from superblock `position` on, of stream number `stream`. Nothing keeps a caller from
 * reading them twice: for pads and noise use the functions below. */
dither_status dither_stream_at(const dither_kernels *kernels, dither_key *key, uint32_t stream,
                               uint64_t position, uint32_t *out, size_t words);

/* values[i] ± keystream mod 2^(8 width), in place; width 2, 4 or 8 bytes; nonzero subtracts. Both
 * ends of an agreed key must make the same calls: same order, sizes and widths. Each call starts a new
 * superblock, so one call of 16 values is not two of 8. Nothing detects a mismatch. Sums of masked
 * messages must be taken mod 2^(8 width) too. */
dither_status dither_mask(const dither_kernels *kernels, dither_key *key, void *values,
                          size_t count, unsigned width, int subtract);

/* ---- Gaussians ----------------------------------------------------------------------------- */

/* Plain floating-point normals. Not for releases: their low bits tell what they were added to, and
 * the float ones end at 6.7 σ. */
dither_status dither_gaussian_f32(const dither_kernels *kernels, dither_key *key, float *out,
                                  size_t count);
dither_status dither_gaussian_f64(const dither_kernels *kernels, dither_key *key, double *out,
                                  size_t count);

#define DITHER_MAX_SIGMA 1099511627776.0 /* 2^40 */
#define DITHER_MAX_SIGMA_I32 67108864.0  /* 2^26: int32 then ends at 32 σ, beyond 2^-739 */

/* round(σ Z), Z standard normal, halves never occurring: the integers are distributed exactly so,
 * given ideal bits. `redone`, if not NULL, is raised by the number of draws that needed arbitrary
 * precision. */
dither_status dither_lattice_i32(const dither_kernels *kernels, dither_key *key, double sigma,
                                 int32_t *out, size_t count, uint64_t *redone);
dither_status dither_lattice_i64(const dither_kernels *kernels, dither_key *key, double sigma,
                                 int64_t *out, size_t count, uint64_t *redone);

/* For tests: decides one draw in arbitrary precision from its first 64 + 64 bits and `levels` times two more
 * words (radius, angle). Returns 1 and the integer, or 0 if these bits leave it open. */
int dither_exact_draw(uint64_t radius, uint64_t angle, const uint64_t *more, unsigned levels,
                      double sigma, int second, int64_t *out);

/* ---- clipping ------------------------------------------------------------------------------ */

typedef enum { DITHER_F32 = 4, DITHER_F64 = 8 } dither_float;

/* L2 norm, the same bits by every instruction set. DITHER_NOT_FINITE, and 0, if a value is NaN or
 * infinite, or the norm is beyond float64's range.
 *
 * Error: a square passes through at most k = count / 4096 + 140 roundings on its way into the sum,
 * all terms are positive, and the root halves relative errors and rounds once more: the true norm is
 * within (1 ± dither_norm_error(count)) times this one, as long as count < 2^50. Squares of float32
 * values never underflow; those of float64 values below 2^-511 may, which adds at most
 * sqrt(count) · 2^-537 to the true norm: nothing beside a bound C ≥ 2^-400. */
dither_status dither_norm(const dither_kernels *kernels, dither_float type, const void *values,
                          size_t count, double *norm);

/* (count / 4096 + 140) · 2^-53: twice what the argument above needs, which covers second-order terms. */
double dither_norm_error(size_t count);

/* min(1, bound / norm) for the norm that `dither_norm` gave, rounded down by its error and by
 * 2^-50, so that the norm of the rounded products values[i] · factor, computed without error, is
 * at most `bound`. 1 where norm is below bound by more than that. 0 unless bound is in [2^-400, 2^400]. */
double dither_clip_factor(double norm, size_t count, double bound);

/* ---- the codec ----------------------------------------------------------------------------- */

/* Limits: |scale_exponent| ≤ 500, 0 ≤ clamp ≤ 2^50, 0 ≤ wire_shift ≤ 48, and wire_limit below
 * 2^15 or 2^31. For a sum over R ranks that must not wrap choose R · wire_limit < 2^(wire_bits - 1),
 * and clamp and σ so that (clamp + 9 σ) / 2^wire_shift ≤ wire_limit: what is cut at wire_limit is not
 * counted, and the sum is then no function of the sum of values and noise. */
typedef struct {
    int scale_exponent; /* the fine step is 2^-scale_exponent */
    int64_t clamp;      /* largest magnitude before noise, in fine steps */
    int wire_shift;     /* the wire step is 2^wire_shift fine steps */
    int64_t wire_limit; /* largest magnitude on the wire, in wire steps */
    int wire_bits;      /* 16 or 32 */
} dither_grid;

/* Round to the fine lattice, clamp, add fresh noise of `sigma` fine steps, shift to the wire
 * lattice, clamp, write int16 or int32. `saturated`, if not NULL, is raised by the number of
 * coordinates clamped before noise. Values and message must not overlap. */
dither_status dither_encode(const dither_kernels *kernels, dither_key *key, double sigma,
                            const dither_grid *grid, dither_float type, const void *values,
                            void *message, size_t count, uint64_t *saturated);

/* The same of values · factor, 0 ≤ factor ≤ 1, rounded to float64 on the way: an L2 clipping's factor,
 * in the same pass. Its product has a norm of at most (1 + 2^-53) · factor · norm of the values, so
 * with the factor of `dither_clip_factor` at most the bound. */
dither_status dither_encode_factor(const dither_kernels *kernels, dither_key *key, double sigma,
                                   const dither_grid *grid, double factor, dither_float type,
                                   const void *values, void *message, size_t count,
                                   uint64_t *saturated);

/* The same with ready integer noise in fine steps, which is overwritten with zeros. None of the three
 * arrays may overlap another. */
dither_status dither_encode_ready(const dither_kernels *kernels, int32_t *noise,
                                  const dither_grid *grid, dither_float type, const void *values,
                                  void *message, size_t count, uint64_t *saturated);

/* message (one, or a sum of several) · wire step, into float or double. */
dither_status dither_decode(const dither_kernels *kernels, const dither_grid *grid,
                            const void *message, dither_float type, void *values, size_t count);

/* message · wire step · factor (say 1 / batch size), still in one pass. The product is rounded to
 * float64, and then to float if asked, alike by every instruction set; beyond float's range it is
 * infinite. DITHER_BAD_ARGUMENT if factor, or factor · wire step, is not a normal float64. */
dither_status dither_decode_scaled(const dither_kernels *kernels, const dither_grid *grid,
                                   double factor, const void *message, dither_float type,
                                   void *values, size_t count);

/* ---- the pool ------------------------------------------------------------------------------ */

/* Lattice noise made ahead by a thread of its own. */
typedef struct dither_pool dither_pool;

typedef struct {
    uint64_t capacity; /* draws that fit */
    uint64_t ready;    /* draws waiting now */
    uint64_t filled;   /* draws the thread has made */
    uint64_t used;     /* draws taken from the pool */
    uint64_t dry;      /* draws made in place because nothing was ready */
    uint64_t discarded; /* ready draws dropped: at close, or in a forked child */
    uint64_t wait_ns;  /* time consumers spent making draws in place */
    int running;       /* whether the thread runs */
} dither_pool_stats;

/* `capacity` draws of int32, rounded up to blocks of 65,536, at least two. The key stays the
 * caller's and must outlive the pool. A used draw is overwritten at once, or, if its block
 * is used up, by the thread right after. All functions but new and free may be called from several threads. */
dither_status dither_pool_new(const dither_kernels *kernels, dither_key *key, double sigma,
                              size_t capacity, dither_pool **pool);

/* Stops the thread, wipes what is left. NULL is fine. */
void dither_pool_free(dither_pool *pool);

void dither_pool_stats_get(dither_pool *pool, dither_pool_stats *stats);

/* `dither_encode` with noise from the pool; what is not ready is made in place, at once. */
dither_status dither_pool_encode(dither_pool *pool, const dither_grid *grid, dither_float type,
                                 const void *values, void *message, size_t count,
                                 uint64_t *saturated);

/* `dither_encode_factor` likewise. */
dither_status dither_pool_encode_factor(dither_pool *pool, const dither_grid *grid, double factor,
                                        dither_float type, const void *values, void *message,
                                        size_t count, uint64_t *saturated);

/* While held, nothing is made ahead: for the length of one release, whose ranks need the cores that
 * the thread would take. Holds add up, and each ends with a call with `on` zero. */
void dither_pool_hold(dither_pool *pool, int on);

/* After the last hold the thread stays idle this long, at most a second, and as long again after each hold that comes
 * meanwhile; 0 at first. For releases in a dense loop on cores that none is idle of: noise made between two
 * of them would be in the way of the second. */
void dither_pool_linger(dither_pool *pool, double seconds);

/* Noise alone, in fine steps. */
dither_status dither_pool_take(dither_pool *pool, int32_t *out, size_t count);

/* ---- processes of one host ------------------------------------------------------------------ */

/* Memory shared by R processes of one host (Linux), with one rank's place in it.
 *
 * The memory is an unnamed file: it is gone with the last process that maps it, however that ends.
 * Whoever gets the file descriptor can read all messages and spoil results, so hand it to the group
 * alone; ranks are trusted to follow the protocol, not to be silent about what they see. What they
 * see: of `dither_shm_release` noisy, and if asked masked, integers; of sums and messages all.
 * Nothing else of a caller's memory is ever written to a segment.
 *
 * A wait spins for some microseconds where every rank can have a core of its own, then sleeps. A rank
 * that died, left or is late ends all waits of all ranks with an error; so does an error of any rank
 * inside a call. Then the segment is broken: every later call is refused. Only one thread may be in a
 * call, and a child of `fork` is refused. */
typedef struct dither_shm dither_shm;

enum {
    DITHER_SHM_RANKS = 256,   /* most ranks of a segment */
    DITHER_SHM_BLOCK = 32768  /* elements that travel at once */
};

/* Memory for `ranks` processes, as a new descriptor, closed by `exec`, that cannot be resized. */
dither_status dither_shm_create(unsigned ranks, int *file);

/* Take a rank's place and wait for all others, at most `timeout` seconds; also the limit of every
 * later call's waiting. The descriptor may be closed afterwards. `interrupted` (or NULL) is asked now
 * and then during long waits: nonzero ends the call. */
dither_status dither_shm_attach(int file, unsigned rank, double timeout,
                                int (*interrupted)(void *context), void *context, dither_shm **shm);

/* Leave and unmap; what was sent stays readable to the others. NULL is fine. */
void dither_shm_free(dither_shm *shm);

unsigned dither_shm_ranks(const dither_shm *shm);

/* The rank that the last error is about, or -1. */
int dither_shm_culprit(const dither_shm *shm);

/* Messages between two ranks, in order and whole. DITHER_MISMATCH if the sizes differ. */
dither_status dither_shm_send(dither_shm *shm, unsigned to, const void *message, size_t size);
dither_status dither_shm_receive(dither_shm *shm, unsigned from, void *out, size_t size);

/* Both at once. The two arrays must not overlap. */
dither_status dither_shm_exchange(dither_shm *shm, unsigned to, const void *message, size_t size,
                                  unsigned from, void *out, size_t out_size);

typedef enum {
    DITHER_SUM_8,  /* integers, signed or not: they wrap */
    DITHER_SUM_16,
    DITHER_SUM_32,
    DITHER_SUM_64,
    DITHER_SUM_F32, /* floats: added in the order of ranks, so with the same bits on all */
    DITHER_SUM_F64
} dither_sum;

/* The sum over ranks, in place, on all of them. After an error the buffer is undefined. */
dither_status dither_shm_sum(dither_shm *shm, const dither_kernels *kernels, dither_sum type,
                             void *buffer, size_t count);

/* How `dither_shm_release` protects and scales. Noise: of the pool, or drawn from the key with sigma
 * if `pool` is NULL. */
typedef struct {
    dither_grid grid;
    dither_pool *pool;
    dither_key *key;
    double sigma;            /* fine steps; without a pool only */
    double factor;           /* values are multiplied by it, in [0, 1] */
    double scale;            /* and the sum's values by this */
    size_t masks;            /* pads on this rank's message: those of `dither_mask` over all of it */
    dither_key *const *mask_keys;
    const int *mask_signs;   /* nonzero subtracts */
} dither_release;

/* The sum over ranks of `dither_encode_factor` (and `dither_mask`) of their values, decoded by
 * `dither_decode_scaled`: the same bits, in one pass over blocks that caches hold. `out` may be
 * `values` if of the same type, and must not overlap it otherwise.
 *
 * A block leaves this process when it is encoded with noise, and masked in memory of this process
 * before that; clear values never. A value that is not finite ends the call on all ranks: blocks before it
 * have left, protected, and count as released. After an error `out` is zeros. */
dither_status dither_shm_release(dither_shm *shm, const dither_kernels *kernels,
                                 const dither_release *how, dither_float type, const void *values,
                                 dither_float out_type, void *out, size_t count,
                                 uint64_t *saturated);

/* `dither_shm_release` of a contribution, scaled down to an L2 norm of at most `clip`: with the factor of
 * `dither_clip_factor`, in the place of `how`'s. One that is not finite counts as zeros, as an error would tell
 * the other ranks; `*finite` says so to the caller alone. */
dither_status dither_shm_contribute(dither_shm *shm, const dither_kernels *kernels,
                                    const dither_release *how, double clip, dither_float type,
                                    const void *values, dither_float out_type, void *out,
                                    size_t count, int *finite, uint64_t *saturated);

/* `dither_shm_release` with encryption in the place of noise, the rival (HEAR): adds `pad` to this rank's message of
 * the grid's integers and takes `total`, the sum of all ranks' pads, from the sum. Both are made
 * beforehand, serve once, and are the caller's to wipe, off the critical path as a pool's thread does
 * it. Ranks that know `total` get the sum exactly: not a release. Grid, factor and scale are taken
 * from `how`. */
dither_status dither_shm_encrypted(dither_shm *shm, const dither_kernels *kernels,
                                   const dither_release *how, const void *pad, const void *total,
                                   dither_float type, const void *values, dither_float out_type,
                                   void *out, size_t count, uint64_t *saturated);

#ifdef __cplusplus
}
#endif
#endif
