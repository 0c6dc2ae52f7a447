"""What a run does at a checkpoint and at its end: evaluate, write down, save, tell."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from dither.files import write_json
from dither.privacy.accountant import epsilon
from dither.privacy.plan import Plan
from dither.train.checkpoint import Checkpoint, save_checkpoint, save_weights
from dither.train.distributed.replicas import require_same_model
from dither.train.distributed.world import World
from dither.train.evaluate import held_out
from dither.train.run import Run, append_lines
from dither.train.setup import Parts
from dither.train.steps import RunStep
from dither.train.summary import summarise
from dither.train.watching import Watchers

_BETWEEN = ("evaluate", "checkpoint")  # no part of a step


@dataclass
class Position:
    """Where the loop stands.

    Attributes:
        step: Steps that made the model.
        spent: Releases made, those of lost lineages included.
        seconds: Training time.
        epsilon: Of what was released by the last checkpoint.
        timing: Seconds by part.
        saved: Step of the last checkpoint.
    """

    step: int = 0
    spent: int = 0
    seconds: float = 0.0
    epsilon: float | None = None
    timing: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    saved: int = -1

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add times by part."""
        for part, value in seconds.items():
            self.timing[part] += value

    def advance(self, seconds: Mapping[str, float]) -> None:
        """Count one step, with its times."""
        self.add(seconds)
        self.step += 1
        self.spent += 1


@final
class Milestones:
    """Checkpoints of one run; all ranks call them together, and rank 0 writes.

    Args:
        run: The run.
        parts: Its moving parts here.
        world: All ranks.
        watchers: Told on rank 0.
        step: What makes the steps.
    """

    def __init__(
        self, run: Run, parts: Parts, world: World, watchers: Watchers, step: RunStep
    ) -> None:
        self._run = run
        self._parts = parts
        self._world = world
        self._watchers = watchers
        self._step = step
        self._lines: list[dict[str, Any]] = []
        self._told: tuple[int, dict[str, float]] | None = None

    def note(self, line: dict[str, Any]) -> None:
        """Keep a step's exact figures, which are rank 0's own records' alone, for the operator."""
        if self._world.is_first:
            self._lines.append(line)

    def _write_notes(self) -> None:
        if self._lines:
            append_lines(self._run.private / "training.jsonl", self._lines)
            self._watchers.trained(self._lines)
            self._lines = []

    def checkpoint(self, position: Position) -> None:
        """Evaluate on held-out records, then save model, position and ledger head.

        Raises:
            ModelError: Training diverged; `ReduceError` on the other ranks.
            OutputError: The disk is full.
            MismatchError: The ranks' models have come apart.
        """
        start = time.perf_counter()
        run, parts, world = self._run, self._parts, self._world
        require_same_model(world, parts.model)
        line = world.first("evaluate and write it down", lambda: self._evaluate(position))
        evaluated = time.perf_counter()
        books = parts.books
        where = Checkpoint(
            run=run.id,
            step=position.step,
            spent=position.spent,
            head=None if books is None else books.head(),
            account=None if books is None else books.header.id,
            seconds=position.seconds,
            timing=position.timing,
            bound=None if parts.adaptive is None else parts.adaptive.bound,
            precision=None if parts.precision is None else parts.precision.state(),
        )
        save_checkpoint(run.checkpoints, where, parts.model, parts.optimizer, ranks=world.ranks)
        position.saved = position.step
        position.add({"evaluate": evaluated - start, "checkpoint": time.perf_counter() - evaluated})
        if line is not None:
            self._watchers.evaluated(line)
            self._measure(position)

    def finish(self, position: Position) -> Path:
        """Write what a finished run leaves: weights, curves, summary."""
        self._world.first("write the summary", lambda: self._summarise(position))
        return self._run.folder

    def _evaluate(self, position: Position) -> dict[str, Any]:
        run, parts = self._run, self._parts
        self._write_notes()
        if run.plan is not None and parts.account is not None and parts.account.insecure is None:
            position.epsilon = _epsilon(run.plan, parts, position.spent)
        metrics = held_out(parts.model, parts.store, parts.split.test).metrics()
        beside = {} if parts.adaptive is None else {"clip_bound": parts.adaptive.bound}
        if parts.precision is not None:
            beside["quantized"] = parts.precision.shares(parts.precision.chosen)["compute"]
            write_json(run.folder / "precision.json", parts.precision.to_json())
        line = {
            "step": position.step,
            "epsilon": position.epsilon,
            **metrics,
            "seconds": position.seconds,
            **beside,
        }
        # Lines first: those after the last whole checkpoint are dropped on resume.
        append_lines(run.folder / "metrics.jsonl", [line])
        return line

    def _measure(self, position: Position) -> None:
        """Tell what the steps since the last time cost."""
        now = dict(position.timing)
        before, then = self._told or (position.step, now)
        self._told = (position.step, now)
        steps = position.step - before
        if steps <= 0:
            return
        figures = {
            f"seconds/{part}": (value - then.get(part, 0.0)) / steps
            for part, value in now.items()
            if part not in _BETWEEN
        }
        figures["bytes_per_step"] = float(self._step.bytes_sent)
        pool = self._step.pool_stats()
        if pool is not None:
            figures |= {
                "pool/ready": float(pool.ready),
                "pool/used": float(pool.used),
                "pool/dry": float(pool.dry),
            }
        self._watchers.measured(position.step, figures)

    def _summarise(self, position: Position) -> None:
        run, parts = self._run, self._parts
        final_one = held_out(parts.model, parts.store, parts.split.test)
        save_weights(run.folder / "model.safetensors", parts.model)
        write_json(run.folder / "curves.json", final_one.curves())
        summary = summarise(
            run,
            parts,
            step=position.step,
            seconds=position.seconds,
            timing=position.timing,
            metrics=final_one.metrics(),
            ranks=self._world.world_size,
        )
        write_json(run.folder / "summary.json", summary)


def _epsilon(plan: Plan, parts: Parts, spent: int) -> float:
    """Return ε of what was released so far, quantiles and probes included."""
    events = [(plan.event, spent)]
    if parts.adaptive is not None:
        events.append((parts.adaptive.account.plan.event, parts.adaptive.releases))
    if parts.precision is not None and parts.precision.probe is not None:
        probe = parts.precision.probe
        events.append((probe.account.plan.event, probe.releases))
    return epsilon(events, plan.delta, plan.relation)
