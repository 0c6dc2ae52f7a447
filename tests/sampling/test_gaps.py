"""Geometric gaps: exact at every boundary, whatever float64 makes of it."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import UInt8
from scipy import stats
from tests.noise.scripted import Scripted

from dither.noise.entropy import Entropy, OsEntropy
from dither.sampling import gaps as module
from dither.sampling import poisson
from dither.sampling.gaps import TOLERANCE, gaps
from dither.sampling.poisson import PoissonSampler

RATES = [0.3, 1 / 3, 0.5, 4096 / 1.06e6, 1.0 - 2.0**-53, 2.0**-20]
NO_END = 1 << 62


def boundary(rate: float, gap: int) -> int:
    """⌊(1-p)^gap · 2⁶⁴⌋: words below it reach the gap, words above do not."""
    with mpmath.workprec(400):
        return int(mpmath.floor(mpmath.power(1 - mpmath.mpf(rate), gap) * 2**64))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("gap", [1, 2, 3, 10, 37])
def test_words_beside_a_boundary_fall_on_the_right_side(rate: float, gap: int) -> None:
    word = boundary(rate, gap)
    words = [w for w in (word - 2, word - 1, word + 1, word + 2) if 0 < w < 2**64]
    found = gaps(rate, len(words), NO_END, Scripted.words([*words, *[2**63] * 20]))
    reached = [int(g) >= gap for g in found]
    assert reached == [w < word for w in words]


@pytest.mark.parametrize("rate", [0.3, 1 / 3, 4096 / 1.06e6])
def test_the_boundarys_own_word_needs_more_bits_and_takes_them(rate: float) -> None:
    """The next 64 bits decide: all zeros are below the boundary, all ones above."""
    gap = 7
    word = boundary(rate, gap)
    low = Scripted.words([word, 0])
    high = Scripted.words([word, 2**64 - 1])
    assert gaps(rate, 1, NO_END, low).tolist() == [gap]
    assert gaps(rate, 1, NO_END, high).tolist() == [gap - 1]
    assert low.content == high.content == b""


def test_a_boundary_on_a_word_needs_none() -> None:
    """(1/2)^g·2⁶⁴ is a whole number."""
    words = [2**63 - 1, 2**63, 2**62 - 1, 2**62, 2**64 - 1]
    source = Scripted.words(words)
    assert gaps(0.5, 5, NO_END, source).tolist() == [1, 0, 2, 1, 0]
    assert source.content == b""


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 2**64 - 1),
    st.one_of(st.floats(1e-9, 1.0 - 2**-53), st.sampled_from(RATES)),
)
def test_the_draw_is_the_one_of_its_bits(word: int, rate: float) -> None:
    """Against mpmath with 128 bits known; a word of zeros may need the further bits."""
    more = 0x9E3779B97F4A7C15
    (found,) = gaps(rate, 1, NO_END, Scripted.words([word, *[more] * 20]))
    with mpmath.workprec(400):
        u = (mpmath.mpf(word) * 2**64 + more) / mpmath.mpf(2) ** 128
        assert int(found) == int(mpmath.floor(mpmath.log(u) / mpmath.log(1 - mpmath.mpf(rate))))


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 2**64 - 1), st.integers(0, 1), st.floats(1e-12, 1.0 - 2**-53))
def test_float64_errs_by_less_than_a_hundredth_of_the_tolerance(
    word: int, end: int, rate: float
) -> None:
    got = module._minus_log(np.array([word], np.uint64), end)[0] / -np.log1p(-rate)
    with mpmath.workprec(300):
        exact = -mpmath.log(mpmath.mpf(word + end) / 2**64) / -mpmath.log(1 - mpmath.mpf(rate))
        assert abs(got - exact) <= exact * TOLERANCE / 100


def test_a_gap_beyond_the_end_is_cut() -> None:
    assert gaps(2.0**-60, 3, 1000, Scripted.words([0, 1, 2**63])).tolist() == [1000] * 3


@pytest.mark.parametrize("rate", [0.3, 0.004])
def test_the_law_is_geometric(rate: float) -> None:
    """χ² of 200,000 draws in equal bins, false alarm 1e-7; a rate off by 3 % fails it."""
    draws = gaps(rate, 200_000, NO_END, OsEntropy())
    cuts = np.unique(stats.geom(rate, loc=-1).ppf(np.linspace(0.05, 0.95, 19)))

    def fits(chosen: float) -> bool:
        law = np.diff(np.concatenate([[0.0], stats.geom(chosen, loc=-1).cdf(cuts), [1.0]]))
        counts = np.bincount(np.searchsorted(cuts, draws), minlength=law.size)
        return bool(stats.chisquare(counts, law * draws.size).pvalue > 1e-7)

    assert fits(rate)
    assert not fits(rate * 1.03)
    assert not fits(rate / 1.03)


class Counting(Entropy):
    """The operating system's bytes, counted."""

    secret = True

    def __init__(self) -> None:
        self.taken = 0

    def draw(self, size: int) -> UInt8[np.ndarray, " size"]:
        self.taken += size
        return OsEntropy().draw(size)

    def stream(self, name: str) -> Entropy:
        return self


def test_a_sample_takes_entropy_for_what_it_holds_and_not_for_what_the_store_holds() -> None:
    """A billion rows: q·n + 6·√(q·n) + 16 gaps of eight bytes, more with probability 1e-9."""
    source = Counting()
    sample = PoissonSampler(1_000_000_000, 1e-6, source).draw()
    assert source.taken == 8 * (int(1000 + 6 * math.sqrt(1000)) + 16)
    assert 700 < sample.rows.size < 1300  # 9 standard deviations


def test_a_long_sample_comes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of all parts together: the size is binomial, |z| < 5.4, and rows ascend."""
    monkeypatch.setattr(poisson, "_LONGEST", 64)
    rows = PoissonSampler(100_000, 0.05).draw().rows
    assert abs(rows.size - 5000) < 5.4 * math.sqrt(4750)
    assert (np.diff(rows) > 0).all()
    assert rows[-1] < 100_000
