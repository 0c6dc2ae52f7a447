"""The figures of the public page, drawn from released or public values only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from dither.report.folder import Checkpoint, Curve, Run
from dither.report.precision import heat_map
from dither.report.statement import guarantee_statement
from dither.report.svg import INK, MUTED, SERIES, SURFACE, draw
from dither.report.words import NONE, Number, count, duration, fixed, percent, rounded_up

PARTS = ("sample", "gather", "clip", "release", "optimizer", "evaluate", "checkpoint", "other")


@dataclass(frozen=True)
class _Look:
    """How one run's line is drawn: told apart by colour and by dashes."""

    run: Run
    label: str
    color: str
    linestyle: str


@dataclass(frozen=True)
class Drawing:
    """A figure with its words; without values it has no drawing and the caption says why."""

    name: str
    title: str
    caption: str
    svg: Markup | None


def public_drawings(run: Run, against: Run | None) -> tuple[Drawing, ...]:
    """Draw every figure of the public page.

    Args:
        run: The run.
        against: A run to compare with, drawn as a second, dashed line.
    """
    return (
        _metric(run, against, "auroc", "Held-out AUROC", "AUROC"),
        _metric(run, against, "loss", "Held-out loss", "loss (nats)"),
        _epsilon(run),
        _step_time(run, against),
        _roc(run, against),
        _precision_recall(run, against),
        *_low_precision(run),
    )


def protected(run: Run) -> bool:
    """Return whether a run carries a guarantee: only then is its ε a finite number."""
    return guarantee_statement(run.about, run.summary, spent=run.spent).private


def kind(run: Run) -> str:
    """Return how a run is named in legends."""
    return "private" if protected(run) else "not private"


def step_axis(axes: Axes) -> None:
    """Label an axis of steps with whole numbers."""
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: count(value))


def _looks(run: Run, against: Run | None) -> list[_Look]:
    looks = [_Look(run, f"this run ({kind(run)})", SERIES[0], "-")]
    if against is not None:
        looks.append(_Look(against, f"compared run ({kind(against)})", SERIES[1], "--"))
    return looks


def _line(
    axes: Axes, x: Sequence[Number], y: Sequence[Number], look: _Look, label: str | None = None
) -> None:
    axes.plot(
        x,
        y,
        label=label or look.label,
        color=look.color,
        linestyle=look.linestyle,
        # Single points would be invisible as a line; many markers would hide it.
        marker="o" if len(x) <= 30 else "",
        markersize=3.5,
    )


def _missing(name: str, title: str, run: Run) -> Drawing:
    reason = "The run recorded none." if run.finished else "The run has not written any yet."
    return Drawing(name, title, reason, None)


def _metric(run: Run, against: Run | None, field: str, title: str, unit: str) -> Drawing:
    def series(which: Run) -> list[tuple[int, float]]:
        values = ((point.step, getattr(point, field)) for point in which.checkpoints)
        return [(step, value) for step, value in values if value is not None]

    ours = series(run)
    if not ours:
        return _missing(field, f"{title} by step", run)

    def paint(axes: Axes) -> None:
        for look in _looks(run, against):
            points = series(look.run)
            _line(axes, [step for step, _ in points], [value for _, value in points], look)
        axes.set_ylabel(unit)
        step_axis(axes)
        _legend(axes, against)

    caption = (
        f"From {fixed(ours[0][1])} at step {count(ours[0][0])} to {fixed(ours[-1][1])} at step "
        f"{count(ours[-1][0])}, on held-out records."
    )
    svg = draw(paint, name=field, label=f"{title} by step. {caption}")
    return Drawing(field, f"{title} by step", caption, svg)


def _epsilon(run: Run) -> Drawing:
    title = "ε spent by step"
    if not protected(run):
        return Drawing("epsilon", title, "Nothing is promised: ε = ∞ from the first step.", None)
    points = [point for point in run.checkpoints if point.epsilon is not None]
    if not points:
        return _missing("epsilon", title, run)
    budget = run.about.number("config", "epsilon")

    def paint(axes: Axes) -> None:
        steps = [0, *(point.step for point in points)]
        spent = [0.0, *(point.epsilon or 0.0 for point in points)]
        # ε grows fastest at first, so between checkpoints only the next one's value is a bound.
        axes.step(steps, spent, where="pre", color=SERIES[0], label="ε spent, at most")
        if budget is not None:
            axes.axhline(budget, color=INK, linestyle=(0, (2, 2)), linewidth=1.4, label="budget")
        axes.set_ylim(bottom=0.0)
        axes.set_ylabel("ε")
        step_axis(axes)
        axes.legend(loc="lower right")

    caption = f"{rounded_up(points[-1].epsilon)} at step {count(points[-1].step)}" + (
        f", of a budget of {rounded_up(budget)}." if budget is not None else "."
    )
    svg = draw(paint, name="epsilon", label=f"ε spent by step. {caption}")
    return Drawing("epsilon", title, caption, svg)


def parts_per_step(run: Run) -> dict[str, float]:
    """Return the parts of the step time in milliseconds per step; empty before the run ends."""
    if run.summary is None:
        return {}
    taken = run.summary.number("steps", "taken")
    if not taken:
        return {}
    parts = {part: run.summary.number("timing", part) or 0.0 for part in PARTS}
    parts = {part: 1e3 * seconds / taken for part, seconds in parts.items()}
    return parts if sum(parts.values()) > 0.0 else {}


def _step_time(run: Run, against: Run | None) -> Drawing:
    title = "Parts of the step time"
    ours = parts_per_step(run)
    if not ours:
        return _missing("time", title, run)
    bars = [("this run", ours)]
    if against is not None and (theirs := parts_per_step(against)):
        bars.append(("compared", theirs))

    def paint(axes: Axes) -> None:
        names = [name for name, _ in bars]
        left = [0.0] * len(bars)
        for part, colour in zip(PARTS, SERIES, strict=True):
            widths = [parts[part] for _, parts in bars]
            axes.barh(names, widths, 0.6, left, label=part, color=colour, ec=SURFACE, lw=1.2)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        # One bar or two, equally thick, the first on top.
        axes.set_ylim(1.5, -0.5 if len(bars) > 1 else -1.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("milliseconds per step")
        axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.28), ncols=4, columnspacing=1.2)

    total = sum(ours.values())
    rest = [part for part in PARTS if part != "release"]
    shares = ", ".join(f"{part} {percent(ours[part] / total)}" for part in rest)
    caption = (
        f"{fixed(total, 2)} ms per step: {shares}. Noise and its charge (release): "
        f"{percent(ours['release'] / total)}."
    )
    svg = draw(paint, name="time", label=f"{title}. {caption}")
    return Drawing("time", title, caption, svg)


def _low_precision(run: Run) -> tuple[Drawing, ...]:
    """Draw the schedule of a run in low precision; nothing for others."""
    if run.choices is None or not run.choices.steps:
        return ()
    last = run.checkpoints[-1].step if run.checkpoints else 0
    title, caption, svg = heat_map(run.choices, last)
    return (Drawing("precision", title, caption, svg),)


def _roc(run: Run, against: Run | None) -> Drawing:
    auroc = run.summary.number("metrics", "auroc") if run.summary else None

    def chance(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.0, linestyle=(0, (1, 2)))

    return _curves(
        run,
        against,
        name="roc",
        title="ROC curve",
        axes_labels=("false positive rate", "true positive rate"),
        pick=lambda which: which.roc,
        caption=f"Final model on held-out records; area {fixed(auroc)}. Dotted: chance.",
        before=chance,
    )


def _precision_recall(run: Run, against: Run | None) -> Drawing:
    curve = run.precision_recall
    share = percent(curve.y[curve.x.index(max(curve.x))]) if curve and curve.x else NONE
    return _curves(
        run,
        against,
        name="pr",
        title="Precision and recall",
        axes_labels=("recall", "precision"),
        pick=lambda which: which.precision_recall,
        caption=f"Final model on held-out records; precision at full recall {share}.",
        before=lambda _: None,
    )


def _curves(
    run: Run,
    against: Run | None,
    *,
    name: str,
    title: str,
    axes_labels: tuple[str, str],
    pick: Callable[[Run], Curve | None],
    caption: str,
    before: Callable[[Axes], None],
) -> Drawing:
    if not (mine := pick(run)) or not mine.x:
        return _missing(name, title, run)

    def paint(axes: Axes) -> None:
        before(axes)
        for look in _looks(run, against):
            if curve := pick(look.run):
                _line(axes, curve.x, curve.y, look)
        axes.set_xlabel(axes_labels[0])
        axes.set_ylabel(axes_labels[1])
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(bottom=-0.01)
        _legend(axes, against)

    svg = draw(paint, name=name, label=f"{title}. {caption}")
    return Drawing(name, title, caption, svg)


def _legend(axes: Axes, against: Run | None) -> None:
    if against is not None:
        axes.legend(loc="best")


def checkpoint_rows(run: Run, most: int = 12) -> tuple[tuple[str, ...], ...]:
    """Return the figures' values as a table, evenly thinned, the last checkpoint kept."""
    points: tuple[Checkpoint, ...] = run.checkpoints
    private = protected(run)
    if len(points) > most:
        last = len(points) - 1
        points = tuple(points[round(index * last / (most - 1))] for index in range(most))
    return tuple(
        (
            count(point.step),
            rounded_up(point.epsilon if private else inf),
            fixed(point.auroc),
            fixed(point.loss),
            duration(point.seconds),
        )
        for point in points
    )
