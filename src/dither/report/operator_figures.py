"""The figures of the operator's page: exact values of the training records, never released."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from operator import attrgetter

from matplotlib.axes import Axes

from dither.report.documents import Document
from dither.report.figures import Drawing, step_axis
from dither.report.folder import OperatorPart, OperatorStep
from dither.report.svg import INK, SERIES, SURFACE, draw, thinned
from dither.report.tables import Row
from dither.report.words import count, duration, percent, plain

_MOST_POINTS = 400
Pick = Callable[[OperatorStep], float | None]
_loss: Pick = attrgetter("loss")
_batch_size: Pick = attrgetter("batch_size")
_clipped: Pick = attrgetter("clipped_fraction")
_saturated: Pick = attrgetter("saturated")
_non_finite: Pick = attrgetter("non_finite")


def operator_drawings(
    part: OperatorPart, expected_batch: float | None, ranks: int = 1
) -> tuple[Drawing, ...]:
    """Draw the figures of the operator's page.

    Args:
        part: What the run recorded for its operator.
        expected_batch: Public expected batch size of rank 0, drawn as a line; None where unknown.
        ranks: How many trained; the figures are rank 0's alone.
    """
    whose = "" if ranks == 1 else " Of rank 0's own records."
    return tuple(
        replace(each, caption=each.caption + whose) for each in _drawings(part, expected_batch)
    )


def _drawings(part: OperatorPart, expected_batch: float | None) -> tuple[Drawing, ...]:
    return (
        _series(part, _loss, name="loss", title="Training loss", unit="loss (nats)"),
        _series(
            part,
            _batch_size,
            name="batch",
            title="Actual batch size",
            unit="records",
            level=expected_batch,
        ),
        _norms(part),
        _series(part, _clipped, name="clipped", title="Clipped fraction", unit="share of rows"),
        _series(
            part,
            _saturated,
            name="saturated",
            title="Saturated coordinates before noise",
            unit="coordinates",
        ),
    )


def operator_rows(part: OperatorPart, ranks: int = 1) -> tuple[Row, ...]:
    """Return totals over the run: of rank 0's own records, where several ranks trained."""
    steps = part.steps
    whose = "all steps" if ranks == 1 else f"all steps, rank 0's own records of {ranks} ranks'"
    return (
        Row("Steps recorded", count(len(steps))),
        Row("Records in batches", count(_total(part, _batch_size)), whose),
        Row("Mean clipped fraction", percent(_mean(part, _clipped))),
        Row("Saturated coordinates", count(_total(part, _saturated))),
        Row("Non-finite rows", count(_total(part, _non_finite)), "counted as 0"),
    )


def data_rows(data: Document | None) -> tuple[Row, ...]:
    """Return what became of the rows on their way into the store, exactly, and stage times."""
    if data is None:
        return ()
    rows, seconds = data.table("rows"), data.table("seconds")
    counts = [
        Row(f"rows {name.replace('_', ' ')}", count(value))
        for name, value in rows.items()
        if isinstance(value, int)
    ]
    by_column = [
        Row(f"{kind} {column}", count(data.number("rows", kind, column)), "rows")
        for kind in ("missing", "unknown")
        for column in data.table("rows", kind)
    ]
    kept, positives = data.number("rows", "kept"), data.number("rows", "positives")
    share = None if not kept or positives is None else positives / kept
    times = [Row(f"time: {stage}", duration(data.number("seconds", stage))) for stage in seconds]
    engine = Row("engine", data.text("engine") or "unknown")
    return (*counts, *by_column, Row("share of positives", percent(share)), engine, *times)


def _series(
    part: OperatorPart,
    pick: Pick,
    *,
    name: str,
    title: str,
    unit: str,
    level: float | None = None,
) -> Drawing:
    points = [(float(step.step), value) for step in part.steps if (value := pick(step)) is not None]
    title = f"{title} by step"
    if not points:
        return Drawing(name, title, "The run recorded none.", None)
    if not any(value for _, value in points):
        return Drawing(name, title, "Zero at every step.", None)
    steps = thinned(tuple(step for step, _ in points), _MOST_POINTS)
    values = thinned(tuple(value for _, value in points), _MOST_POINTS)

    def paint(axes: Axes) -> None:
        marker = "o" if len(steps) <= 30 else ""
        axes.plot(steps, values, color=SERIES[0], linewidth=1.2, marker=marker, ms=3)
        if level is not None:
            axes.axhline(level, color=INK, linestyle=(0, (2, 2)), linewidth=1.2)
        axes.set_ylabel(unit)
        step_axis(axes)

    caption = f"First {plain(points[0][1], 4)}, last {plain(points[-1][1], 4)}."
    if level is not None:
        caption += f" Dashed: expected, {plain(level, 6)}."
    if len(points) > len(values):
        caption += f" Each point is a mean over about {round(len(points) / len(values))} steps."
    return Drawing(name, title, caption, draw(paint, name=name, label=f"{title}. {caption}"))


def _norms(part: OperatorPart) -> Drawing:
    title = "Gradient norms against the clip bound"
    bins = len(part.norm_edges) - 1
    totals = [0.0] * max(bins, 0)
    for step in part.steps:
        if len(step.norm_histogram) == bins:
            totals = [a + b for a, b in zip(totals, step.norm_histogram, strict=True)]
    if not totals or not sum(totals):
        return Drawing("norms", title, "The run recorded none.", None)
    edges = part.norm_edges
    above = sum(n for n, low in zip(totals, edges, strict=False) if low >= 1.0) / sum(totals)

    def paint(axes: Axes) -> None:
        shares = [total / sum(totals) for total in totals]
        places = [index + 0.5 for index in range(bins)]
        axes.bar(places, shares, width=1.0, color=SERIES[0], edgecolor=SURFACE, linewidth=1.2)
        if 1.0 in edges:
            axes.axvline(edges.index(1.0), color=INK, linestyle=(0, (2, 2)), label="clip bound C")
            axes.legend(loc="best")
        every = max(1, round(bins / 8))
        ticks = [index for index in range(bins + 1) if index % every == 0]
        axes.set_xticks(ticks, [_edge(edges[index]) for index in ticks])
        axes.set_xlabel("gradient norm / C (bins as recorded)")
        axes.set_ylabel("share of rows")
        axes.grid(visible=False, axis="x")

    caption = f"{count(sum(totals))} norms over all steps; {percent(above)} at or above the bound."
    svg = draw(paint, name="norms", label=f"{title}. {caption}")
    return Drawing("norms", title, caption, svg)


def _edge(value: float) -> str:
    return plain(value, 3) if isfinite(value) else "∞"


def _total(part: OperatorPart, pick: Pick) -> float | None:
    values = [value for step in part.steps if (value := pick(step)) is not None]
    return sum(values) if values else None


def _mean(part: OperatorPart, pick: Pick) -> float | None:
    values = [value for step in part.steps if (value := pick(step)) is not None]
    return sum(values) / len(values) if values else None
