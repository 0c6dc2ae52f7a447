"""Statistics that look at records, each through a mechanism of OpenDP's.

Sensitivity. A unit (a record, or a person with at most k rows) that is zeroed, added or removed
changes the multiset of rows by at most k rows; one that is replaced, by 2k. OpenDP calls that a
symmetric distance of ``d_in``, and its privacy maps turn it into (ε, δ):

===========  ==========================================================  =========================
statistic    mechanism                                                   cost
===========  ==========================================================  =========================
`Mean`       clamped sum and count, Laplace noise on both, ε/2 each      ε
`Quantiles`  exponential mechanism over public candidates, ε/m each      ε
`Histogram`  Laplace noise on the counts of public bins or codes         ε
`Vocabulary` Laplace noise on counts; those below a threshold vanish     (ε, δ)
===========  ==========================================================  =========================

OpenDP draws its noise exactly, on integers (Canonne, Kamath and Steinke 2004.00010), and what is
summed are integers too, each row rounded by itself: there is no floating-point side channel.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float64

from dither.data.limits import LARGEST
from dither.errors import ConfigError

_MOST_ROWS = 1 << 42
_STEPS = 1 << 30  # of half a range: 2^33 rows of them fit 64 bits

# What a statistic looks at: the numbers of a column, or how often each text occurs in it.
Column: TypeAlias = Float64[np.ndarray, " rows"] | Mapping[str, int]


@dataclass(frozen=True)
class Mean:
    """Mean of a numeric column, clamped to public bounds.

    Stated accuracy: see `Prepared.accuracy`. Both sum and count get noise, for how many rows have a
    number is not public.
    """

    column: str
    lower: float
    upper: float
    epsilon: float

    def __post_init__(self) -> None:
        if not -LARGEST <= self.lower < self.upper <= LARGEST:
            raise _wrong(self, "lower < upper", f"[{self.lower:g}, {self.upper:g}]")
        _check_epsilon(self)


@dataclass(frozen=True)
class Quantiles:
    """Quantiles of a numeric column, out of public candidates.

    Attributes:
        column: Column name.
        levels: Shares of rows below, in [0, 1]; each gets an equal part of ε.
        epsilon: ε of all of them together.
        candidates: What may be the answer, ascending; by default 0 and ± powers of 2^(1/8) between
            10⁻³ and 10¹², which says nothing about the records.
    """

    column: str
    levels: tuple[float, ...]
    epsilon: float
    candidates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.levels or not all(0.0 <= level <= 1.0 for level in self.levels):
            raise _wrong(self, "quantile levels in [0, 1]", repr(self.levels))
        if not self.candidates:
            object.__setattr__(self, "candidates", default_candidates())
        rises = all(low < high for low, high in itertools.pairwise(self.candidates))
        if not rises or not all(abs(candidate) <= LARGEST for candidate in self.candidates):
            raise _wrong(self, "ascending, finite candidates", "others")
        _check_epsilon(self)


@dataclass(frozen=True)
class Histogram:
    """How many rows fall into public bins of a number, or have each of some public codes.

    Attributes:
        column: Column name.
        epsilon: ε > 0.
        edges: Bins of a numeric column: [e₀, e₁), ..., the last one closed.
        codes: Codes of a categorical column.
    """

    column: str
    epsilon: float
    edges: tuple[float, ...] = ()
    codes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ascending = all(low < high for low, high in itertools.pairwise(self.edges))
        if bool(self.edges) == bool(self.codes) or len(self.edges) == 1 or not ascending:
            raise _wrong(self, "ascending edges of bins, or codes", "neither or both")
        _check_epsilon(self)


@dataclass(frozen=True)
class Vocabulary:
    """The codes that occur often enough in a column, most frequent first.

    A code that only few rows have is never released: with probability δ at most that says that a
    unit was there.
    """

    column: str
    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not 0.0 < self.delta < 1.0:
            raise _wrong(self, "a delta in (0, 1)", repr(self.delta))
        _check_epsilon(self)


Statistic: TypeAlias = Mean | Quantiles | Histogram | Vocabulary


@dataclass(frozen=True)
class Prepared:
    """A mechanism that is ready to run once it has been paid for.

    Attributes:
        epsilon: ε towards one unit, by OpenDP's privacy maps.
        delta: δ towards one unit.
        words: The mechanism and its public parameters.
        accuracy: What it is off by at most, each number with probability 95 %: of a sum or a count
            in the statistic's own unit, of a quantile in rows of rank, of a vocabulary the
            threshold below which a code vanishes.
        run: Draws the value. Call it once.
    """

    epsilon: float
    delta: float
    words: str
    accuracy: float
    run: Callable[[Column], Any]


def prepare(statistic: Statistic, d_in: int) -> Prepared:
    """Return a statistic's mechanism for units that change at most so many rows.

    Args:
        statistic: What to release.
        d_in: Rows that one unit may change: k, or 2k where units are replaced.

    Raises:
        ConfigError: OpenDP is not installed, or has no such mechanism.
    """
    dp = _opendp()
    if isinstance(statistic, Mean):
        return _mean(dp, statistic, d_in)
    if isinstance(statistic, Quantiles):
        return _quantiles(dp, statistic, d_in)
    if isinstance(statistic, Histogram):
        return _histogram(dp, statistic, d_in)
    return _vocabulary(dp, statistic, d_in)


def default_candidates() -> tuple[float, ...]:
    """Return a grid that fits any amount to 9 %: 0 and ± 2^(i/8) from 10⁻³ to 10¹²."""
    sizes = [2.0 ** (i / 8) for i in range(-80, 320)]
    return (*(-size for size in reversed(sizes)), 0.0, *sizes)


def _opendp() -> Any:
    try:
        import opendp.prelude as dp  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(
            expected="OpenDP, which releases statistics",
            got="an environment without it",
            fix="pip install 'dither[opendp]'",
        ) from error
    dp.enable_features("contrib")
    return dp


def _numbers(dp: Any) -> Any:
    return dp.vector_domain(dp.atom_domain(T=float, nan=False)), dp.symmetric_distance()


def _laplace_accuracy(scale: float) -> float:
    return scale * math.log(1.0 / 0.05)


def _fitting(dp: Any, make: Callable[[float], Any], d_in: int, epsilon: float) -> tuple[Any, float]:
    """Return the mechanism of the least noise whose map gives ε, and its scale."""
    around = d_in / epsilon  # of all of them, but for rounding; a wider search fails for a tiny ε
    bounds = (around / 4.0, around * 4.0)
    scale = dp.binary_search_param(make, d_in=d_in, d_out=epsilon, bounds=bounds, T=float)
    return make(scale), scale


def _mean(dp: Any, wanted: Mean, d_in: int) -> Prepared:
    half = (wanted.upper - wanted.lower) / 2.0
    middle = wanted.lower + half
    # Whole steps from the middle, at most _STEPS of them a row: OpenDP's own sum of floats looks at
    # 2^20 rows at most.
    total, sum_scale = _counting(dp, wanted.epsilon / 2, d_in * _STEPS)
    rows, count_scale = _counting(dp, wanted.epsilon / 2, d_in)

    def run(column: Column) -> float:
        values = np.clip(_as_numbers(column, wanted), wanted.lower, wanted.upper)
        steps = np.rint((values - middle) / half * _STEPS).clip(-_STEPS, _STEPS).astype(np.int64)
        noisy = total(np.array([steps.sum()]))[0] / _STEPS * half
        found = middle + noisy / max(1, rows(np.array([len(values)]))[0])
        return float(min(max(found, wanted.lower), wanted.upper))

    return Prepared(
        epsilon=float(total.map(d_in * _STEPS)) + float(rows.map(d_in)),
        delta=0.0,
        words=f"OpenDP: sum of distances from the middle of [{wanted.lower:g}, {wanted.upper:g}], "
        f"clamped, in steps of 2^-{_STEPS.bit_length() - 1} of it, and count, Laplace noise of "
        f"scale {sum_scale / _STEPS * half:.6g} and {count_scale:.6g}",
        accuracy=_laplace_accuracy(sum_scale / _STEPS * half),
        run=run,
    )


def _counting(dp: Any, epsilon: float, d_in: int) -> tuple[Any, float]:
    """Return Laplace noise on whole numbers that a unit moves by d_in in L1, and its scale."""
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l1_distance(T="i64")
    return _fitting(dp, lambda s: space >> dp.m.then_laplace(scale=s), d_in, epsilon)


def _quantiles(dp: Any, wanted: Quantiles, d_in: int) -> Prepared:
    candidates = list(wanted.candidates)

    def made(level: float, scale: float) -> Any:
        return _numbers(dp) >> dp.m.then_private_quantile(
            dp.max_divergence(), candidates, alpha=level, scale=scale
        )

    part = wanted.epsilon / len(wanted.levels)
    found = [_fitting(dp, partial(made, level), d_in, part) for level in wanted.levels]

    def run(column: Column) -> tuple[float, ...]:
        values = _as_numbers(column, wanted)
        drawn = [float(mechanism(values)) for mechanism, _ in found]
        return tuple(sorted(drawn)) if _ascending(wanted.levels) else tuple(drawn)

    epsilon = math.fsum(float(mechanism.map(d_in)) for mechanism, _ in found)
    levels = ", ".join(f"{level:g}" for level in wanted.levels)
    return Prepared(
        epsilon=epsilon,
        delta=0.0,
        words=f"OpenDP: quantiles {levels} by the exponential mechanism over {len(candidates)} "
        f"public candidates from {candidates[0]:g} to {candidates[-1]:g}, scale {found[0][1]:.6g}",
        # ln(candidates/5 %) scales of the score, which moves by d_in for each ε of 2·scale.
        accuracy=2.0 * d_in / part * math.log(len(candidates) / 0.05),
        run=run,
    )


def _histogram(dp: Any, wanted: Histogram, d_in: int) -> Prepared:
    # A row is counted once, so d_in rows move the counts by d_in in L1.
    noisy, scale = _counting(dp, wanted.epsilon, d_in)

    def run(column: Column) -> tuple[int, ...]:
        if wanted.edges:
            counts = np.histogram(_as_numbers(column, wanted), bins=np.array(wanted.edges))[0]
        else:
            texts = _as_counts(column, wanted)
            counts = np.array([texts.get(code, 0) for code in wanted.codes])
        return tuple(int(count) for count in noisy(counts.astype(np.int64)))

    what = f"{len(wanted.edges) - 1} bins" if wanted.edges else f"{len(wanted.codes)} codes"
    return Prepared(
        epsilon=float(noisy.map(d_in)),
        delta=0.0,
        words=f"OpenDP: counts of {what}, Laplace noise of scale {scale:.6g}",
        accuracy=_laplace_accuracy(scale),
        run=run,
    )


def _vocabulary(dp: Any, wanted: Vocabulary, d_in: int) -> Prepared:
    domain = dp.map_domain(dp.atom_domain(T=str), dp.atom_domain(T="i64"))
    space = domain, dp.l01inf_distance(dp.absolute_distance(T="i64"))
    # d_in rows change at most d_in counts, by d_in in all, and one of them by d_in at most.
    distance = (d_in, d_in, d_in)

    def made(scale: float, threshold: int) -> Any:
        return space >> dp.m.then_laplace_threshold(scale=scale, threshold=threshold)

    scale = d_in / wanted.epsilon
    while made(scale, _MOST_ROWS).map(distance)[0] > wanted.epsilon:
        scale *= 1.0 + 1e-12
    threshold = d_in + bisect.bisect_left(
        range(d_in, _MOST_ROWS),
        True,
        key=lambda t: made(scale, t).map(distance)[1] <= wanted.delta,
    )
    mechanism = made(scale, threshold)
    epsilon, delta = mechanism.map(distance)

    def run(column: Column) -> tuple[str, ...]:
        # OpenDP takes texts as C does, to the first NUL: two that differ behind it would be one,
        # and the rows of one unit could take away the whole count of another text.
        found = _as_counts(column, wanted).items()
        kept = mechanism({text: int(n) for text, n in found if "\0" not in text})
        return tuple(sorted(kept, key=lambda code: (-kept[code], code)))

    return Prepared(
        epsilon=float(epsilon),
        delta=float(delta),
        words=f"OpenDP: codes whose count, with Laplace noise of scale {scale:.6g}, is at least "
        f"{threshold}",
        accuracy=threshold + _laplace_accuracy(scale),
        run=run,
    )


def _ascending(levels: tuple[float, ...]) -> bool:
    return all(low <= high for low, high in itertools.pairwise(levels))


def _as_numbers(column: Column, wanted: Statistic) -> Float64[np.ndarray, " rows"]:
    if isinstance(column, Mapping):
        raise _wrong(wanted, "a numeric column", "texts")
    return column


def _as_counts(column: Column, wanted: Statistic) -> Mapping[str, int]:
    if not isinstance(column, Mapping):
        raise _wrong(wanted, "a column of codes", "numbers")
    return column


def _check_epsilon(statistic: Statistic) -> None:
    if not (statistic.epsilon > 0.0 and math.isfinite(statistic.epsilon)):
        raise _wrong(statistic, "a finite epsilon above 0", repr(statistic.epsilon))


def _wrong(statistic: Statistic, expected: str, got: str) -> ConfigError:
    kind = type(statistic).__name__.lower()
    return ConfigError(
        expected=f"{expected} for the {kind} of {statistic.column}",
        got=got,
        fix="mend it in the description",
    )
