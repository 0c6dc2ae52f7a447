"""Draws as a whole: right σ accepted, wrong σ rejected, tails, parity, cells.

False alarms are at most 1e-6 a test; operating-system entropy, so every run is a new one.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from tests.noise.laws import ALARM, Draws, cells_fit, has_sigma, poisson, uniform

from dither.noise.entropy import OsEntropy
from dither.noise.reference import rounded_gaussian


def test_right_sigma_is_accepted_and_wrong_ones_rejected() -> None:
    """False alarm 1e-7; at 20 000 draws 2/3 and 3/2 of σ are 10 and more deviations away."""
    sigma, count = 12_345.6, 20_000
    drawn = rounded_gaussian(sigma, count, OsEntropy()).astype(np.float64)
    square = float(np.mean(drawn**2))
    assert has_sigma(square, count, sigma)
    assert not has_sigma(square, count, sigma * 2 / 3)
    assert not has_sigma(square, count, sigma * 3 / 2)
    assert abs(drawn.mean()) < 5.4 * sigma / np.sqrt(count)
    assert stats.kstest(drawn / sigma, "norm").pvalue > ALARM


@pytest.mark.full
def test_ten_million_draws_reject_two_per_cent() -> None:
    """False alarms: σ and mean 1e-7 each, tails at 4 and 5 σ 1e-7 each."""
    sigma, count, part = 2.0**20, 40_000_000, 1_000_000
    square = total = 0.0
    beyond = {4.0: 0, 5.0: 0}
    for _ in range(count // part):
        drawn = rounded_gaussian(sigma, part, OsEntropy()).astype(np.float64)
        square += float(np.sum(drawn**2))
        total += float(np.sum(drawn))
        for z in beyond:
            beyond[z] += int(np.count_nonzero(np.abs(drawn) > z * sigma))
    assert has_sigma(square / count, count, sigma)
    assert not has_sigma(square / count, count, 0.98 * sigma)
    assert not has_sigma(square / count, count, 1.02 * sigma)
    assert abs(total / count) < 5.4 * sigma / np.sqrt(count)
    for z, found in beyond.items():
        assert poisson(found, 2 * stats.norm.sf(z) * count)
        # A sampler cut at z, or one with twice the tail, is told apart.
        assert not poisson(0, 2 * stats.norm.sf(z) * count)
        assert not poisson(4 * found, 2 * stats.norm.sf(z) * count)


def test_four_sigma_tail() -> None:
    """63 of a million expected; Poisson bounds with false alarm 1e-7."""
    sigma, count = 1e5, 1_000_000
    drawn = rounded_gaussian(sigma, count, OsEntropy())
    found = int(np.count_nonzero(np.abs(drawn) > 4 * sigma))
    assert poisson(found, 2 * stats.norm.sf(4.0) * count)
    assert not poisson(0, 2 * stats.norm.sf(4.0) * count)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_low_bits_carry_no_trace(bits: int) -> None:
    """Residues modulo 2^bits are uniform at σ = 2²⁰; χ², false alarm 1e-7."""
    drawn = rounded_gaussian(2.0**20, 200_000, OsEntropy())
    assert uniform(np.bincount(drawn & (2**bits - 1), minlength=2**bits))


def _float32_box_muller(sigma: float, count: int) -> Draws:
    """What must never be on a release path."""
    generator = np.random.default_rng()
    one, two = (1.0 - generator.random(count, np.float32) for _ in range(2))
    radius = np.sqrt(np.float32(-2.0) * np.log(one))
    drawn: Draws = np.rint(np.float32(sigma) * radius * np.cos(np.float32(2 * np.pi) * two)).astype(
        np.int64
    )
    return drawn


def test_the_parity_test_catches_float32_box_muller_review_a1() -> None:
    """PRIVACY-REVIEW A1: even 53.6 % of the time. Missed with probability below 1e-12."""
    drawn = _float32_box_muller(2.0**20, 200_000)
    parity = np.bincount(drawn & 1, minlength=2)
    assert not uniform(parity)
    assert parity[0] / drawn.size == pytest.approx(0.536, abs=0.01)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
def test_small_sigma_has_exact_cell_probabilities(sigma: float) -> None:
    """χ² over cells with at least 10 expected, tails merged; false alarm 1e-7."""
    count = 200_000
    drawn = rounded_gaussian(sigma, count, OsEntropy())
    assert cells_fit(drawn, sigma)
    assert not cells_fit(drawn, 0.95 * sigma)
    assert not cells_fit(drawn + 1, sigma)


def test_neighbouring_draws_are_uncorrelated() -> None:
    """|correlation|·√n below 5.4: false alarm 7e-8 a lag."""
    drawn = rounded_gaussian(1e4, 200_000, OsEntropy()).astype(np.float64)
    for lag in (1, 2, 8):
        for left, right in ((drawn[lag:], drawn[:-lag]), (drawn[lag:] ** 2, drawn[:-lag] ** 2)):
            correlation = float(np.corrcoef(left, right)[0, 1])
            assert abs(correlation) * np.sqrt(left.size) < 5.4
