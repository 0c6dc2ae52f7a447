"""The figure of strong scaling: time an epoch against ranks, measured and projected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from dither.report.scale import check_format
from dither.report.svg import MUTED, SERIES, write_figure
from dither.train.distributed.projection import Projected

_COLOURS = {"ddp": SERIES[1], "reduce": SERIES[0]}
_MARKS = {"ddp": "s", "reduce": "o"}
_STYLES = ("-", "--", ":")


def write_scaling_figure(
    path: Path,
    *,
    measured: Mapping[str, Mapping[int, float]],
    projected: Mapping[str, Sequence[Projected]],
    epoch: float,
) -> None:
    """Draw the time of an epoch by number of ranks: a panel an engine.

    Args:
        path: Where it goes.
        measured: Seconds an epoch by engine and number of processes.
        projected: Steps on more ranks, by engine.
        epoch: Steps of an epoch.

    Raises:
        ConfigError: The path's ending names no format.
        OutputError: It cannot be written.
    """
    engines = list(measured)

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(engines), sharey=True, squeeze=False)[0]
        for axes, engine in zip(panels, engines, strict=True):
            _panel(axes, engine, measured[engine], projected.get(engine, ()), epoch)
        panels[0].set_ylabel("time of an epoch")

    write_figure(paint, check_format(path), size=(4.6 * len(engines), 4.0))


def _panel(
    axes: Axes,
    engine: str,
    measured: Mapping[int, float],
    projected: Sequence[Projected],
    epoch: float,
) -> None:
    colour = _COLOURS[engine]
    largest = max([*measured, *(point.ranks for point in projected)])
    if 1 in measured:
        ideal = [measured[1], measured[1] / largest]
        axes.plot([1, largest], ideal, color=MUTED, linewidth=1.0, label="ideal")
    names = list(dict.fromkeys(point.network for point in projected))
    for name, style in zip(names, _STYLES * len(names), strict=False):
        found = [point for point in projected if point.network == name]
        axes.plot(
            [point.ranks for point in found],
            [epoch * point.seconds for point in found],
            color=colour,
            linestyle=style,
            linewidth=1.4,
            marker=".",
            label=f"projected, {name}",
        )
    axes.plot(
        list(measured),
        list(measured.values()),
        linestyle="none",
        marker=_MARKS[engine],
        color=colour,
        label="measured",
    )
    _scales(axes, largest)
    axes.set_title(f"--engine {engine}, private", loc="left")
    axes.legend(loc="lower left")


def _scales(axes: Axes, largest: int) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks([1 << k for k in range(0, 14, 2) if 1 << k <= largest])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("ranks, one thread each")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _seconds(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _seconds(value: float) -> str:
    return f"{value:g} s" if value >= 0.999 else f"{value * 1e3:g} ms"
