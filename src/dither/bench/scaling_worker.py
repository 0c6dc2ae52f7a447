"""One rank of `dither bench scaling`: makes all contenders, lets them take turns, tells times.

Contenders of one process run on rank 0 while rank 1 waits, blocked, for the end of their turn; so
all of them share the same two processes and the machine's mood.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dither.bench.scaling_cases import Contender
from dither.bench.scaling_sides import Side, Sides
from dither.data.store import RecordStore
from dither.train.distributed.launch import follow_launcher, launch
from dither.train.distributed.place import find_place
from dither.train.distributed.world import World, join
from dither.train.evaluate import held_out

RANKS = 2
TIMEOUT = 120.0
# Steps. Those of number 2, 4, 8 and so on check book-keeping anew: in a long run that is next to
# nothing, in a short one it is much.
WARM_UP = 20


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
        store: A record store.
        folder: For ledgers.
        contenders: Who takes turns.
        rounds: Turns of each.
        steps: In a turn.
    """

    store: Path
    folder: Path
    contenders: tuple[Contender, ...]
    rounds: int
    steps: int

    def to_json(self) -> str:
        """Return it as an argument of the worker's."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Read the argument."""
        values = json.loads(text)
        contenders = tuple(Contender(**each) for each in values["contenders"])
        places = {name: Path(values[name]) for name in ("store", "folder")}
        return cls(**{**values, **places, "contenders": contenders})


def main(argument: str) -> None:
    """Measure, and write one JSON object a line on rank 0's standard output."""
    job = Job.from_json(argument)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with join(timeout=TIMEOUT) as world:
        store = RecordStore.open(job.store, verify=False)
        split = store.split()
        sides = Sides(world, store, split, job.folder)
        made = {contender: sides.make(contender) for contender in job.contenders}
        _rounds(world, made, job)
        for contender, side in made.items():
            if world.is_first and side is not None and not contender.of:
                auroc = held_out(side.model, store, split.test).metrics()["auroc"]
                _tell({"kind": "model", "name": contender.name, "auroc": auroc})


def _rounds(world: World, made: dict[Contender, Side | None], job: Job) -> None:
    for side in made.values():
        _turn(world, side, WARM_UP)
    for index in range(job.rounds):
        order = list(made) if index % 2 else list(reversed(made))
        times = {each.name: _turn(world, made[each], job.steps) for each in order}
        if world.is_first:
            _tell({"kind": "round", "times": times})


def _turn(world: World, side: Side | None, steps: int) -> float:
    """Return the seconds a step of the slower rank."""
    dist.barrier(world.process_group())
    start = time.perf_counter()
    if side is not None:
        side.steps(steps)
    seconds = torch.tensor([time.perf_counter() - start], dtype=torch.float64)
    dist.all_reduce(seconds, dist.ReduceOp.MAX, world.process_group())
    return float(seconds) / steps


def _tell(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)  # noqa: T201 - what the bench reads


def command(job: Job) -> Sequence[str]:
    """Return what starts the ranks."""
    return [sys.executable, "-m", __name__, job.to_json()]


def start(argument: str) -> int:
    """Be a rank, or start both; return the exit status."""
    if find_place().launcher == "none":
        again = [sys.executable, "-m", "dither.bench.scaling_worker", argument]
        return launch(again, RANKS, max_restarts=0)
    follow_launcher()
    main(argument)
    return 0


if __name__ == "__main__":
    sys.exit(start(sys.argv[1]))
