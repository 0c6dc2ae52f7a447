"""Interleaved timing, and the one JSON form of every bench."""

from __future__ import annotations

import datetime as dt
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dither.train.run import environment

Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One thing to measure against one baseline.

    Attributes:
        name: Case name, variants after a slash (``mlp/1024``).
        baseline_name: What the baseline is (``plain``, ``mpich``, ...).
        ours: One unit of our work.
        baseline: The same work by the baseline.
        prepare: Done before each of the two, not counted.
        detail: Sizes, types, settings.
        prepare_baseline: Done before the baseline instead of ``prepare``.
        target: Largest ratio that is promised.
    """

    name: str
    baseline_name: str
    ours: Work
    baseline: Work
    prepare: Work = bool
    detail: str = ""
    prepare_baseline: Work | None = None
    target: float | None = None


@dataclass(frozen=True)
class Row:
    """One result. ``ratio`` is ours over baseline: lower is better.

    What could not be measured is a row too, with None for its figures and the reason in ``detail``.

    Attributes:
        case: Case name.
        metric: What was measured, ``time`` unless named.
        unit: Unit of ``ours`` and ``baseline``.
        ours: Median.
        baseline: Median.
        baseline_name: What the baseline is.
        ratio: Median of the ratios pair by pair.
        ratio_low: First quartile of the ratios.
        ratio_high: Third quartile; far from the first means noise: run again.
        pairs: Number of pairs.
        detail: Sizes, types, settings.
        target: Largest ratio that is promised, where one is.
    """

    case: str
    metric: str
    unit: str
    ours: float | None
    baseline: float | None
    baseline_name: str
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    pairs: int
    detail: str = ""
    target: float | None = None


def measure(case: Case, *, pairs: int, warm_up: int = 2) -> Row:
    """Time ours and the baseline in turn, in alternating order.

    Pairs share the machine's mood, so their ratio holds where its speed drifts.

    Args:
        case: What to measure.
        pairs: Number of pairs, at least 2; quartiles of fewer than 4 are guesses.
        warm_up: Pairs that are not counted.
    """
    ours: list[float] = []
    baseline: list[float] = []
    for index in range(-warm_up, pairs):
        contenders = [
            (case.prepare, case.ours, ours),
            (case.prepare_baseline or case.prepare, case.baseline, baseline),
        ]
        for prepare, work, times in contenders if index % 2 else reversed(contenders):
            prepare()
            start = time.perf_counter()
            work()
            if index >= 0:
                times.append(time.perf_counter() - start)
    return summarise(
        case.name,
        "s",
        ours=ours,
        baseline=baseline,
        baseline_name=case.baseline_name,
        detail=case.detail,
        target=case.target,
    )


def summarise(
    case: str,
    unit: str,
    *,
    ours: Sequence[float],
    baseline: Sequence[float],
    baseline_name: str,
    detail: str = "",
    metric: str = "time",
    target: float | None = None,
) -> Row:
    """Return the row of paired figures, at least two."""
    ratios = [mine / theirs for mine, theirs in zip(ours, baseline, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Row(
        case=case,
        metric=metric,
        unit=unit,
        ours=statistics.median(ours),
        baseline=statistics.median(baseline),
        baseline_name=baseline_name,
        ratio=middle,
        ratio_low=low,
        ratio_high=high,
        pairs=len(ratios),
        detail=detail,
        target=target,
    )


def not_measured(case: str, baseline_name: str, reason: str) -> Row:
    """Return the row of what could not be measured."""
    return Row(case, "time", "s", None, None, baseline_name, None, None, None, 0, reason)


def result(bench: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the JSON value of a bench: name, date, host and rows."""
    return {
        "bench": bench,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "host": environment(),
        "rows": [asdict(row) for row in rows],
    }
