"""What the lattice draw must be, from the words of its key, in arbitrary precision.

Two uniform fractions of infinitely many bits make a pair of draws (native/src/kernels/gauss64.h):
u = 0.radius gives R = √(−2 ln u); of the angle, bits 63 and 62 are the signs, bit 61 exchanges
cosine and sine, and the rest is a fraction of π/4. The stream hands out superblocks of 128 words in
rows of 8: an even row holds radius words and receives the cosine parts, the odd row after it holds
their angles and receives the sine parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from dither.noise.key import Key
from dither.noise.stream import chacha_blocks, fresh_words

Words = np.ndarray[tuple[int], np.dtype[np.uint64]]
Draws = np.ndarray[tuple[int], np.dtype[np.int64]]
Reals = np.ndarray[tuple[Any, ...], np.dtype[np.floating[Any]]]

WORDS = 128
_SPARE = 256  # bits of precision beyond those of the words
_FRACTION = (1 << 61) - 1
_CONSTANTS = np.frombuffer(b"expand 32-byte k", "<u4")
_REFINE = 1  # number of the stream that further bits come from


@dataclass(frozen=True)
class Pair:
    """The bits of one pair of draws.

    Attributes:
        radius: First 64 bits.
        angle: First 64 bits.
        more: Further words by turns, radius and angle.
    """

    radius: int
    angle: int
    more: Sequence[int] = ()

    @property
    def _precision(self) -> int:
        return 32 * len(self.more) + 64 + _SPARE

    def bounds(self, sigma: float, *, second: bool) -> tuple[mpmath.mpf, mpmath.mpf]:
        """Return the smallest and largest σ·|X| that infinitely many bits can make of these."""
        use_sine = second != bool(self.angle >> 61 & 1)
        with mpmath.workprec(self._precision):
            small_u, large_u = _ends(self.radius, self.more[0::2], 64)
            small_a, large_a = _ends(self.angle & _FRACTION, self.more[1::2], 61)
            long = mpmath.sqrt(-2 * mpmath.log(small_u)) if small_u else mpmath.inf
            short = mpmath.sqrt(-2 * mpmath.log(large_u))
            quarter = mpmath.pi / 4
            if use_sine:
                ratios = mpmath.sin(quarter * small_a), mpmath.sin(quarter * large_a)
            else:
                ratios = mpmath.cos(quarter * large_a), mpmath.cos(quarter * small_a)
            scale = mpmath.mpf(sigma)
            return scale * short * ratios[0], scale * long * ratios[1]

    def draw(self, sigma: float, *, second: bool) -> int | None:
        """Return the integer, or None where these bits leave it open."""
        with mpmath.workprec(self._precision):
            low, high = (
                mpmath.floor(end + mpmath.mpf("0.5")) for end in self.bounds(sigma, second=second)
            )
        if low != high:
            return None
        negative = self.angle >> (62 if second else 63) & 1
        return -int(low) if negative else int(low)


def _ends(first: int, more: Sequence[int], bits: int) -> tuple[mpmath.mpf, mpmath.mpf]:
    """Return the ends of the interval of fractions that start with these words."""
    value = first
    for word in more:
        value = value << 64 | word
    scale = mpmath.mpf(2) ** -(bits + 64 * len(more))
    return value * scale, (value + 1) * scale


def expected_draws(
    words: Words, sigma: float, more: Callable[[int], Sequence[int]] | None = None
) -> Draws:
    """Return the draws that whole superblocks of words make.

    In float64 wherever 2⁻⁴² σ cannot change the integer, else by `Pair` in arbitrary precision.

    Args:
        words: Fresh words of the key, 64 bits each, a multiple of 128.
        sigma: Standard deviation in lattice steps.
        more: Further words for the pair with this number, for draws that 64 bits leave open.
    """
    radius, angle = pairs(words)
    draws = np.empty((2, radius.size), np.int64)
    for part, reals in enumerate(normals(radius, angle)):
        scaled = reals * sigma
        nearest = np.rint(scaled)
        draws[part] = np.nan_to_num(nearest).astype(np.int64)
        # Written so that NaN, which marks what float64 cannot tell, is open too.
        open_ = ~(np.abs(scaled - nearest) < 0.5 - 2.0**-42 * sigma)
        for at in np.flatnonzero(open_):
            pair = Pair(int(radius[at]), int(angle[at]))
            value = pair.draw(sigma, second=part == 1)
            if value is None:
                assert more is not None, "a draw that 64 bits leave open"
                value = Pair(pair.radius, pair.angle, more(int(at))).draw(sigma, second=part == 1)
                assert value is not None
            draws[part, at] = value
    return np.stack([part.reshape(-1, 8) for part in draws], axis=1).reshape(-1)


def pairs(words: Words) -> tuple[Words, Words]:
    """Return the radius and angle words of superblocks, pair by pair."""
    rows = words.reshape(-1, 2, 8)
    return rows[:, 0].reshape(-1), rows[:, 1].reshape(-1)


def normals(radius: Words, angle: Words) -> tuple[Reals, Reals]:
    """Return X1 and X2 in float64, NaN where 2⁻⁴² is not surely their error."""
    below = (~radius).astype(np.float64) + 1.0  # 2⁶⁴ − radius
    near_one = radius >= np.uint64(1 << 63)
    log = np.where(
        near_one,
        np.log1p(-below * 2.0**-64 * near_one),
        np.log(np.maximum(radius, np.uint64(1)).astype(np.float64) * 2.0**-64),
    )
    length = np.sqrt(-2.0 * log)
    length[(radius < np.uint64(1 << 48)) | (below < 2.0**34)] = np.nan
    turn = (angle & np.uint64(_FRACTION)).astype(np.float64) * 2.0**-61 * (np.pi / 4)
    swap = (angle >> np.uint64(61) & np.uint64(1)).astype(bool)
    cosine, sine = np.cos(turn), np.sin(turn)
    signs = (1.0 - 2.0 * (angle >> np.uint64(bit) & np.uint64(1)) for bit in (63, 62))
    first, second = np.where(swap, sine, cosine), np.where(swap, cosine, sine)
    return next(signs) * length * first, next(signs) * length * second


def next_words(key: Key, count: int) -> Words:
    """Return the words that the next `count` draws of a key would use, and use them up."""
    superblocks = -(-count // WORDS)
    return fresh_words(key, 2 * WORDS * superblocks).view(np.uint64)


def further_words(cipher: str, material: bytes, pair: int) -> Words:
    """Return the words by which an agreed key decides an open pair of draws, by turns.

    Args:
        cipher: ``chacha20`` or ``aes256``.
        material: The key's bytes.
        pair: Its number, 64 a superblock, from the start of the key's stream.
    """
    if cipher == "aes256":
        counters = np.zeros((64, 2), np.uint64)
        counters[:, 0] = 64 * pair + np.arange(64)
        counters[:, 1] = _REFINE
        encryptor = Cipher(algorithms.AES(material), modes.ECB()).encryptor()  # noqa: S305
        return np.frombuffer(encryptor.update(counters.tobytes()), np.uint64)
    block = 16 * pair
    state = np.zeros(16, np.uint32)
    state[:4], state[4:12] = _CONSTANTS, np.frombuffer(material, "<u4")
    state[12:15] = block & 0xFFFFFFFF, block >> 32, _REFINE
    blocks = chacha_blocks([int(word) for word in state], 16)
    # 16 blocks stand word by word.
    return np.ascontiguousarray(blocks.T).reshape(-1).view(np.uint64)
