"""What ranks run to time algorithms over transports; rank 0 writes a time a line."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from dither.bench.allreduce_group import Group
from dither.errors import DitherError
from dither.reduce.algorithms.auto import NAMES
from dither.reduce.algorithms.registry import sum_over
from dither.reduce.endpoint import Endpoint

TRANSPORTS = ("shared_memory", "mpi", "torch_distributed")
_SHORT = 1 << 16  # bytes up to which one call is too short to time alone
_CALLS = 16


@dataclass(frozen=True)
class Wanted:
    """What to time.

    Attributes:
        transports: Of `TRANSPORTS`.
        algorithms: Names; the back end's own is left out where it has none.
        sizes: Bytes of int32 messages.
        rounds: Times that each is timed, in turn.
    """

    transports: Sequence[str] = TRANSPORTS
    algorithms: Sequence[str] = NAMES
    sizes: Sequence[int] = ()
    rounds: int = 7


@dataclass(frozen=True)
class Timed:
    """The median time of one sum, of the slower rank; or why there is none.

    Attributes:
        transport: Where.
        algorithm: Name; empty where the transport cannot be had.
        world_size: R.
        size: Bytes.
        seconds: Time a call; None with a reason.
        reason: Why not.
    """

    transport: str
    algorithm: str
    world_size: int
    size: int
    seconds: float | None
    reason: str = ""


def timed(group: Group, wanted: Wanted) -> Iterator[Timed]:
    """Yield the times on every rank, transport by transport and size by size."""
    for transport in wanted.transports:
        endpoint, problem = _endpoint(group, transport)
        if endpoint is None:
            yield Timed(transport, "", group.world_size, 0, None, problem)
            continue
        for size in wanted.sizes:
            yield from _size(group, endpoint, transport, size, wanted)


def _endpoint(group: Group, transport: str) -> tuple[Endpoint | None, str]:
    problem: str | None = None
    found: Endpoint | None = None
    try:
        if transport == "shared_memory":
            found = group.shm
        else:
            found = group.mpi_endpoint if transport == "mpi" else group.gloo_endpoint
    except (DitherError, ImportError) as error:
        problem = str(error)
    problem = group.problem(problem)
    return (None, problem) if problem else (found, "")


def _size(
    group: Group, endpoint: Endpoint, transport: str, size: int, wanted: Wanted
) -> Iterator[Timed]:
    buffer = np.zeros(size // 4, np.int32)
    names = [
        name
        for name in wanted.algorithms
        if name != "backend" or endpoint.all_reduce(np.zeros(buffer.size, np.int32))
    ]
    calls = _CALLS if size <= _SHORT else 1
    times: dict[str, list[float]] = {name: [] for name in names}
    for index in range(-1, wanted.rounds):
        for name in names if index % 2 else reversed(names):
            seconds = group.timed(lambda name=name: sum_over(endpoint, buffer, name), bool, calls)  # type: ignore[misc]
            if index >= 0:
                times[name].append(seconds)
    for name in names:
        median = statistics.median(group.slowest(times[name]))
        yield Timed(transport, name, group.world_size, size, median)


def main(arguments: list[str]) -> None:
    """Time what the first argument, a JSON object of `Wanted`'s, asks for."""
    wanted = Wanted(**json.loads(arguments[0]))
    with Group() as group:
        for found in timed(group, wanted):
            if group.rank == 0:
                sys.stdout.write(json.dumps(asdict(found)) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
