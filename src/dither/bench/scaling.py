"""`dither bench scaling`: both engines on one and two processes of one thread each, same batch.

Strong scaling: 8192 records a step, however many processes share them. All contenders live in one
pair of processes, each with a model, a loader and an account of its own, and take turns of a few
steps; a step's time is that of the slower rank, sampling included. Among them one process alone
computes what one rank of 2, 4, 64 and 1024 would; the cost model adds the sums between so many.

Records must be public: plain training is measured too, and charged nowhere but here.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dither.bench import scaling_worker
from dither.bench.allreduce_scale import networks
from dither.bench.harness import Row
from dither.bench.launch import lines_of
from dither.bench.scaling_cases import (
    BATCH,
    CASES,
    NAMES,
    Contender,
    Line,
    ScalingCase,
    contenders,
    rows_of,
    rows_without,
    shares,
    table,
)
from dither.bench.scaling_sides import dimension, promise
from dither.data.build import build_store
from dither.data.store import RecordStore
from dither.data.synth import write_synthetic
from dither.errors import ConfigError, ReduceError
from dither.train.distributed.projection import Projected, Share, project

__all__ = ["NAMES", "Scaling", "effort"]

TASK = "unemployment"
SYNTHETIC = 400_000  # persons; some 200,000 in the labour force
_ROUNDS = (12, 40)  # quick, full
_STEPS = 8
_LIMIT = 1800.0


def effort(*, full: bool) -> tuple[int, int]:
    """Return how many turns each contender takes, and of how many steps."""
    return _ROUNDS[full], _STEPS


@dataclass
class Scaling:
    """One measurement: `rows` makes it, the rest tells what came of it.

    Attributes:
        data: Census records; generated ones where there are none.
        price: Of a core hour.
        rounds: Turns of each contender.
        steps: Steps of a turn.
        persons: How many to generate.
        lines: The table, when all rows came.
        projected: By engine, when all rows came.
        measured: Seconds of an epoch by engine and processes, of the private contenders.
        records: That were trained on.
    """

    data: Path | None = None
    price: float | None = None
    rounds: int = _ROUNDS[0]
    steps: int = _STEPS
    persons: int = SYNTHETIC
    lines: list[Line] = field(default_factory=list)
    projected: dict[str, tuple[Projected, ...]] = field(default_factory=dict)
    measured: dict[str, dict[int, float]] = field(default_factory=dict)
    records: int = 0

    @property
    def epoch(self) -> float:
        """Steps in which all records are drawn once on average."""
        return self.records / BATCH

    def rows(self, cases: Collection[str] = ()) -> Iterator[Row]:
        """Yield the rows of these cases, of all when empty.

        Raises:
            ConfigError: The records are too few, or sensitive.
            DataError: They are no census records.
        """
        chosen = [case for case in CASES if not cases or case.name in cases]
        with TemporaryDirectory(prefix="dither-scaling-") as name:
            folder = Path(name)
            store = self._store(folder)
            self.records = int(store.split().train.size)
            try:
                found = self._measure(store, folder, chosen)
            except ReduceError as error:
                yield from rows_without(chosen, error.got)
                return
            detail = (
                f"batch {BATCH}, {self.records} records, {dimension(store.feature_dim)} "
                f"parameters, one thread a process, sampling included; time an epoch"
            )
            for case in chosen:
                yield rows_of(case, found.times, self.epoch, detail)
            self._conclude(store, chosen, found)

    def to_json(self) -> dict[str, Any]:
        """Return table and projection, beside the rows."""
        return {
            "batch_size": BATCH,
            "records": self.records,
            "table": [line.to_json() for line in self.lines],
            "projection": [
                {"engine": engine, **vars(point), "seconds_an_epoch": point.seconds * self.epoch}
                for engine, points in self.projected.items()
                for point in points
            ],
        }

    def _store(self, folder: Path) -> RecordStore:
        """Build a store of the bench's own: its models are no part of anybody's account."""
        source = self.data or write_synthetic(folder / "persons.parquet", self.persons, seed=0)
        store = build_store(source, TASK, folder / "store", on_invalid="drop")
        if store.manifest.sensitive:
            raise ConfigError(
                expected="public records: the bench trains unprotected models too",
                got="records that are not known to be public",
                fix="give ACS PUMS files, or leave --data out",
            )
        if len(store) < 2 * BATCH:
            raise ConfigError(
                expected=f"at least {2 * BATCH} records of the task {TASK}",
                got=str(len(store)),
                fix="give more of them, or leave --data out",
            )
        return store

    def _measure(self, store: RecordStore, folder: Path, chosen: list[ScalingCase]) -> _Found:
        parts = [share for engine in _private_engines(chosen) for share in shares(engine)]
        job = scaling_worker.Job(
            store=store.path,
            folder=folder,
            contenders=tuple(dict.fromkeys((*contenders(chosen), *parts))),
            rounds=self.rounds,
            steps=self.steps,
        )
        found = _Found(steps=scaling_worker.WARM_UP + self.rounds * self.steps)
        for line in lines_of(scaling_worker.command(job), limit=_LIMIT):
            with suppress(json.JSONDecodeError):  # what libraries print
                found.take(json.loads(line))
        return found

    def _conclude(self, store: RecordStore, chosen: list[ScalingCase], found: _Found) -> None:
        self.lines = table(
            contenders(chosen),
            found.times,
            steps=self.epoch,
            trained=found.steps,
            auroc=found.auroc,
            price=self.price,
        )
        where, _ = networks()
        for engine in _private_engines(chosen):
            self.measured[engine] = {
                line.processes: line.seconds
                for line in self.lines
                if line.private and line.engine == engine
            }
            self.projected[engine] = project(
                [
                    Share(BATCH / max(1, part.of), statistics.median(found.times[part.name]))
                    for part in shares(engine)
                ],
                batch_size=float(BATCH),
                dimension=dimension(store.feature_dim),
                networks=where[1:],  # more ranks than this machine has cores are elsewhere
                plan=promise(self.records),
            )


@dataclass
class _Found:
    """What the ranks told."""

    steps: int
    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    auroc: dict[str, float] = field(default_factory=dict)

    def take(self, value: Any) -> None:
        """Take one line."""
        match value:
            case {"kind": "round", "times": times}:
                for name, seconds in times.items():
                    self.times[name].append(seconds)
            case {"kind": "model", "name": name, "auroc": auroc}:
                self.auroc[name] = auroc
            case _:
                pass


def _private_engines(chosen: list[ScalingCase]) -> tuple[str, ...]:
    parts: tuple[Contender, ...] = contenders(chosen)
    return tuple(dict.fromkeys(part.engine for part in parts if part.private))
