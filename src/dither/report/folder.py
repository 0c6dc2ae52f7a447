"""A run folder as values: the released part, and apart from it the operator's part."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path

from dither.errors import ConfigError, DataError
from dither.report.audit import FILE as AUDIT
from dither.report.audit import Audit, read_audit
from dither.report.documents import (
    Document,
    check_format,
    read_document,
    read_lines,
    read_list,
    read_optional,
)
from dither.report.precision import Choices, read_choices
from dither.report.ranks import Start, ranks_of


@dataclass(frozen=True)
class Checkpoint:
    """Exact metrics on held-out records at one step.

    Attributes:
        step: Steps taken.
        epsilon: ε spent so far; None where nothing is promised.
        auroc: Area under the ROC curve, in [0, 1].
        loss: Mean held-out loss, in nats.
        seconds: Wall time since the start.
    """

    step: int
    epsilon: float | None
    auroc: float | None
    loss: float | None
    seconds: float | None


@dataclass(frozen=True)
class Curve:
    """A curve on held-out records, x and y of equal length, both in [0, 1]."""

    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Run:
    """The released part of a run folder. Nothing here was read from its private folder.

    Attributes:
        name: Name of the folder.
        about: ``run.json``.
        summary: ``summary.json``; None while the run has not written one.
        checkpoints: ``metrics.jsonl`` in order of steps.
        roc: False against true positive rate; None until the run ends.
        precision_recall: Recall against precision; None until the run ends.
        choices: Which layers ran in low precision; None without.
        starts: ``starts.jsonl``; none of runs of before it was written.
        audit: ``audit.json``, as `dither audit run --out` lays it there; None without.
    """

    name: str
    about: Document
    summary: Document | None
    checkpoints: tuple[Checkpoint, ...]
    roc: Curve | None
    precision_recall: Curve | None
    choices: Choices | None = None
    starts: tuple[Start, ...] = ()
    audit: Audit | None = None

    @property
    def ranks(self) -> int:
        """On how many processes the run trained at last."""
        return ranks_of(self.summary, self.starts)

    @property
    def finished(self) -> bool:
        """Whether the run ended as planned."""
        return self.summary is not None and self.summary.flag("finished")

    @property
    def spent(self) -> float | None:
        """ε as last written, infinite for an unprotected release; None before the first figure."""
        if self.summary is not None:
            epsilon = self.summary.number("privacy", "epsilon")
        elif self.checkpoints:
            epsilon = self.checkpoints[-1].epsilon
        else:
            return None
        return inf if epsilon is None else epsilon


@dataclass(frozen=True)
class OperatorStep:
    """What only the operator may see of one training step.

    Attributes:
        step: Steps taken.
        loss: Mean training loss of the batch, in nats.
        batch_size: Actual number of records in the batch.
        saturated: Coordinates clamped before noise.
        non_finite: Rows whose gradient was not finite and counted as zero.
        clipped_fraction: Share of rows whose gradient norm exceeded the clip bound.
        norm_histogram: Rows per bin of gradient norm.
    """

    step: int
    loss: float | None
    batch_size: float | None
    saturated: float | None
    non_finite: float | None
    clipped_fraction: float | None
    norm_histogram: tuple[float, ...]


@dataclass(frozen=True)
class OperatorPart:
    """The private part of a run folder.

    Attributes:
        steps: ``private/training.jsonl`` in order.
        norm_edges: Bin edges as multiples of the clip bound; the last may be infinite.
    """

    steps: tuple[OperatorStep, ...]
    norm_edges: tuple[float, ...]


def read_run(path: Path) -> Run:
    """Read the released part of a run folder, finished or not.

    Raises:
        ConfigError: There is no such folder, or it holds no run.
        DataError: A file in it is broken.
    """
    if not path.is_dir():
        got = "a file" if path.exists() else "nothing there"
        raise ConfigError(
            expected=f"a run folder at {path}", got=got, fix="give the --out folder of a run"
        )
    if not (path / "run.json").is_file():
        raise ConfigError(
            expected=f"a run folder with run.json at {path}",
            got="a folder without it",
            fix="give the folder that dither train wrote with --out",
        )
    about = check_format(read_document(path / "run.json"))
    for flag in ("private", "seeded", "forced"):
        about.flag(flag)
    summary = read_optional(path / "summary.json")
    curves = read_optional(path / "curves.json")
    return Run(
        name=path.resolve().name,
        about=about,
        summary=None if summary is None else check_format(summary),
        checkpoints=_checkpoints(read_lines(path / "metrics.jsonl")),
        roc=_curve(curves, "roc", "fpr", "tpr"),
        precision_recall=_curve(curves, "pr", "recall", "precision"),
        choices=read_choices(read_optional(path / "precision.json")),
        starts=tuple(_start(line) for line in read_lines(path / "starts.jsonl")),
        audit=read_audit(path / AUDIT),
    )


def read_operator_part(path: Path) -> OperatorPart | None:
    """Read the private part of a run folder; None where the run recorded none.

    Raises:
        DataError: A file in it is broken.
    """
    folder = path / "private"
    lines = read_lines(folder / "training.jsonl")
    if not lines:
        return None
    return OperatorPart(tuple(_operator_step(line) for line in lines), _edges(folder))


def read_data_part(path: Path) -> Document | None:
    """Read how the run's record store was built; None where nothing tells.

    Raises:
        DataError: The file is broken.
    """
    return read_optional(path / "private" / "data.json")


def check_comparable(run: Run, against: Run) -> None:
    """Refuse to compare runs that saw other tasks or other records.

    Raises:
        ConfigError: They differ in task or record store.
    """
    for what, keys in (("task", ("config", "task")), ("record store", ("store", "id"))):
        ours, theirs = run.about.get(*keys), against.about.get(*keys)
        if ours != theirs:
            raise ConfigError(
                expected=f"two runs on the same {what} to compare ({ours!r} in {run.name})",
                got=f"{theirs!r} in {against.name}",
                fix=f"train both runs on the same {what}, or leave the comparison out",
            )


def _checkpoints(lines: tuple[Document, ...]) -> tuple[Checkpoint, ...]:
    # A resumed run may write a step again; what it wrote last is what stands.
    found = {
        point.step: point
        for point in (
            Checkpoint(
                step=_step(line),
                epsilon=line.number("epsilon"),
                auroc=line.number("auroc"),
                loss=line.number("loss"),
                seconds=line.number("seconds"),
            )
            for line in lines
        )
    }
    return tuple(found[step] for step in sorted(found))


def _start(line: Document) -> Start:
    ranks = line.number("ranks")
    if ranks is None or ranks < 1:
        line.refuse("a number of ranks", ("ranks",))
    return Start(_step(line), int(ranks), line.text("engine"))


def _operator_step(line: Document) -> OperatorStep:
    return OperatorStep(
        step=_step(line),
        loss=line.number("loss"),
        batch_size=line.number("batch_size"),
        saturated=line.number("saturated"),
        non_finite=line.number("non_finite"),
        clipped_fraction=line.number("clipped_fraction"),
        norm_histogram=line.numbers("norm_histogram"),
    )


def _step(line: Document) -> int:
    step = line.number("step")
    if step is None:
        line.refuse("a step", ("step",))
    return int(step)


def _curve(curves: Document | None, name: str, x: str, y: str) -> Curve | None:
    if curves is None or not curves.table(name):
        return None
    curve = Curve(curves.numbers(name, x), curves.numbers(name, y))
    if len(curve.x) != len(curve.y):
        raise DataError(
            expected=f"as many {x} as {y} in curves.json",
            got=f"{len(curve.x)} and {len(curve.y)}",
            fix="let the run write its curves again",
        )
    return curve


def _edges(folder: Path) -> tuple[float, ...]:
    return tuple(inf if edge is None else edge for edge in read_list(folder / "norm_edges.json"))
