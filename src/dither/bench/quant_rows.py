"""The rows of `dither bench quant`: errors against full precision's, and the claims."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import replace

from dither.bench.harness import Row, summarise
from dither.bench.quant_stats import (
    POINTS,
    PROBE_SHARE,
    TIMES,
    Amplification,
    Comparison,
    Figures,
    Finding,
    Findings,
    Paired,
    amplifications,
    comparisons,
)

_BASELINE = "full precision"


def rows_of(found: Findings) -> Iterator[Row]:
    """Yield what was found; every ratio is better when lower.

    Args:
        found: All groups.
    """
    for comparison in comparisons(found):
        ours, whole = found[comparison.group], found[comparison.group.beside("none")]
        yield error_row(ours.group.name, ours.accuracy, whole.accuracy, _BASELINE, _about(ours))
        if comparison.group.schedule == "dpquant":
            yield from _claims(comparison, ours, found)
    for amplification in amplifications(found):
        yield _amplification(amplification)


def error_row(case: str, ours: Figures, theirs: Figures, baseline: str, detail: str) -> Row:
    """Return the row of wrong answers on test records, in percent, paired by seed."""
    seeds = sorted(ours.keys() & theirs.keys())
    errors = [[100.0 - figures[seed] for seed in seeds] for figures in (ours, theirs)]
    if len(seeds) > 1:
        return summarise(
            case,
            "%",
            ours=errors[0],
            baseline=errors[1],
            baseline_name=baseline,
            detail=detail,
            metric="error",
        )
    mine, whole = (statistics.fmean(values) for values in errors)
    ratio = mine / whole if whole else None
    return Row(case, "error", "%", mine, whole, baseline, ratio, ratio, ratio, len(seeds), detail)


def _about(finding: Finding) -> str:
    private = "" if finding.epsilon is None else f", epsilon {finding.epsilon:.2f}"
    return (
        f"{finding.compute:.0%} of compute in {finding.group.recipe}, accuracy "
        f"{finding.mean:.2f} %, {finding.trainings} trainings{private}"
    )


def _claims(comparison: Comparison, ours: Finding, found: Findings) -> Iterator[Row]:
    name = ours.group.name
    lost = comparison.lost
    row = _of_allowed(name, "points lost", "points", value=lost.mean, allowed=POINTS)
    yield replace(row, detail=_interval(lost), pairs=lost.seeds)
    for other, pair in comparison.against.items():
        if other in {"static", "random"}:
            theirs = found[ours.group.beside(other)]
            row = error_row(name, ours.accuracy, theirs.accuracy, other, _test(pair))
            yield replace(row, target=1.0)
    if ours.probe_share is not None:
        share, most = 100.0 * ours.probe_share, 100.0 * PROBE_SHARE
        row = _of_allowed(name, "probe share", "%", value=share, allowed=most)
        yield replace(row, detail="of epsilon, by the probes alone")


def _amplification(found: Amplification) -> Row:
    """Return the row of plain training's loss over DP training's; at most a third is the claim."""
    private, plain = found.private.mean, found.plain.mean
    bounds = [None if end is None else 1.0 / end for end in (found.high, found.low) if end != 0.0]
    low, high = bounds if len(bounds) == 2 else (None, None)
    times = "plain training loses nothing" if found.times is None else f"{found.times:.2f} times"
    return Row(
        case=f"{found.case}/{found.optimizer}/{found.recipe}/all",
        metric="points lost without privacy",
        unit="points",
        ours=plain,
        baseline=private,
        baseline_name=f"lost by {found.optimizer}",
        ratio=plain / private if private > 0.0 else None,
        ratio_low=low if private > 0.0 else None,
        ratio_high=high if private > 0.0 else None,
        pairs=found.private.seeds,
        detail=f"under DP {times} as many" if found.times else times,
        target=1.0 / TIMES,
    )


def _of_allowed(case: str, metric: str, unit: str, *, value: float, allowed: float) -> Row:
    ratio = value / allowed
    return Row(case, metric, unit, value, allowed, "allowed", ratio, ratio, ratio, 1, target=1.0)


def _interval(pair: Paired) -> str:
    return f"95 % interval {pair.low:.2f} to {pair.high:.2f} points, {pair.seeds} seeds"


def _test(pair: Paired) -> str:
    if pair.p_t is None:
        return f"{pair.mean:+.2f} points, {pair.seeds} seeds: no test"
    return (
        f"{pair.mean:+.2f} points, {pair.seeds} seeds, p = {pair.p_t:.3g} (paired t), "
        f"{pair.p_wilcoxon:.3g} (Wilcoxon)"
    )
