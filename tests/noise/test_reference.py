"""The slow oracle is exact: against arbitrary precision, bit by bit."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtri
from tests.noise.scripted import Scripted, Tail

from dither.errors import ConfigError
from dither.noise.entropy import InsecureSeed
from dither.noise.reference import TOLERANCE, rounded_gaussian

WORD = 2**64


def _threshold(magnitude: int, sigma: float) -> mpmath.mpf:
    """P(σZ > magnitude + ½) in units of 2⁻⁶⁴, with about 1500 bits."""
    boundary = (mpmath.mpf(magnitude) + mpmath.mpf("0.5")) / mpmath.mpf(sigma)
    return mpmath.erfc(boundary / mpmath.sqrt(2)) / 2 * WORD


def _is_right(magnitude: int, sigma: float, words: list[int]) -> bool:
    """Whether every p that starts with these words rounds to this magnitude."""
    with mpmath.workprec(1500):
        low = mpmath.mpf(words[0] >> 1)
        for place, word in enumerate(words[1:], start=1):
            low += mpmath.mpf(word) / mpmath.mpf(WORD) ** place
        high = low + mpmath.mpf(1) / mpmath.mpf(WORD) ** (len(words) - 1)
        above = _threshold(magnitude, sigma)
        below = _threshold(magnitude - 1, sigma) if magnitude else mpmath.mpf(WORD)
        return bool(above <= low and high <= below)


def test_float64_quantile_is_far_better_than_the_tolerance() -> None:
    """ndtri against mpmath on 1500 tail probabilities from 2⁻⁶⁴ to ½, dense near ½."""
    exponents = np.linspace(-64, -1, 1000)
    tails = np.concatenate([2.0**exponents, 0.5 - 2.0 ** np.linspace(-52, -2, 500)])
    worst = 0.0
    with mpmath.workdps(50):
        for tail in tails:
            ours = mpmath.mpf(-float(ndtri(tail)))
            # One Newton step from ours: its error is the square of ours.
            miss = mpmath.erfc(ours / mpmath.sqrt(2)) / 2 - mpmath.mpf(float(tail))
            error = abs(miss / mpmath.npdf(ours)) / (1 + abs(ours))
            worst = max(worst, float(error))
    assert worst < TOLERANCE / 100


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0, 1000.0, 2.0**20, 2.0**40, 1.234e13])
def test_every_draw_is_the_rounding_of_its_bits(sigma: float) -> None:
    words = [int(w) for w in InsecureSeed(5, str(sigma)).draw(8 * 200).view(np.uint64)]
    extra = [int(w) for w in InsecureSeed(6).draw(8 * 300).view(np.uint64)]
    source = Scripted.words(words + extra)
    drawn = rounded_gaussian(sigma, len(words), source)
    used = iter(extra[: len(extra) - len(source.content) // 8])
    for word, value in zip(words, drawn.tolist(), strict=True):
        bits = [word]
        while not _is_right(abs(value), sigma, bits):
            bits.append(next(used))  # the draw was open at these bits, so it must have refined
        assert value == 0 or (value < 0) == bool(word & 1)
    assert next(used, None) is None


@pytest.mark.parametrize("sigma", [0.7, 3.0, 1e5, 2.0**30])
@pytest.mark.parametrize("z", [0.0, 0.5, 2.0, 7.5])
@pytest.mark.parametrize("sign", [0, 1])
def test_bits_across_a_boundary_are_refined_both_ways(sigma: float, z: float, sign: int) -> None:
    magnitude = int(sigma * z)
    with mpmath.workprec(1500):
        threshold = _threshold(magnitude, sigma)
        tail, rest = int(mpmath.floor(threshold)), threshold - mpmath.floor(threshold)
        digits = [int(mpmath.floor(rest * WORD))]
        digits.append(int(mpmath.floor((rest * WORD - digits[0]) * WORD)))
    first = (tail << 1) | sign
    closer = [first, digits[0], digits[1] - 1]
    for words, expected in [
        ([first, digits[0] - 1], magnitude + 1),  # p below the threshold: beyond the boundary
        ([first, digits[0] + 1], magnitude),
        (closer, magnitude + 1),  # equal in 127 bits, decided by the third word
        ([first, digits[0], digits[1] + 1], magnitude),
    ]:
        source = Scripted.words(words)
        value = int(rounded_gaussian(sigma, 1, source)[0])
        assert abs(value) == expected
        assert value == 0 or (value < 0) == bool(sign)
        assert source.content == b""  # no bit less sufficed, and none more was taken
        assert _is_right(abs(value), sigma, words)


@pytest.mark.parametrize("sigma", [1.0, 300.0, 2.0**20])
def test_an_all_zero_tail_has_no_end(sigma: float) -> None:
    """p < 2⁻¹⁹¹: beyond 16 σ, where a truncated sampler has nothing."""
    words = [0, 0, 0, 12345]
    source = Scripted.words([*words, *range(1, 9)])
    value = int(rounded_gaussian(sigma, 1, source)[0])
    used = words + list(range(1, 9))
    bits = used[: len(used) - len(source.content) // 8]
    assert len(bits) >= 4
    assert _is_right(value, sigma, bits)
    assert value > 16 * sigma


@pytest.mark.parametrize(("bits", "count"), [(20, 4000), (40, 4000), (58, 150)])
def test_far_tails_follow_the_normal_law(bits: int, count: int) -> None:
    """Given p < 2^−(bits+1), |Z| has the conditional law. KS test, false alarm 1e-7."""
    sigma = 2.0**20
    drawn = np.abs(rounded_gaussian(sigma, count, Tail(bits, seed=bits))).astype(np.float64)
    uniform = stats.norm.sf(drawn / sigma) * 2.0 ** (bits + 1)
    assert drawn.min() > 0.999 * sigma * stats.norm.isf(2.0 ** -(bits + 1))
    assert stats.kstest(uniform, "uniform").pvalue > 1e-7


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf, 2.0**45 * 1.01])
def test_sigma_out_of_range_is_refused(sigma: float) -> None:
    with pytest.raises(ConfigError, match="a sigma in"):
        rounded_gaussian(sigma, 3, InsecureSeed(0))


def test_no_draw_takes_no_entropy() -> None:
    drawn = rounded_gaussian(3.0, 0, Scripted(b""))
    assert drawn.shape == (0,)
    assert drawn.dtype == np.int64


def test_calls_use_fresh_bits() -> None:
    source = InsecureSeed(9)
    assert (rounded_gaussian(1e6, 50, source) != rounded_gaussian(1e6, 50, source)).any()
    again = rounded_gaussian(1e6, 50, InsecureSeed(9))
    assert (again == rounded_gaussian(1e6, 50, InsecureSeed(9))).all()
