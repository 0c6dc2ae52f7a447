"""The figure of a build's scale: time and memory against rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dither.report.scale import check_format
from dither.report.svg import MUTED, SERIES, write_figure

_LIMIT = 2.0  # GB


def write_data_scale_figure(path: Path, points: Sequence[tuple[int, float, int]]) -> None:
    """Draw time and peak memory of builds by number of rows.

    Args:
        path: Where it goes.
        points: Rows, seconds and bytes of each build, by rows.

    Raises:
        ConfigError: The path's ending names no format.
        OutputError: It cannot be written.
    """
    millions = [rows / 1e6 for rows, _, _ in points]

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        seconds = [value for _, value, _ in points]
        _line(left, millions, seconds, SERIES[0])
        slope = seconds[0] / millions[0]
        left.plot([0, millions[-1]], [0, slope * millions[-1]], color=MUTED, linewidth=1.0)
        left.set_title("seconds from CSV to store; grey: as the smallest", loc="left")
        _line(right, millions, [value / 1e9 for _, _, value in points], SERIES[1])
        right.axhline(_LIMIT, color=MUTED, linewidth=1.0)
        right.set_title("peak memory of the process, GB; grey: 2 GB", loc="left")

    write_figure(paint, check_format(path), size=(9.6, 3.6))


def _line(axes: Axes, x: Sequence[float], y: Sequence[float], colour: str) -> None:
    axes.plot(x, y, marker="o", color=colour)
    axes.set_xlabel("million persons")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
