"""Groups of forked processes that join a shared-memory segment, each with a time limit."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dither.errors import DitherError
from dither.privacy.lattice import Lattice
from dither.reduce.transports.shared_memory import SharedMemory

LIMIT = 90.0
KILLED = "killed"
NEVER = 60.0  # a group's time limit that no test waits for
BLOCK = 1 << 15
LENGTHS = (0, 1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5)
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
FLOATS = ("float32", "float64")

Array = np.ndarray[Any, np.dtype[Any]]
Work = Callable[[SharedMemory], Any]


def in_group(
    world_size: int, work: Work | Sequence[Work], folder: Path, *, timeout: float = 30.0
) -> list[Any]:
    """Run work on every rank of a new group.

    Args:
        world_size: R.
        work: One for all ranks, or one for each; a child that is killed while at it is no error.
        folder: Where ranks meet.
        timeout: That of the group.

    Returns:
        What each returned, the `DitherError` it raised, or `KILLED`, by rank.
    """
    folder.mkdir(exist_ok=True)
    jobs = [work] * world_size if callable(work) else list(work)

    def join_and_work(rank: int) -> Any:
        with SharedMemory.join(folder / "group", rank, world_size, timeout) as endpoint:
            return jobs[rank](endpoint)

    return in_processes([partial(join_and_work, rank) for rank in range(world_size)])


def in_processes(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run each in a forked child; kill all that do not end in time."""
    pipes, children = [], []
    for job in jobs:
        read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forks beside threads
            child = os.fork()
        if child == 0:
            _be_child(job, write)
        os.close(write)
        pipes.append(read)
        children.append(child)
    late = threading.Timer(LIMIT, _kill, [children])
    late.start()
    try:
        reports = [_read(pipe) for pipe in pipes]
    finally:
        late.cancel()
        for child in children:
            os.waitpid(child, 0)
    for report in reports:
        if isinstance(report, Exception) and not isinstance(report, DitherError):
            raise report
    return reports


def _be_child(job: Callable[[], Any], write: int) -> None:
    try:
        try:
            report: Any = job()
        except BaseException as error:  # noqa: BLE001 - the parent judges
            report = error if isinstance(error, DitherError) else RuntimeError(repr(error))
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(report, pipe)
    finally:
        os._exit(0)


def _read(pipe: int) -> Any:
    with os.fdopen(pipe, "rb") as stream:
        content = stream.read()
    return pickle.loads(content) if content else KILLED  # noqa: S301 - our own child's


def _kill(children: list[int]) -> None:
    for child in children:
        os.kill(child, signal.SIGKILL)


def die(after: float = 0.0) -> None:
    """End this process as a crash would."""
    time.sleep(after)
    os.kill(os.getpid(), signal.SIGKILL)


def lattice(bits: int, world_size: int, sigma: float = 2.0**20) -> Lattice:
    """Noise of 128 wire steps."""
    return Lattice(
        step_exponent=-30,
        sigma=sigma,
        clamp=1 << 40,
        wire_shift=13,
        wire_bits=bits,
        world_size=world_size,
    )


def contribution(rank: int, length: int, kind: str) -> Array:
    """All bits of integers, so that sums wrap."""
    generator = np.random.default_rng((rank, length, 1))
    if np.dtype(kind).kind == "f":
        return generator.normal(size=length).astype(kind)
    return np.frombuffer(generator.bytes(length * np.dtype(kind).itemsize), kind).copy()


def sum_all(endpoint: SharedMemory) -> list[str]:
    """Return what differs from adding the ranks' arrays in their order."""
    wrong = []
    for kind in (*INTEGERS, *FLOATS):
        for length in LENGTHS:
            buffer = contribution(endpoint.rank, length, kind)
            assert endpoint.all_reduce(buffer) is True
            want = contribution(0, length, kind)
            for rank in range(1, endpoint.world_size):
                want += contribution(rank, length, kind)
            if buffer.tobytes() != want.tobytes():
                wrong.append(f"{kind} {length}")
    return wrong
