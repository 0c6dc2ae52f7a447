"""The tables of the public page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from dither.report.figures import kind, parts_per_step, protected
from dither.report.folder import Run
from dither.report.words import NONE, anything, count, duration, fixed, rounded_up, signed, size


@dataclass(frozen=True)
class Row:
    """One line of a table: a name, its value, and a few words on what it means."""

    name: str
    value: str
    meaning: str = ""


@dataclass(frozen=True)
class Comparison:
    """A run beside another.

    Attributes:
        names: What the two runs are called.
        rows: Name, this run, the other, the difference.
        differing: Settings in which they differ.
    """

    names: tuple[str, str]
    rows: tuple[tuple[str, str, str, str], ...]
    differing: tuple[tuple[str, str, str], ...]


_PLAN = {
    "records": "n, the declared number of training records",
    "sampling_rate": "q, probability of a record to enter a batch",
    "steps": "largest number of noisy steps",
    "l2_clip": "C, bound on the L2 norm of one unit's gradient",
    "noise_multiplier": "z, noise standard deviation over the charged sensitivity",
    "delta": "δ",
    "relation": "neighbouring relation",
    "unit": "unit of privacy",
    "sampler": "how batches are drawn",
    "trust": "who must not learn what",
    "numeric_slack": "share of C charged for floating-point rounding of the sum",
    "lattice_slack": "largest share of C charged for rounding to the lattice",
}

# Paths name machines and users; the rest of the settings is public by choice.
_PATHS = frozenset({"data", "store", "out", "ledger", "resume", "checkpoint", "run", "against"})


def key_figures(run: Run) -> tuple[Row, ...]:
    """Return the few numbers that stand on top."""
    private = protected(run)
    summary = run.summary
    last = run.checkpoints[-1] if run.checkpoints else None
    auroc = summary.number("metrics", "auroc") if summary else last.auroc if last else None
    seconds = summary.number("seconds") if summary else last.seconds if last else None
    spent = rounded_up(run.spent) if private and run.spent is not None else NONE
    return (
        Row("AUROC", fixed(auroc), "on held-out records"),
        Row("ε", spent if private else "∞", _budget(run) if private else "not private"),
        Row("δ", rounded_up(run.about.number("plan", "delta")) if private else NONE, ""),
        Row("Time", duration(seconds), "wall time"),
        Row("Peak memory", size(summary.number("peak_rss_bytes") if summary else None), ""),
        Row(_units(run), count(_records(run)), f"{_split(run)} held out"),
    )


def plan_rows(run: Run) -> tuple[Row, ...]:
    """Return the plan, all of which is public."""
    plan = run.about.table("plan")
    return tuple(Row(name, anything(value), _PLAN.get(name, "")) for name, value in plan.items())


def setting_rows(run: Run) -> tuple[Row, ...]:
    """Return the training settings, without paths."""
    config = run.about.table("config")
    return tuple(Row(name, anything(config[name])) for name in config if name not in _PATHS)


def public_input_rows(run: Run) -> tuple[Row, ...]:
    """Return what the store declares as public, by name."""
    return _rows(run.about.table("store", "public_inputs"))


def released_input_rows(run: Run) -> tuple[Row, ...]:
    """Return the constants that were released from the records, with what each cost."""
    found = run.about.get("store", "released_inputs")
    return tuple(
        Row(
            anything(item.get("name")),
            anything(item.get("value")),
            f"ε = {anything(item.get('epsilon'))}, δ = {anything(item.get('delta'))}, charged as "
            f"{anything(item.get('run'))}; {anything(item.get('statistic'))}",
        )
        for item in (found if isinstance(found, list) else [])
        if isinstance(item, dict)
    )


def quality_rows(run: Run) -> tuple[Row, ...]:
    """Return released counts of the store's rows, where there are any."""
    found = run.about.table("store", "quality")
    if not found:
        return ()
    wide = anything(found.get("accuracy"))
    stages = run.about.table("store", "quality", "stages")
    columns = run.about.table("store", "quality", "columns")
    narrow = anything(found.get("column_accuracy"))
    return (
        *(
            Row(f"rows {name}", anything(n), f"off by at most {wide}, 95 %")
            for name, n in stages.items()
        ),
        *(
            Row(f"missing or unknown {name}", anything(n), f"off by at most {narrow}, 95 %")
            for name, n in columns.items()
        ),
        Row("share of positives", anything(found.get("positive_share")), "of stored rows"),
    )


def environment_rows(run: Run) -> tuple[Row, ...]:
    """Return what the run ran on."""
    return _rows(run.about.table("environment"))


def status_lines(run: Run) -> tuple[str, ...]:
    """Say how far the run came, and what it lost."""
    if run.summary is None:
        return ("This run has not finished. Figures show what it has released so far.",)
    planned, taken, charged, lost = (
        run.summary.number("steps", name) for name in ("planned", "taken", "charged", "lost")
    )
    lines = []
    if not run.finished:
        lines.append(
            f"This run has not finished: {count(taken)} of {count(planned)} planned steps were "
            "taken."
        )
    if lost:
        lines.append(
            f"{count(lost)} of {count(charged)} charged steps were lost: they were charged to the "
            "ledger before a crash and not taken, or taken after the last checkpoint. They stay "
            f"charged, so the run ends early, with {count(taken)} of {count(planned)} planned "
            "steps in its model."
        )
    return tuple(lines)


def compare(run: Run, against: Run) -> Comparison:
    """Set two runs on the same records side by side."""
    return Comparison(
        names=(f"this run ({kind(run)})", f"compared run ({kind(against)})"),
        rows=_comparison_rows(run, against),
        differing=_differing(run.about.table("config"), against.about.table("config")),
    )


def _comparison_rows(run: Run, against: Run) -> tuple[tuple[str, str, str, str], ...]:
    rows = []
    for name, key in (("AUROC", "auroc"), ("Loss", "loss")):
        ours, theirs = _final(run, key), _final(against, key)
        rows.append((name, fixed(ours), fixed(theirs), signed(_minus(ours, theirs))))
    spent = [which.spent if protected(which) else inf for which in (run, against)]
    shown = [NONE if value is None else rounded_up(value) for value in spent]
    rows.append(("ε", shown[0], shown[1], NONE))
    for name, values, words in (
        ("Time", _both(run, against, "seconds"), duration),
        ("Peak memory", _both(run, against, "peak_rss_bytes"), size),
    ):
        rows.append((name, words(values[0]), words(values[1]), _ratio(*values)))
    step = [sum(parts_per_step(which).values()) or None for which in (run, against)]
    rows.append(("ms per step", fixed(step[0], 2), fixed(step[1], 2), _ratio(*step)))
    return tuple(rows)


def _differing(
    ours: Mapping[str, object], theirs: Mapping[str, object]
) -> tuple[tuple[str, str, str], ...]:
    names = [name for name in {**ours, **theirs} if name not in _PATHS]
    return tuple(
        (name, anything(ours.get(name)), anything(theirs.get(name)))
        for name in names
        if ours.get(name) != theirs.get(name)
    )


def _final(run: Run, key: str) -> float | None:
    if run.summary is not None:
        return run.summary.number("metrics", key)
    return getattr(run.checkpoints[-1], key) if run.checkpoints else None


def _both(run: Run, against: Run, key: str) -> tuple[float | None, float | None]:
    ours, theirs = (
        which.summary.number(key) if which.summary else None for which in (run, against)
    )
    return ours, theirs


def _minus(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours - theirs


def _ratio(ours: float | None, theirs: float | None) -> str:
    return f"× {ours / theirs:.2f}" if ours is not None and theirs else NONE


def _budget(run: Run) -> str:
    budget = run.about.number("config", "epsilon")
    words = "spent" if run.summary else "at the last checkpoint"
    return words if budget is None else f"{words}, of {rounded_up(budget)}"


def _records(run: Run) -> float | None:
    stored = run.about.number("store", "records")
    return stored if stored is not None or not run.summary else run.summary.number("records")


def _units(run: Run) -> str:
    return "Persons" if run.about.text("store", "unit") == "person" else "Records"


def _split(run: Run) -> str:
    return count(run.about.number("store", "test_records"))


def _rows(values: Mapping[str, object]) -> tuple[Row, ...]:
    return tuple(Row(name, anything(value)) for name, value in values.items())
