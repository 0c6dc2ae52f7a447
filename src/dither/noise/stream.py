"""The bare keystream, and masks made of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt32

from dither import _native
from dither.errors import ConfigError
from dither.noise.arrays import core_array
from dither.noise.core import Buffer, core_errors
from dither.noise.key import Key, native_key
from dither.noise.simd import kernels

SUPERBLOCK_WORDS = 256
_BLOCKS = 16
_INTEGERS = ("int32", "int16", "int64", "uint16", "uint32", "uint64")
_POSITIONS = 1 << 58  # superblocks: AES counts 64 blocks in each, in 64 bits


def chacha_blocks(
    state: Sequence[int], count: int, *, rounds: int = 20
) -> UInt32[np.ndarray, "count 16"]:
    """Return consecutive ChaCha blocks (RFC 8439 §2.3), one a row, in the RFC's order.

    Args:
        state: The 16 words of the initial state; words 12 and 13 are a 64-bit block counter.
        count: How many blocks.
        rounds: 20 or 12.

    Raises:
        ConfigError: Another state, number of rounds or count.
    """
    if rounds not in {12, 20} or count < 0:
        raise ConfigError(
            expected="20 or 12 rounds and a count of 0 or more",
            got=f"{rounds} rounds, {count} blocks",
            fix="leave rounds out",
        )
    superblocks = -(-count // _BLOCKS)
    with core_errors("16 words of 32 bits"):
        words = np.empty(superblocks * SUPERBLOCK_WORDS, np.uint32)
        _native.chacha(kernels(), list(state), rounds, words)
    blocks = words.reshape(superblocks, 16, _BLOCKS).swapaxes(1, 2).reshape(-1, 16)
    return np.ascontiguousarray(blocks[:count])


def fresh_words(key: Key, count: int) -> UInt32[np.ndarray, " count"]:
    """Return the next unused words of a key."""
    with core_errors("a key and a count of 0 or more"):
        words = np.empty(count, np.uint32)
        _native.stream(kernels(), native_key(key), words)
    return words


def words_at(
    key: Key, position: int, count: int, *, stream: int = 0
) -> UInt32[np.ndarray, " count"]:
    """Return words from a place, without marking them used: for protocols that seek.

    These streams never meet the one that `fresh_words`, masks and noise use. Order: 64 AES blocks
    make a superblock, or 16 ChaCha blocks, and those are stored word by word, not block by block,
    so that no instruction set has to transpose.

    Args:
        key: Key.
        position: First superblock (1024 bytes); the last one lies below 2⁵⁸.
        count: How many words.
        stream: Number of the stream, below 2³².

    Raises:
        ConfigError: A place out of range.
    """
    last = position + -(-count // SUPERBLOCK_WORDS)
    if count < 0 or not (0 <= position <= last <= _POSITIONS and 0 <= stream < 1 << 32):
        raise ConfigError(
            expected="words below position 2^58 of a stream below 2^32",
            got=f"{count} words from position {position} of stream {stream}",
            fix="count superblocks of 1024 bytes",
        )
    with core_errors("a key and a count of 0 or more"):
        words = np.empty(count, np.uint32)
        _native.stream_at(kernels(), native_key(key), stream, position, words)
    return words


def add_mask(values: Buffer, key: Key) -> None:
    """Add the next unused keystream to integers, in place, mod 2¹⁶, 2³² or 2⁶⁴ by their type.

    Two holders of one agreed key use the same pads if they make the same calls: same order, same
    sizes, same integer type. Each call starts a new block of 1024 bytes, so one call of 16 values
    is not two of 8. Nothing detects a mismatch: the result is then random numbers. A holder never
    uses a pad twice; see `Key.agreed` for restarts and directions.

    Args:
        values: Integers of 16, 32 or 64 bits, shape ``[size]``.
        key: Key, advanced by the bytes used.

    Raises:
        ConfigError: Other values.
        NoiseError: The key was agreed before a fork.
    """
    _mask(values, key, subtract=False)


def subtract_mask(values: Buffer, key: Key) -> None:
    """Take away what `add_mask` adds."""
    _mask(values, key, subtract=True)


def _mask(values: Buffer, key: Key, *, subtract: bool) -> None:
    array = core_array(values, _INTEGERS)
    with core_errors("integers of 16, 32 or 64 bits"):
        _native.mask(kernels(), native_key(key), array, subtract)
