"""Which layers ran in low precision, and when: the heat map of a run's schedule."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from dither.report.documents import Document
from dither.report.svg import GRID, SERIES, SURFACE, Size, draw
from dither.report.words import count, plain

_COLUMNS = 96  # more would be thinner than a line
_LABELS = 40
_LETTERS = 26
_TITLE = "Layers in low precision"


@dataclass(frozen=True)
class Choices:
    """The choices of a run, all released or public.

    Attributes:
        recipe: What was rounded to what.
        kernels: Whether on real kernels of the processor.
        schedule: Name of the schedule.
        layers: Names, in the model's order.
        steps: Steps made before each period.
        chosen: Of each period, which layers ran in low precision, by number.
        compute: Share of the forward's multiply-adds that each period ran so.
        impacts: The last average that probes released, by layer; empty without any.
    """

    recipe: str
    kernels: str
    schedule: str
    layers: tuple[str, ...]
    steps: tuple[int, ...]
    chosen: tuple[frozenset[int], ...]
    compute: tuple[float, ...]
    impacts: tuple[float, ...]


def read_choices(document: Document | None) -> Choices | None:
    """Return the choices in ``precision.json``; None where the run has none.

    Raises:
        DataError: The file is broken.
    """
    if document is None:
        return None
    layers = _texts(document, "layers")
    periods = _periods(document)
    impacts = [period.numbers("impacts") for period in periods if period.get("impacts")]
    chosen = tuple(frozenset(int(v) for v in period.numbers("chosen")) for period in periods)
    if not all(0 <= index < len(layers) for names in chosen for index in names):
        document.refuse(f"numbers of the {len(layers)} layers in each period", ("periods",))
    return Choices(
        recipe=document.text("recipe") or "",
        kernels=document.text("kernels") or "",
        schedule=document.text("schedule") or "",
        layers=layers,
        steps=tuple(int(period.number("step") or 0) for period in periods),
        chosen=chosen,
        compute=tuple(period.number("compute") or 0.0 for period in periods),
        impacts=impacts[-1] if impacts and len(impacts[-1]) == len(layers) else (),
    )


def heat_map(choices: Choices, last_step: int) -> tuple[str, str, Markup]:
    """Draw layers by steps, dark where a layer ran in low precision.

    Args:
        choices: Of a run with at least one period.
        last_step: Where the last period ends, so far.

    Returns:
        Title, caption and ``<svg>``.
    """
    columns = _columns(choices, last_step)
    ends = [start for start, _ in columns] + [max(last_step, columns[-1][0] + 1)]

    def paint(axes: Axes) -> None:
        for (left, shares), right in zip(columns, ends[1:], strict=True):
            for row, share in enumerate(shares):
                if share > 0.0:
                    box = Rectangle((left, row - 0.45), right - left, 0.9, lw=0.0)
                    box.set(facecolor=SERIES[0], alpha=share)
                    axes.add_patch(box)
        axes.set_xlim(ends[0], ends[-1])
        axes.set_ylim(len(choices.layers) - 0.5, -0.5)
        every = -(-len(choices.layers) // _LABELS)
        shown = range(0, len(choices.layers), every)
        axes.set_yticks(list(shown), [_label(choices.layers[row]) for row in shown])
        axes.grid(visible=False)
        axes.set_xlabel("step")
        axes.xaxis.set_major_formatter(lambda value, _: count(value))
        handles = [Patch(fc=SERIES[0], label="low precision"), Patch(fc=SURFACE, ec=GRID)]
        handles[1].set_label("full precision")
        axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.4, -0.24), ncols=2)

    caption = _caption(choices)
    size: Size = (5.2, 1.6 + 0.19 * min(_LABELS, len(choices.layers)))
    svg = draw(paint, name="precision", label=f"{_TITLE}. {caption}", size=size)
    return _TITLE, caption, svg


def _columns(choices: Choices, last_step: int) -> list[tuple[int, tuple[float, ...]]]:
    """Return where each column begins and the share of its steps that each layer ran so."""
    rows = range(len(choices.layers))
    periods = len(choices.steps)
    widths = [b - a for a, b in pairwise((*choices.steps, max(last_step, choices.steps[-1] + 1)))]
    bins = min(periods, _COLUMNS)
    bounds = [round(index * periods / bins) for index in range(bins + 1)]
    found = []
    for first, after in pairwise(bounds):
        whole = sum(widths[first:after])
        shares = [
            sum(widths[p] for p in range(first, after) if row in choices.chosen[p]) / whole
            for row in rows
        ]
        found.append((choices.steps[first], tuple(shares)))
    return found


def _caption(choices: Choices) -> str:
    periods = len(choices.steps)
    compute = sum(choices.compute) / periods
    text = (
        f"Recipe {choices.recipe}{_in_brackets(choices.kernels)}, schedule {choices.schedule}, "
        f"{count(periods)} {'choice' if periods == 1 else 'choices'}: in the mean "
        f"{plain(round(100.0 * compute, 1))} % of the forward pass's multiply-adds ran in low "
        "precision."
    )
    if choices.impacts:
        most = max(range(len(choices.layers)), key=lambda row: choices.impacts[row])
        text += (
            f" By the last probe, whose noise this includes, layer {_label(choices.layers[most])} "
            "minds it most."
        )
    return text


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def _label(name: str) -> str:
    """Return a layer's name as it may stand in a drawing."""
    clean = re.sub(r"[^A-Za-z0-9_.\-]", "?", name)
    return clean if len(clean) <= _LETTERS else f"…{clean[-_LETTERS + 1 :]}"


def _texts(document: Document, key: str) -> tuple[str, ...]:
    value = document.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        document.refuse("a list of names", (key,))
    return tuple(value)


def _periods(document: Document) -> Sequence[Document]:
    value = document.get("periods")
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        document.refuse("a list of periods", ("periods",))
    return [
        Document(f"{document.source}, period {number}", item)
        for number, item in enumerate(value, start=1)
    ]
