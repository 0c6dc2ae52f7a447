"""Poisson samples: exact probability, independence, size, tickets."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from tests.noise.scripted import Scripted

from dither.errors import ConfigError, SamplingError
from dither.noise.entropy import InsecureSeed, OsEntropy
from dither.privacy.events import SamplerKind
from dither.privacy.plan import Plan
from dither.sampling.poisson import PoissonSampler

RATE, ROWS, DRAWS = 0.3, 40, 20_000


@pytest.fixture(scope="module")
def inclusion() -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """DRAWS × ROWS zeros and ones, from the operating system's entropy."""
    sampler = PoissonSampler(ROWS, RATE)
    table = np.zeros((DRAWS, ROWS))
    for line in table:
        line[sampler.draw().rows] = 1.0
    return table


def test_every_row_is_in_at_the_rate(
    inclusion: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> None:
    """z test a row, |z| < 6: false alarm 40·2e-9; and over all rows, |z| < 5.4: 7e-8.

    All rows together see a rate off by 0.0031.
    """
    deviation = math.sqrt(RATE * (1 - RATE) / DRAWS)
    assert np.abs((inclusion.mean(axis=0) - RATE) / deviation).max() < 6.0
    assert abs(inclusion.mean() - RATE) < 5.4 * deviation / math.sqrt(ROWS) < 0.0031


def test_pairs_of_rows_are_independent(
    inclusion: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> None:
    """780 correlations, each |r|·√n < 6.3: false alarm 780·3e-10 = 2.3e-7."""
    correlation = np.asarray(np.corrcoef(inclusion, rowvar=False))
    np.fill_diagonal(correlation, 0.0)
    assert np.abs(correlation).max() * math.sqrt(DRAWS) < 6.3


def test_samples_are_independent_of_each_other(
    inclusion: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> None:
    """Same row in neighbouring draws: 40 correlations below 6, false alarm 40·2e-9."""
    left, right = inclusion[1:] - RATE, inclusion[:-1] - RATE
    correlation = (left * right).mean(axis=0) / (RATE * (1 - RATE))
    assert np.abs(correlation).max() * math.sqrt(DRAWS) < 6.0


def test_size_is_binomial(
    inclusion: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> None:
    """χ² over sizes with 10 or more expected: false alarm 1e-7. A fixed size fails it."""
    sizes = inclusion.sum(axis=1).astype(int)
    law = stats.binom(ROWS, RATE).pmf(np.arange(ROWS + 1)) * DRAWS
    low, high = np.flatnonzero(law >= 10.0)[[0, -1]]
    expected = law[low : high + 1].copy()
    expected[0], expected[-1] = law[: low + 1].sum(), law[high:].sum()
    counts = np.bincount(np.clip(sizes, low, high) - low, minlength=expected.size)
    assert stats.chisquare(counts, expected).pvalue > 1e-7
    fixed = np.bincount(np.full(DRAWS, round(ROWS * RATE)) - low, minlength=expected.size)
    assert stats.chisquare(fixed, expected).pvalue < 1e-7


def test_rate_one_is_the_full_sample() -> None:
    sample = PoissonSampler(5, 1.0, Scripted(b"")).draw()  # certain: takes no entropy
    assert sample.rows.tolist() == [0, 1, 2, 3, 4]
    assert sample.ticket.kind is SamplerKind.FULL


def test_empty_samples_are_normal() -> None:
    sampler = PoissonSampler(3, 1e-6, InsecureSeed(0))
    sizes = {sampler.draw().rows.size for _ in range(100)}
    assert sizes == {0}
    assert sampler.draw().rows.dtype == np.int64


def test_a_single_row() -> None:
    """1000 draws at 1/2; outside 415..585 with probability below 1e-7."""
    sampler = PoissonSampler(1, 0.5)
    assert 415 < sum(sampler.draw().rows.size for _ in range(1000)) < 585


def test_rows_ascend_without_repeats() -> None:
    rows = PoissonSampler(100_000, 0.1, OsEntropy()).draw().rows
    assert (np.diff(rows) > 0).all()
    assert rows.size == 0 or (rows.min() >= 0 and rows.max() < 100_000)


def test_every_draw_has_its_own_ticket() -> None:
    plan = Plan(
        records=1000, sampling_rate=0.25, steps=9, l2_clip=1.0, noise_multiplier=1.0, delta=1e-6
    )
    sampler = PoissonSampler(1000, 0.25)
    one, two = sampler.draw().ticket, sampler.draw().ticket
    assert (one.kind, one.rate) == (SamplerKind.POISSON, 0.25)
    one.spend(plan)
    two.spend(plan)
    with pytest.raises(SamplingError, match="released before"):
        one.spend(plan)


@pytest.mark.parametrize("rate", [0.0, -0.2, 1.01, math.nan])
def test_rate_out_of_range_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="a sampling rate in"):
        PoissonSampler(10, rate)


def test_default_entropy_is_the_operating_systems() -> None:
    draws = [tuple(PoissonSampler(200, 0.5).draw().rows.tolist()) for _ in range(4)]
    assert len(set(draws)) == 4


@pytest.mark.parametrize("records", [-3, 2**42 + 1, 2**63])
def test_a_number_of_records_out_of_range_is_refused(records: int) -> None:
    with pytest.raises(ConfigError, match="between 0 and"):
        PoissonSampler(records, 0.5)
