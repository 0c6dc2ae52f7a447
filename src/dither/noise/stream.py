"""The bare keystream, and masks made of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt32

from dither import _native
from dither.errors import ConfigError
from dither.noise.core import Buffer, core_errors
from dither.noise.key import Key
from dither.noise.simd import kernels

SUPERBLOCK_WORDS = 256
_BLOCKS = 16


def chacha_blocks(
    state: Sequence[int], count: int, *, rounds: int = 20
) -> UInt32[np.ndarray, "count 16"]:
    """Return consecutive ChaCha blocks (RFC 8439 §2.3), one a row, in the RFC's order.

    Args:
        state: The 16 words of the initial state; words 12 and 13 are a 64-bit block counter.
        count: How many blocks.
        rounds: 20 or 12.
    """
    superblocks = -(-count // _BLOCKS)
    words = np.empty(superblocks * SUPERBLOCK_WORDS, np.uint32)
    with core_errors("16 words of 32 bits"):
        _native.chacha(kernels(), list(state), rounds, words)
    blocks = words.reshape(superblocks, 16, _BLOCKS).swapaxes(1, 2).reshape(-1, 16)
    return np.ascontiguousarray(blocks[:count])


def fresh_words(key: Key, count: int) -> UInt32[np.ndarray, " count"]:
    """Return the next unused words of a key."""
    words = np.empty(count, np.uint32)
    with core_errors("a key"):
        _native.stream(kernels(), key.native, words)
    return words


def words_at(
    key: Key, position: int, count: int, *, stream: int = 0
) -> UInt32[np.ndarray, " count"]:
    """Return words from a place, without marking them used: for protocols that seek.

    These streams never meet the one that `fresh_words`, masks and noise use. Order: 16 ChaCha
    blocks make a superblock, stored word by word, not block by block, so that no instruction set
    has to transpose.

    Args:
        key: Key.
        position: First superblock (1024 bytes), below 2⁶⁰.
        count: How many words.
        stream: Number of the stream, below 2³².

    Raises:
        ConfigError: A place out of range.
    """
    if not (0 <= position < 1 << 60 and 0 <= stream < 1 << 32):
        raise ConfigError(
            expected="a position below 2^60 and a stream below 2^32",
            got=f"position {position}, stream {stream}",
            fix="count superblocks of 1024 bytes",
        )
    words = np.empty(count, np.uint32)
    with core_errors("a key"):
        _native.stream_at(kernels(), key.native, stream, position, words)
    return words


def add_mask(values: Buffer, key: Key) -> None:
    """Add the next unused keystream to integers, in place, mod 2¹⁶, 2³² or 2⁶⁴ by their type.

    Two holders of one agreed key who call in the same order use the same pads; a pad is never used
    twice by one holder.

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
    with core_errors("integers of 16, 32 or 64 bits"):
        _native.mask(kernels(), key.native, values, subtract)
