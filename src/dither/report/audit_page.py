"""What an audit could tell, in rows, words and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dither.report.audit import FILE, Audit, AuditRun, read_audit
from dither.report.documents import Document
from dither.report.figures import Drawing
from dither.report.svg import INK, SERIES, draw, write_figure
from dither.report.tables import Row
from dither.report.words import count, percent, plain, rounded_up

_SIZE = (5.6, 3.5)


def audit_words(audit: Audit | None) -> tuple[str, ...]:
    """Return what the audit means and does not, in plain words."""
    if audit is None:
        return ()
    words = [
        (
            "Canaries, contributions that are nobody's, joined the training of a run with this "
            "plan, each by the toss of a coin. An attack then guessed from what was released which "
            "were in. From how often it was right follows a lower bound on ε."
        ),
        (
            "A lower bound is not a measurement of ε, and one below the promise is no proof of it: "
            "another attack may tell more. The promise rests on the proof, the code and its tests. "
            "A bound above the promise would be a bug, but for the share of audits that may err by "
            "chance (one minus the confidence)."
        ),
    ]
    if audit.above:
        chance = len(audit.honest) * (1.0 - (audit.about.number("confidence") or 0.0))
        words.append(
            f"{audit.above} of {len(audit.honest)} audited runs gave a bound ABOVE the promise; "
            f"of sound ones about {plain(chance, 2)} would by chance, at most. Do not rely on the "
            "promise until the reason is known."
        )
    if len(audit.honest) < len(audit.runs):
        words.append(
            "Runs with a share of the noise are self-tests: they were not private, on purpose, and "
            "show that the attack sees such a defect."
        )
    return tuple(words)


def audit_rows(audit: Audit | None, run: Document) -> tuple[Row, ...]:
    """Return the rows of the audit.

    Args:
        audit: What was laid into the folder of the run.
        run: ``run.json``, whose plan it should be about.
    """
    if audit is None:
        return ()
    about = audit.about
    same = about.get("plan", "noise_multiplier") == run.get("plan", "noise_multiplier") and all(
        about.get("plan", name) == run.get("plan", name)
        for name in ("steps", "sampling_rate", "delta", "relation", "unit")
    )
    rows = [
        Row("Audited plan", "that of this run" if same else "ANOTHER than that of this run"),
        Row("Promised ε", rounded_up(audit.claimed), f"at δ = {plain(_delta(audit))}"),
        Row("Attack", f"{about.text('score')}, {count(about.number('canaries'))} canaries"),
        Row("Confidence", percent(about.number("confidence")), "of each bound by itself"),
    ]
    rows += [_row(run) for run in audit.runs]
    return tuple(rows)


def _row(run: AuditRun) -> Row:
    right = f"{count(run.about.number('correct'))} of {count(run.about.number('guesses'))} right"
    noise = "" if run.noise is None else f"; noise at most {plain(run.noise, 3)} of the claimed"
    kind = "Audited run" if run.defect is None else f"Self-test, {plain(run.defect)} of the noise"
    return Row(kind, f"ε at least {plain(run.epsilon, 3)}", right + noise)


def audit_drawings(audit: Audit | None) -> tuple[Drawing, ...]:
    """Draw the scores of the first run, and the power, where there are such."""
    if audit is None:
        return ()
    found = []
    for name, title, caption, paint in _figures(audit):
        label = f"{title}. {caption}"
        svg = draw(paint, name=f"audit-{name}", label=label, size=_SIZE)
        found.append(Drawing(f"audit-{name}", title, caption, svg))
    return tuple(found)


def write_audit_figures(folder: Path) -> None:
    """Write the figures of a folder's audit beside it, as ``audit-NAME.svg``.

    Raises:
        DataError: The audit is broken.
        OutputError: A figure cannot be written.
    """
    audit = read_audit(folder / FILE)
    if audit is None:
        return
    for name, _, _, paint in _figures(audit):
        # A default of its own: the closure would see the last of the loop.
        def whole(figure: Figure, one: Callable[[Axes], None] = paint) -> None:
            one(figure.add_subplot())

        write_figure(whole, folder / f"audit-{name}.svg", size=_SIZE)


def _figures(audit: Audit) -> list[tuple[str, str, str, Callable[[Axes], None]]]:
    found: list[tuple[str, str, str, Callable[[Axes], None]]] = []
    if audit.runs:
        first = audit.runs[0].about
        found.append(
            (
                "scores",
                "Scores of canaries",
                (
                    "Where the two curves part, an attack can tell who was in. Of the first "
                    "audited run."
                ),
                lambda axes: _scores(axes, first),
            )
        )
    if audit.power:
        found.append(
            (
                "power",
                "Power of the audit",
                (
                    "Share of simulated audits that see a defect of the noise, by number of "
                    "canaries; at 1 the noise is whole and every alarm is false. Solid: by a bound "
                    "on ε that holds for any mechanism; dashed: by a bound on the noise."
                ),
                lambda axes: _power(axes, audit.power),
            )
        )
    return found


def _scores(axes: Axes, run: Document) -> None:
    edges = run.numbers("scores", "edges")
    for name, color, style in (("in", SERIES[0], "-"), ("out", SERIES[1], "--")):
        counts = run.numbers("scores", name)
        axes.stairs(counts, edges, color=color, linestyle=style, label=f"{name} ({sum(counts):g})")
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("score: log-likelihood ratio of in against out")
    axes.set_ylabel("canaries")
    axes.legend()


def _power(axes: Axes, points: Sequence[Document]) -> None:
    sizes = sorted({point.number("canaries") or 0.0 for point in points})
    for size, color in zip(sizes, SERIES, strict=False):
        row = sorted(
            (p.number("noise"), p.number("detected"), p.number("noise_detected"))
            for p in points
            if p.number("canaries") == size
        )
        noise, detected, weak = zip(*row, strict=True)
        axes.plot(noise, detected, color=color, marker="o", label=f"{count(size)} canaries")
        axes.plot(noise, weak, color=color, linestyle="--", marker="o", markersize=3.0)
    axes.axhline(0.05, color=INK, linewidth=0.8, linestyle=":")
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("share of the claimed noise that is there")
    axes.set_ylabel("share of audits that see it")
    axes.legend()


def _delta(audit: Audit) -> float | None:
    return audit.about.number("claimed", "delta")
