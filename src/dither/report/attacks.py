"""Figures of attacks, from what `dither audit` wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from dither.report.scale import check_format
from dither.report.svg import INK, MUTED, SERIES, write_figure

_STYLES = {"likelihood": "-", "loss": "--"}
_MARKS = {"wire": "o", "result": "s", "coalition": "^"}


def write_membership_figure(path: Path, facts: Mapping[str, Any]) -> None:
    """Draw ROC curves of membership inference on log axes, plain and private in one.

    Args:
        path: Where it goes.
        facts: What `dither audit membership` found.

    Raises:
        ConfigError: The path's ending names no format.
        OutputError: It cannot be written.
    """

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        least = 1.0
        for colour, model in zip(SERIES, facts["models"], strict=False):
            for roc in model["attacks"]:
                points = [(f, t) for f, t in zip(roc["fpr"], roc["tpr"], strict=True) if f > 0]
                least = min(least, points[0][0])
                axes.plot(
                    *zip(*points, strict=True),
                    color=colour,
                    linestyle=_STYLES[roc["attack"]],
                    label=f"{model['name']}, {roc['attack']}",
                )
            if model["epsilon"] is not None:
                _bound(axes, model["epsilon"], model["delta"], least)
        axes.plot([least, 1.0], [least, 1.0], color=MUTED, linewidth=0.9, label="guessing")
        axes.set(xscale="log", yscale="log", xlim=(least, 1.0), ylim=(least, 1.05))
        axes.set_xlabel("false-positive rate")
        axes.set_ylabel("true-positive rate")
        axes.legend(loc="lower right")

    write_figure(paint, check_format(path), size=(5.4, 4.4))


def _bound(axes: Axes, epsilon: float, delta: float, least: float) -> None:
    fpr = np.geomspace(least, 1.0, 200)
    by_record = np.exp(epsilon) * fpr + delta
    by_absence = 1.0 - np.exp(-epsilon) * (1.0 - delta - fpr)
    most = np.minimum(1.0, np.minimum(by_record, by_absence))
    axes.plot(fpr, most, color=INK, linestyle=":", linewidth=1.2, label=f"most at ε = {epsilon:g}")


def write_inversion_figure(path: Path, facts: Mapping[str, Any]) -> None:
    """Draw the accuracy of model inversion on people in the training data and on others.

    Args:
        path: Where it goes.
        facts: What `dither audit inversion` found.

    Raises:
        ConfigError: The path's ending names no format.
        OutputError: It cannot be written.
    """
    rows: Sequence[Mapping[str, Any]] = facts["rows"]
    attributes = list(dict.fromkeys(row["attribute"] for row in rows))

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(attributes), sharey=True, squeeze=False)[0]
        for axes, attribute in zip(panels, attributes, strict=True):
            _inverted(axes, [row for row in rows if row["attribute"] == attribute])
            axes.set_title(attribute, loc="left")
        panels[0].set_ylabel("accuracy of the attack")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)

    write_figure(paint, check_format(path), size=(2.9 * len(attributes) + 0.6, 3.8))


def _inverted(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    places = np.arange(len(rows))
    members, others = ([row[name] for row in rows] for name in ("accuracy", "control"))
    axes.bar(places - 0.2, members, 0.4, color=SERIES[1], label="in the model")
    axes.bar(places + 0.2, others, 0.4, color=SERIES[0], label="not in it")
    for name, style, label in (
        ("majority", "--", "most common value"),
        ("imputation", ":", "guess without a model"),
    ):
        axes.axhline(rows[0][name], color=INK, linestyle=style, linewidth=1.2, label=label)
    axes.set_xticks(places, [row["name"].replace("epsilon", "ε =") for row in rows])
    lowest = min(*members, *others, rows[0]["majority"])
    axes.set_ylim(max(0.0, lowest - 0.15), None)
    axes.grid(visible=False, axis="x")


def write_allreduce_figure(path: Path, facts: Mapping[str, Any]) -> None:
    """Draw advantages in inferring the mean against their ceilings, by ranks: a panel a trust.

    Args:
        path: Where it goes.
        facts: What `dither audit allreduce` found.

    Raises:
        ConfigError: The path's ending names no format.
        OutputError: It cannot be written.
    """
    kinds = ("local", "distributed", "central")

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(kinds), sharey=True)
        for axes, kind in zip(panels, kinds, strict=True):
            found = [
                row
                for row in facts["rows"]
                if row["trust"].startswith(kind) and row["inference"] == "mean"
            ]
            for place, observer in enumerate(_MARKS):
                _observer(axes, observer, _strongest(found, observer), SERIES[place])
            axes.set_title(kind, loc="left")
        panels[0].set_ylabel("advantage")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)

    write_figure(paint, check_format(path), size=(9.6, 3.8))


def _strongest(rows: Sequence[Mapping[str, Any]], observer: str) -> list[Mapping[str, Any]]:
    """Return, for each number of ranks, the row that a promise covers with the largest ceiling."""
    best: dict[int, Mapping[str, Any]] = {}
    for row in rows:
        if not (row["promised"] and row["observer"].startswith(observer)):
            continue
        if row["ranks"] not in best or row["ceiling"] > best[row["ranks"]]["ceiling"]:
            best[row["ranks"]] = row
    return [best[ranks] for ranks in sorted(best)]


def _observer(axes: Axes, observer: str, rows: Sequence[Mapping[str, Any]], colour: str) -> None:
    ranks = [row["ranks"] for row in rows]
    offset = {"wire": 0.9, "result": 1.0, "coalition": 1.1}[observer]
    values = np.array([row["advantage"] for row in rows])
    ends = np.array([[row["low"], row["high"]] for row in rows]).reshape(-1, 2).T
    axes.errorbar(
        [offset * each for each in ranks],
        values,
        yerr=np.abs(ends - values),
        linestyle="none",
        marker=_MARKS[observer],
        color=colour,
        label=observer,
    )
    axes.plot(ranks, [row["ceiling"] for row in rows], color=colour, linewidth=1.0)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("ranks")
