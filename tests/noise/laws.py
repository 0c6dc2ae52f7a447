"""Whether draws follow the law of round(σZ): verdicts with one false-alarm rate for all.

Each verdict is wrong about right draws with probability `ALARM`, 1e-7, or less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

Integers = np.ndarray[tuple[int], np.dtype[np.int32 | np.int64]]
Draws = np.ndarray[tuple[int], np.dtype[np.int64]]
Counts = np.ndarray[tuple[int], np.dtype[np.int64]]
Reals = np.ndarray[tuple[Any, ...], np.dtype[np.floating[Any]]]
Source = Callable[[int], Integers]

ALARM = 1e-7
WIDE = 2.0**20  # the σ of releases, in fine steps
BLOCK = 1 << 17  # draws at a time: they stay in the second-level cache
FAR = 4.0  # σ, from where on each draw is kept
_CELL = 1 << 16  # σ/16
_CELLS = 256  # ±8 σ; what lies beyond goes into the outermost
_NOTHING = np.zeros(256, np.int64), np.zeros(_CELLS, np.int64), np.empty(0)


def within(score: float) -> bool:
    """Whether a standard normal score, two-sided, is no alarm."""
    return bool(abs(score) < stats.norm.isf(ALARM / 2))


def has_sigma(mean_square: float, count: int, sigma: float) -> bool:
    """χ² test of the second moment (rounding adds 1/12 of a squared step)."""
    scaled = count * mean_square / (sigma**2 + 1 / 12)
    low, high = stats.chi2.isf([1 - ALARM / 2, ALARM / 2], count)
    return bool(low < scaled < high)


def uniform(counts: Counts) -> bool:
    """χ² test of equal cells."""
    return bool(stats.chisquare(counts).pvalue > ALARM)


def binomial(found: int, count: int, probability: float) -> bool:
    """Exact two-sided test of a count."""
    return bool(stats.binomtest(found, count, probability).pvalue > ALARM)


def poisson(found: int, expected: float) -> bool:
    """Exact two-sided test of a count of rare events."""
    law = stats.poisson(expected)
    return bool(min(law.cdf(found), law.sf(found - 1)) > ALARM / 2)


def normal(reals: Reals) -> bool:
    """Kolmogorov-Smirnov test against the standard normal law."""
    return bool(stats.kstest(reals, "norm").pvalue > ALARM)


def cells_fit(drawn: Integers, sigma: float) -> bool:
    """χ² of every integer's exact probability, tails merged where fewer than 10 are expected."""
    edge = int(np.abs(drawn).max(initial=0))
    return counts_fit(np.bincount(drawn + edge, minlength=2 * edge + 1), sigma)


def counts_fit(counts: Counts, sigma: float) -> bool:
    """`cells_fit` from the numbers of −edge, …, 0, …, edge, with what lies beyond in the ends."""
    middle = counts.size // 2
    inner = 0
    while stats.norm.sf((inner + 0.5) / sigma) * counts.sum() >= 10.0 and inner < middle:
        inner += 1
    merged = counts[middle - inner : middle + inner + 1].copy()
    merged[0] += counts[: middle - inner].sum()
    merged[-1] += counts[middle + inner + 1 :].sum()
    return _cells(merged, np.arange(-inner, inner) + 0.5, sigma)


def _cells(counts: Counts, boundaries: Reals, sigma: float) -> bool:
    """χ² of the cells between boundaries."""
    below = np.concatenate([[0.0], stats.norm.cdf(boundaries / sigma), [1.0]])
    above = np.concatenate([[1.0], stats.norm.sf(boundaries / sigma), [0.0]])
    # The difference of the smaller pair keeps its digits.
    expected = np.where(below[1:] < 0.5, np.diff(below), -np.diff(above))
    return bool(stats.chisquare(counts, expected / expected.sum() * counts.sum()).pvalue > ALARM)


@dataclass(frozen=True)
class Tally:
    """What is kept of many draws at σ = `WIDE`.

    Attributes:
        count: How many.
        total: Their sum.
        square: Sum of their squares.
        residues: Counts modulo 256, shape ``[256]``.
        cells: Counts in cells of σ/16 from −8σ to 8σ, shape ``[256]``.
        far: Magnitudes beyond `FAR` σ, shape ``[number]``.
    """

    count: int
    total: float
    square: float
    residues: Counts
    cells: Counts
    far: Reals

    @classmethod
    def of(cls, source: Source, count: int) -> Tally:
        """Take at least `count` draws, a block at a time."""
        result = cls(0, 0.0, 0.0, *_NOTHING)
        far: list[Reals] = []
        for _ in range(-(-count // BLOCK)):
            result = result._with(source(BLOCK), far)
        return replace(result, far=np.concatenate(far))

    def _with(self, drawn: Integers, far: list[Reals]) -> Tally:
        reals = drawn.astype(np.float64)
        cell = np.clip((drawn >> 16) + _CELLS // 2, 0, _CELLS - 1)
        far.append(np.abs(reals[np.abs(drawn) > FAR * WIDE]))
        return Tally(
            count=self.count + drawn.size,
            total=self.total + float(reals.sum()),
            square=self.square + float(reals @ reals),
            residues=self.residues + np.bincount(drawn.astype(np.uint8), minlength=256),
            cells=self.cells + np.bincount(cell.astype(np.uint8), minlength=_CELLS),
            far=self.far,
        )

    def has_sigma(self, factor: float = 1.0) -> bool:
        """Whether the second moment is that of `factor` · σ."""
        return has_sigma(self.square / self.count, self.count, factor * WIDE)

    def is_centred(self) -> bool:
        """Whether the mean is zero."""
        return within(self.total / WIDE / np.sqrt(self.count))

    def residues_uniform(self, bits: int) -> bool:
        """Whether residues modulo 2**bits are uniform."""
        return uniform(self.residues.reshape(-1, 1 << bits).sum(axis=0))

    def shape_fits(self) -> bool:
        """Whether cells of σ/16 have their probabilities, tails merged below 10 expected."""
        edge = 0
        while stats.norm.sf((edge + 1) * _CELL / WIDE) * self.count >= 10.0:
            edge += 1
        middle = _CELLS // 2
        counts = self.cells[middle - edge - 1 : middle + edge + 1].copy()
        counts[0] += self.cells[: middle - edge - 1].sum()
        counts[-1] += self.cells[middle + edge + 1 :].sum()
        # x >> 16 cuts between k·2¹⁶ − 1 and k·2¹⁶, so at half an integer.
        return _cells(counts, np.arange(-edge, edge + 1) * float(_CELL) - 0.5, WIDE)

    def tail_fits(self, z: float) -> bool:
        """Whether as many lie beyond zσ as should: exact binomial."""
        beyond = int(np.count_nonzero(self.far > z * WIDE))
        return binomial(beyond, self.count, 2 * float(stats.norm.sf(z + 0.5 / WIDE)))

    def far_fits(self) -> bool:
        """Whether what lies beyond `FAR` σ is spread there as it should: Kolmogorov-Smirnov."""
        if self.far.size == 0:
            return True  # how many there should be is another verdict's matter
        ranks = stats.norm.sf(self.far / WIDE) / stats.norm.sf(FAR)
        return bool(stats.kstest(ranks, "uniform").pvalue > ALARM)
