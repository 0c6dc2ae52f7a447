"""The figure of low precision: accuracy against the compute in low precision, by schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from dither.report.scale import check_format
from dither.report.svg import INK, MUTED, SERIES, write_figure

_COLOURS = {
    "none": INK,
    "all": SERIES[1],
    "static": SERIES[3],
    "random": SERIES[4],
    "dpquant": SERIES[0],
    "ramp": SERIES[2],
}
_MARKS = {"none": "s", "all": "X", "static": "^", "random": "v", "dpquant": "o", "ramp": "D"}
_WORDS = {
    "none": "full precision",
    "all": "all layers",
    "static": "static: fixed random layers",
    "random": "random: rotating layers",
    "dpquant": "dpquant: probed and rotating",
    "ramp": "ramp",
}
_COLUMNS = 3
_WIDTH, _HEIGHT = 3.6, 3.3


@dataclass(frozen=True)
class Point:
    """Trainings of one schedule.

    Attributes:
        schedule: Its kind.
        compute: Share of the forward's multiply-adds in low precision.
        accuracy: Mean, in percent.
        error: Standard error of it.
    """

    schedule: str
    compute: float
    accuracy: float
    error: float


def write_quant_figure(path: Path, panels: Mapping[str, Sequence[Point]]) -> None:
    """Draw accuracy on test records against quantised compute: a panel for each way of training.

    What no other schedule beats in both is joined by a line (the Pareto front). Bars are one
    standard error.

    Args:
        path: Where it goes.
        panels: Points by title, at least one.

    Raises:
        ConfigError: The path's ending names no format.
        OutputError: It cannot be written.
    """
    rows = -(-len(panels) // _COLUMNS)
    columns = min(_COLUMNS, len(panels))

    def paint(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, squeeze=False)
        axes = [each for row in grid for each in row]
        for spare in axes[len(panels) :]:
            spare.set_axis_off()
        for one, (title, points) in zip(axes, panels.items(), strict=False):
            _panel(one, title, points)
        for row in grid:
            row[0].set_ylabel("test accuracy, %")
        shown = {point.schedule for points in panels.values() for point in points}
        figure.legend(handles=_keys(shown), loc="outside lower center", ncols=3)

    write_figure(paint, check_format(path), size=(_WIDTH * columns, _HEIGHT * rows + 0.7))


def pareto(points: Sequence[Point]) -> list[Point]:
    """Return what no other beats in compute and in accuracy, from the least compute to the most.

    Args:
        points: Of one panel.
    """
    front: list[Point] = []
    for point in sorted(points, key=lambda each: (-each.compute, -each.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front[::-1]


def _panel(axes: Axes, title: str, points: Sequence[Point]) -> None:
    front = pareto(points)
    axes.plot(
        [each.compute for each in front],
        [each.accuracy for each in front],
        color=MUTED,
        linewidth=1.0,
        zorder=1,
    )
    for point in points:
        axes.errorbar(
            [point.compute],
            [point.accuracy],
            [point.error],
            color=_COLOURS[point.schedule],
            marker=_MARKS[point.schedule],
            linestyle="none",
            markersize=6,
            elinewidth=1.2,
        )
    axes.set_xlim(-0.05, 1.05)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("compute in low precision")
    axes.set_title(title, loc="left", fontsize=9.5)


def _keys(shown: set[str]) -> list[Line2D]:
    keys = [
        Line2D([], [], color=_COLOURS[name], marker=_MARKS[name], linestyle="none", label=words)
        for name, words in _WORDS.items()
        if name in shown
    ]
    return [*keys, Line2D([], [], color=MUTED, linewidth=1.0, label="Pareto front")]
