"""matplotlib figures as inline SVG that follows the page: its colours, its font, its theme."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import matplotlib.style
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dither.files import write_atomic

# Okabe & Ito's palette, told apart with every common colour vision. The page maps each colour to
# a CSS variable, so that a dark theme can lighten it.
SERIES = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8c7a00",
    "#7f7f7f",
)
INK, MUTED, GRID, SURFACE = "#1b1f24", "#59636e", "#d9dee3", "#fefefe"
_VARIABLES = {
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES)},
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    SURFACE: "var(--surface)",
}

_STYLE: dict[str, object] = {
    "svg.hashsalt": "dither",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "figure.constrained_layout.use": True,
}

Size = tuple[float, float]
STANDARD: Size = (5.2, 3.3)


def draw(paint: Callable[[Axes], None], *, name: str, label: str, size: Size = STANDARD) -> Markup:
    """Paint one figure and return it as an ``<svg>`` element.

    Output depends on nothing but the data: no date, fixed identifiers, matplotlib's own defaults
    rather than the user's.

    Args:
        paint: Fills the axes.
        name: Prefix of every identifier, unique on the page.
        label: What a reader who cannot see it is told.
        size: Width and height in inches; 72 units of the drawing each.

    Returns:
        Safe markup: the label is escaped, no text of a run gets into the drawing.
    """
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=size)
        paint(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return Markup(_inline(buffer.getvalue(), name, label))  # noqa: S704 - our own drawing


def write_figure(paint: Callable[[Figure], None], path: Path, *, size: Size) -> None:
    """Paint a figure of its own and write it, in the format that the path's ending names.

    Args:
        paint: Fills the figure.
        path: Where it goes.
        size: Width and height in inches.

    Raises:
        OutputError: It cannot be written.
    """
    kind = path.suffix.lower().lstrip(".")
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with matplotlib.style.context(["default", {**_STYLE, "svg.fonttype": "path"}]):
        figure = Figure(figsize=size)
        paint(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=160, metadata=undated)
    write_atomic(path, buffer.getvalue())


def thinned(values: tuple[float, ...], most: int) -> tuple[float, ...]:
    """Average a long series down to at most some points, in equal runs of neighbours."""
    if len(values) <= most:
        return values
    bounds = [round(index * len(values) / most) for index in range(most + 1)]
    return tuple(sum(values[a:b]) / (b - a) for a, b in pairwise(bounds))


def _inline(document: str, name: str, label: str) -> str:
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>\s*", "", svg, flags=re.DOTALL)  # style.css has it
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", svg)  # only paths and clip paths are referred to
    svg = re.sub(r"\bid=\"", f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r"(?:xlink:)?href=\"#", f'href="#{name}-', svg)
    svg = re.sub(r"font-family: 'DejaVu Sans';\s*", "", svg)  # the page's own font
    svg = re.sub("|".join(_VARIABLES), lambda match: _VARIABLES[match[0]], svg)
    view = re.search(r"viewBox=\"[^\"]*\"", svg)
    box = view[0] if view else ""
    opening = f'<svg {box} role="img" aria-label="{escape(label)}">'
    return re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1).strip()
