"""The figure of scale: error and time of private sums against the number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from dither.errors import ConfigError
from dither.reduce.simulate import ErrorPoint, Simulation
from dither.report.svg import INK, MUTED, SERIES, write_figure

FORMATS = (".svg", ".png", ".pdf")
_TRUST_COLOURS = {"local": SERIES[0], "distributed": SERIES[2], "central": SERIES[3]}
_COLOURS = {"clear": INK, "private": SERIES[0], "masked": SERIES[2], "encrypted": SERIES[1]}
_WORDS = {
    "clear": "clear: no protection",
    "private": "private, local (DPAR)",
    "masked": "masked, distributed",
    "encrypted": "encrypted (as HEAR)",
}
_SUSTAINED = "/sustained"


def check_format(path: Path) -> Path:
    """Return a path that a figure can be written to.

    Raises:
        ConfigError: Its ending names no format.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(
            expected=f"a figure that ends in {', '.join(FORMATS)}",
            got=path.name,
            fix="name it for instance scale.svg",
        )
    return path


def write_scale_figure(simulation: Simulation, path: Path) -> None:
    """Draw error and, network by network, time against the number of ranks.

    Raises:
        ConfigError: The path's ending names no format.
        OutputError: It cannot be written.
    """
    columns = 1 + len(simulation.networks)

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, columns)
        _errors(panels[0], simulation.errors)
        for axes, network in zip(panels[1:], simulation.networks, strict=True):
            _times(axes, simulation, network.name)
        panels[1].set_ylabel(f"time of a sum of {_amount(simulation.message)} numbers")
        figure.legend(handles=_keys(simulation), loc="outside lower center", ncols=5)

    write_figure(paint, check_format(path), size=(3.4 * columns, 4.0))


def error_figure_path(path: Path) -> Path:
    """Return where the √R figure goes, beside the whole one: scale-error.svg for scale.svg."""
    return path.with_name(f"{path.stem}-error{path.suffix}")


def write_error_figure(simulation: Simulation, path: Path) -> None:
    """Draw the error alone: the √R figure.

    Raises:
        ConfigError: The path's ending names no format.
        OutputError: It cannot be written.
    """
    write_figure(
        lambda figure: _errors(figure.subplots(), simulation.errors),
        check_format(path),
        size=(5.2, 4.0),
    )


def _errors(axes: Axes, points: Sequence[ErrorPoint]) -> None:
    kinds = [(kind, [p for p in points if p.trust.startswith(kind)]) for kind in _TRUST_COLOURS]
    for kind, found in kinds:
        sizes = [point.world_size for point in found]
        colour = _TRUST_COLOURS[kind]
        axes.plot(sizes, [p.theory for p in found], color=colour, linewidth=1.2)
        spread = [[p.rms - p.low for p in found], [p.high - p.rms for p in found]]
        axes.errorbar(
            sizes, [p.rms for p in found], spread, color=colour, fmt="o", ms=4, label=_name(found)
        )
    axes.plot([], [], color=MUTED, linewidth=1.2, label="theory")
    _ranks(axes, [point.world_size for point in points])
    axes.set_yscale("log")
    axes.set_ylim(0.7, 6.0 * max(point.theory for point in points))  # room for the legend
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("error of the sum, in units of zC")
    axes.set_title("Error, measured", loc="left")
    axes.legend(loc="upper left")


def _name(points: Sequence[ErrorPoint]) -> str:
    trust = points[-1].trust
    law = {"central": "1", "local": "√R"}.get(trust, "√(R/(R−t))")
    if trust.startswith("distributed"):
        trust = f"distributed, t ≤ {trust.removeprefix('distributed')[1:-1]}"
    return f"{trust}: {law}"


def _times(axes: Axes, simulation: Simulation, network: str) -> None:
    points = [point for point in simulation.times if point.network == network]
    for name in dict.fromkeys(point.protection for point in points):
        found = [point for point in points if point.protection == name]
        axes.plot(
            [point.world_size for point in found],
            [point.seconds for point in found],
            color=_COLOURS[name.removesuffix(_SUSTAINED)],
            linestyle=(0, (3, 2)) if name.endswith(_SUSTAINED) else "-",
            linewidth=1.4,
        )
    _ranks(axes, [point.world_size for point in points])
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.15, high * 1.15)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _seconds(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(f"Time, {network}", loc="left")
    _wire(axes, simulation.errors)


def _wire(axes: Axes, points: Sequence[ErrorPoint]) -> None:
    """Mark from where on messages of `local` take 32 bits instead of 16: a step in the times."""
    bits = {point.world_size: point.wire_bits for point in points if point.trust == "local"}
    short = [size for size in bits if bits[size] == 16]
    long = [size for size in bits if bits[size] == 32]
    if short and long:
        border = (max(short) * min(long)) ** 0.5
        axes.axvline(border, color=MUTED, linestyle=":", linewidth=1.0)
        height = axes.get_xaxis_transform()
        for text, side in (("16 bits ", "right"), (" 32 bits", "left")):
            style: dict[str, Any] = {"color": MUTED, "fontsize": 8.5, "va": "bottom"}
            axes.text(border, 0.02, text, ha=side, transform=height, **style)


def _ranks(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    largest = max(sizes)
    axes.set_xticks([1 << k for k in range(1, 14, 3) if 1 << k <= largest])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("ranks R")


def _keys(simulation: Simulation) -> list[Line2D]:
    names = dict.fromkeys(p.protection.removesuffix(_SUSTAINED) for p in simulation.times)
    keys = [Line2D([], [], color=_COLOURS[name], label=_WORDS[name]) for name in names]
    style = (0, (3, 2))
    return [*keys, Line2D([], [], color=MUTED, linestyle=style, label="noise or pads in the call")]


def _seconds(value: float) -> str:
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= 0.999 * scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def _amount(value: int) -> str:
    for scale, unit in ((1 << 20, " Mi"), (1 << 10, " Ki")):
        if value >= scale and value % scale == 0:
            return f"{value // scale}{unit}"
    return str(value)
