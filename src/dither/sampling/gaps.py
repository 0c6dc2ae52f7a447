"""Gaps between chosen rows: exact geometric draws, so that a sample costs what it holds."""

from __future__ import annotations

import mpmath
import numpy as np
from jaxtyping import Float64, Int64, UInt64

from dither.noise.entropy import Entropy

# Allowance for float64 in ln u / ln(1-p): two logarithms of a few units in the last place each, and
# a quotient. A test compares it with mpmath.
TOLERANCE = 1e-12
_BITS = 64


def gaps(rate: float, count: int, largest: int, entropy: Entropy) -> Int64[np.ndarray, " count"]:
    """Draw min(G, largest), G the number of failures before a success of probability ``rate``.

    Exactness: G = ⌊ln U / ln(1-p)⌋ for a uniform U of infinitely many bits. From the first 64 it is
    computed in float64 as an interval, widened by `TOLERANCE`; where that leaves G open (about one
    draw in 10¹⁰), arbitrary precision decides, with more bits where needed: interval refining
    (Haney et al. 2207.13793). So each row is in with probability p, a float64 and hence a rational
    number, and with no other.

    Args:
        rate: p in (0, 1).
        count: How many draws.
        largest: Where larger gaps may be cut: the number of rows.
        entropy: Source of uniform bytes; eight a draw, rarely more.
    """
    words = entropy.draw(8 * count).view(np.uint64)
    scale = np.log1p(-rate)
    with np.errstate(over="ignore"):  # a subnormal rate
        low = _minus_log(words, 1) / -scale * (1.0 - TOLERANCE)
        high = _minus_log(words, 0) / -scale * (1.0 + TOLERANCE)
    first: Int64[np.ndarray, " count"] = np.minimum(np.floor(low), largest).astype(np.int64)
    last = np.minimum(np.floor(high), largest).astype(np.int64)
    for index in np.flatnonzero(first != last):
        bounds = int(first[index]), int(last[index])
        first[index] = _refine(int(words[index]), rate, bounds, entropy)
    return first


def _minus_log(words: UInt64[np.ndarray, " count"], end: int) -> Float64[np.ndarray, " count"]:
    """Return -ln((word + end)/2⁶⁴), accurate relative to itself at both ends of (0, 1]."""
    near_one = words >> np.uint64(63) == 1
    below_one = ((~words).astype(np.float64) + (1 - end)) * 2.0**-_BITS
    value = (words.astype(np.float64) + end) * 2.0**-_BITS
    with np.errstate(divide="ignore"):  # a word of zeros has no upper end yet
        return np.where(near_one, -np.log1p(-below_one), -np.log(value))


def _refine(word: int, rate: float, bounds: tuple[int, int], entropy: Entropy) -> int:
    """Decide one draw by bisection over the gaps that it may be."""
    first, last = bounds
    bits = _BITS
    while first < last:
        middle = (first + last + 1) // 2
        with mpmath.workprec(bits + 128):
            # The gap is at least middle exactly when U < (1-p)^middle.
            threshold = mpmath.power(1 - mpmath.mpf(rate), middle) * mpmath.mpf(2) ** bits
            reached, missed = word + 1 <= threshold, word >= threshold
        if reached:
            first = middle
        elif missed:
            last = middle - 1
        else:
            word = (word << _BITS) | int(entropy.draw(8).view(np.uint64)[0])
            bits += _BITS
    return first
