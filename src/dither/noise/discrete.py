"""The exact discrete Gaussian, in integers from the first random bit to the draw.

Canonne, Kamath, Steinke 2004.00010: a discrete Laplace proposal is accepted with a probability
exp(−γ), γ rational, and coins of that bias come from coins of rational bias alone. The loops run on
whole arrays, each element at its own coin, so that NumPy's cost a call is shared.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from jaxtyping import Bool, Int64, Shaped

from dither.errors import ConfigError
from dither.noise.entropy import Entropy

_DIGIT_BITS = 16
_INT64_END = 1 << 63
_MAX_SIGMA_SQUARED = 1 << 90
_PROPOSALS = 1 << 15  # at a time, so that the arrays stay in the cache


def discrete_gaussian(
    sigma_squared: Fraction | int, count: int, entropy: Entropy
) -> Int64[np.ndarray, " count"]:
    """Draw independent integers x with probability proportional to exp(−x²/2σ²), exactly.

    Exactness: every decision compares uniform bits with a rational number by integer arithmetic,
    in Python integers where 64 bits do not hold it, and takes more bits for as long as they leave
    it open. There is no float, no table and no cut tail. This is not a rounded Gaussian
    (`reference.rounded_gaussian`): for small σ their probabilities differ.

    Time and bytes used vary with the values drawn (Jin et al. 2112.05307), so a release whose time
    an adversary can measure needs another sampler.

    Args:
        sigma_squared: The parameter σ², rational, in (0, 2⁹⁰]. The variance is never larger, and
            smaller by less than 3·10⁻⁷ of it from σ² = 1 on.
        count: How many draws, 0 or more.
        entropy: Source of uniform bytes; some tens a draw.

    Returns:
        Integers of shape ``[count]``.

    Raises:
        ConfigError: σ² is not rational (a float) or out of range, or the count is negative.
    """
    if not isinstance(sigma_squared, Fraction | int):
        raise ConfigError(
            expected="an exact sigma squared, a Fraction or an int",
            got=repr(sigma_squared),
            fix="say which rational number is meant, for example Fraction(1, 4)",
        )
    if not 0 < sigma_squared <= _MAX_SIGMA_SQUARED:
        raise ConfigError(
            expected="a sigma squared in (0, 2^90] square lattice steps",
            got=str(sigma_squared),
            fix="check the plan; beyond 2^90 draws would not be sure to fit 64 bits",
        )
    if count < 0:
        raise ConfigError(
            expected="a count of 0 or more", got=str(count), fix="ask for 0 or more draws"
        )
    accepted, missing = [np.empty(0, np.int64)], count
    while missing:
        proposals = min(2 * missing + 16, _PROPOSALS)
        drawn = _accepted(proposals, Fraction(sigma_squared), entropy)[:missing]
        accepted.append(drawn)
        missing -= drawn.size
    return np.concatenate(accepted)


def _accepted(
    proposals: int, sigma_squared: Fraction, entropy: Entropy
) -> Int64[np.ndarray, " accepted"]:
    """Return what Algorithm 3 accepts of so many proposals, in order."""
    # ⌊σ⌋ + 1: the law is exact with any scale, and the paper chose one that is accepted often.
    scale = math.isqrt(sigma_squared.numerator // sigma_squared.denominator) + 1
    drawn = _discrete_laplace(proposals, scale, entropy)
    numerators, denominator = _exponents(np.abs(drawn), scale, sigma_squared)
    return drawn.compress(_exp_coins(numerators, denominator, entropy))


def _exponents(
    magnitudes: Int64[np.ndarray, " size"], scale: int, sigma_squared: Fraction
) -> tuple[Shaped[np.ndarray, " size"], int]:
    """Return γ = (|y| − σ²/t)² / 2σ² of Algorithm 3, over one common denominator."""
    upper, lower = sigma_squared.numerator, sigma_squared.denominator
    factor, denominator = scale * lower, 2 * upper * lower * scale**2
    largest = max(factor * int(magnitudes.max(initial=1)), upper)
    wide = _as_integers(magnitudes, max(largest**2, denominator))
    return (wide * factor - upper) ** 2, denominator


def _discrete_laplace(
    proposals: int, scale: int, entropy: Entropy
) -> Int64[np.ndarray, " accepted"]:
    """Return what Algorithm 2 accepts of so many: P(y) proportional to exp(−|y| / scale)."""
    offsets = _uniform(proposals, scale, entropy)
    magnitudes = offsets.compress(_unit_exp_coins(offsets, scale, entropy))
    # Exceeds int64 only after 2¹⁷ successes of probability 1/e in a row.
    magnitudes += scale * _successes(magnitudes.size, entropy)
    negative = (entropy.draw(magnitudes.size) & 1).astype(np.bool_)
    magnitudes[negative] *= -1
    return magnitudes.compress(~negative | (magnitudes != 0))  # zero has one sign only


def _successes(size: int, entropy: Entropy) -> Int64[np.ndarray, " size"]:
    """Count successes of Bernoulli(1/e) before the first failure: P(at least v) = exp(−v)."""
    counts = np.zeros(size, np.int64)
    going = np.arange(size)
    while going.size:
        going = going[_unit_exp_coins(np.ones(going.size, np.int64), 1, entropy)]
        counts[going] += 1
    return counts


def _exp_coins(
    numerators: Shaped[np.ndarray, " size"], denominator: int, entropy: Entropy
) -> Bool[np.ndarray, " size"]:
    """Toss Bernoulli(exp(−n/d)) for n ≥ 0: the fraction of n/d first, then its whole part."""
    heads = _unit_exp_coins(numerators % denominator, denominator, entropy)
    whole = numerators // denominator
    more = np.flatnonzero(heads & (whole > 0))
    heads[more] = _successes(more.size, entropy) >= whole[more]
    return heads


def _unit_exp_coins(
    numerators: Shaped[np.ndarray, " size"], denominator: int, entropy: Entropy
) -> Bool[np.ndarray, " size"]:
    """Toss Bernoulli(exp(−n/d)) for 0 ≤ n ≤ d: Algorithm 1, after von Neumann and Forsythe."""
    heads = np.zeros(numerators.size, np.bool_)
    going, tosses = np.arange(numerators.size), 0
    while going.size:
        tosses += 1
        on = _coins(numerators[going], denominator * tosses, entropy)
        heads[going[~on]] = tosses % 2 == 1
        going = going[on]
    return heads


def _coins(
    numerators: Shaped[np.ndarray, " size"], denominator: int, entropy: Entropy
) -> Bool[np.ndarray, " size"]:
    """Toss Bernoulli(n/d) for 0 ≤ n ≤ d: whether a uniform number, digit by digit, is below n/d."""
    heads = np.zeros(numerators.size, np.bool_)
    going, rest = np.arange(numerators.size), _as_integers(numerators, denominator << _DIGIT_BITS)
    while going.size:
        shifted = rest << _DIGIT_BITS
        boundary = shifted // denominator
        digits = entropy.draw(_DIGIT_BITS // 8 * going.size).view(np.uint16)
        heads[going] = digits < boundary
        same = np.flatnonzero(digits == boundary)  # one in 2¹⁶: the next digit decides
        going, rest = going[same], shifted[same] - boundary[same] * denominator
    return heads


def _uniform(size: int, end: int, entropy: Entropy) -> Int64[np.ndarray, " size"]:
    """Draw from {0, …, end − 1}, end ≤ 2⁶², refusing words beyond it."""
    drawn = np.zeros(size, np.int64)
    going, mask = np.arange(size), (1 << (end - 1).bit_length()) - 1
    while going.size:
        words = entropy.draw(8 * going.size).view(np.int64) & mask
        inside = words < end
        drawn[going[inside]] = words[inside]
        going = going[~inside]
    return drawn


def _as_integers(values: Shaped[np.ndarray, " size"], largest: int) -> Shaped[np.ndarray, " size"]:
    """Return int64 where 64 bits hold the largest number to come, else Python integers."""
    return values if largest < _INT64_END else values.astype(np.object_)
