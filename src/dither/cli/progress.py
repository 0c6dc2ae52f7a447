"""Progress on standard error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from dither.data.build import Progress as Told
from dither.train.run import Run


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),  # alone gives way on a narrow terminal
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        console=console,
    )


@contextmanager
def building(console: Console) -> Iterator[Told]:
    """Show the stages of building a record store."""
    with _bars(console) as bars:
        tasks: dict[str, TaskID] = {}

        def told(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                _complete(bars)
                tasks[stage] = bars.add_task(stage, note="")
            bars.update(tasks[stage], completed=done, total=total)

        yield told
        _complete(bars)


def _complete(bars: Progress) -> None:
    """Fill the bars of stages that are over: stages run one after another."""
    for task in bars.tasks:
        bars.update(task.id, completed=task.total or task.completed, total=task.total or 1)


class TrainingBar:
    """Steps, time left, ε so far and the last held-out metrics: released values only."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = _bars(console)
        self._task: TaskID | None = None

    def __enter__(self) -> TrainingBar:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def started(self, run: Run, first_step: int, last_step: int) -> None:
        """Show what is ahead, and what a crash has cost."""
        if first_step == last_step:
            self._console.print("this run has no step left: evaluating its model again")
        if last_step < run.config.steps:
            lost = run.config.steps - last_step
            self._console.print(
                f"{lost} of {run.config.steps} steps were charged and lost in an earlier stop: "
                f"this run ends at step {last_step}, within its budget"
            )
        self._task = self._bars.add_task("training", total=last_step, completed=first_step, note="")

    def stepped(self, step: int) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bars.update(self._task, completed=step)

    def evaluated(self, line: dict[str, Any]) -> None:
        """Show held-out metrics, and ε as of this checkpoint."""
        spent = "" if line["epsilon"] is None else f"ε {line['epsilon']:.3f} "
        note = f"{spent}AUROC {line['auroc']:.3f} loss {line['loss']:.3f}"
        if self._task is not None:
            self._bars.update(self._task, note=note)

    def measured(self, step: int, figures: Mapping[str, float]) -> None:
        """Show nothing: a bar has no room for what steps cost."""
