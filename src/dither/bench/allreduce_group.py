"""One rank of the AllReduce bench: its groups, and times that all ranks agree on."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float

from dither.bench.harness import Work
from dither.reduce.endpoint import Endpoint
from dither.reduce.transports.mpi import Mpi, load_mpi
from dither.reduce.transports.shared_memory import SharedMemory
from dither.reduce.transports.torch_distributed import TorchDistributed

TIMEOUT = 60.0


@dataclass(frozen=True)
class Contender:
    """One way to sum, ready to be called again and again.

    Attributes:
        call: Sums once.
        result: Returns what the last call gave.
        error: Root mean square error a coordinate that it must have; 0 for sums without noise.
        clipped: Whether it clips contributions to the bound.
        prepare: Done before calls that are timed, not counted.
        close: Gives back what it holds.
        detail: Types, trust, noise.
        calls: How many calls in a row one preparation serves, at most.
    """

    call: Work
    result: Callable[[], Float[np.ndarray, " size"]]
    error: float = 0.0
    clipped: bool = False
    prepare: Work = bool
    close: Work = bool
    detail: str = ""
    calls: int = 1 << 30


class Group:
    """The ranks of the bench, through every transport; each is made at its first use, by all."""

    def __init__(self) -> None:
        self.mpi = load_mpi()
        self.comm: Any = self.mpi.COMM_WORLD
        self.rank: int = self.comm.Get_rank()
        self.world_size: int = self.comm.Get_size()
        self._held = ExitStack()

    @cached_property
    def folder(self) -> Path:
        """A folder of all ranks, removed at the end."""
        path = tempfile.mkdtemp(prefix="dither-bench-") if self.rank == 0 else None
        folder = Path(self.comm.bcast(path))
        if self.rank == 0:
            self._held.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder

    @cached_property
    def shm(self) -> SharedMemory:
        """Shared memory."""
        return self._held.enter_context(SharedMemory.over(self.mpi_endpoint))

    @cached_property
    def mpi_endpoint(self) -> Endpoint:
        """MPI."""
        return self._held.enter_context(Mpi(timeout=TIMEOUT))

    @cached_property
    def gloo(self) -> dist.ProcessGroup:
        """torch.distributed's default group, over gloo on the loopback interface."""
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(
            "gloo",
            init_method=f"file://{self.folder / 'gloo'}",
            rank=self.rank,
            world_size=self.world_size,
            timeout=dt.timedelta(seconds=TIMEOUT),
        )
        self._held.callback(dist.destroy_process_group)
        group = dist.group.WORLD
        if group is None:
            raise RuntimeError("torch.distributed has no default group")
        return group

    @cached_property
    def gloo_endpoint(self) -> Endpoint:
        """Gloo."""
        return self._held.enter_context(TorchDistributed(self.gloo, timeout=TIMEOUT))

    def slowest(self, seconds: Sequence[float]) -> list[float]:
        """Return for every time that of the slowest rank."""
        out = np.empty(len(seconds))
        self.comm.Allreduce(np.asarray(seconds, float), out, op=self.mpi.MAX)
        return out.tolist()

    def problem(self, mine: str | None) -> str | None:
        """Return the first rank's problem, on all ranks, None where none has any."""
        return next((text for text in self.comm.allgather(mine) if text), None)

    def __enter__(self) -> Group:
        torch.set_num_threads(1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:  # else mpi4py ends all ranks, and closing would wait for them
            self._held.close()

    def timed(self, work: Work, prepare: Work, calls: int) -> float:
        """Return this rank's seconds a call, of some in a row after a barrier of prepared ranks."""
        prepare()
        self.comm.Barrier()
        start = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - start) / calls

    def contest(
        self, ours: Contender, baseline: Contender, *, pairs: int, calls: int, warm_up: int = 2
    ) -> tuple[list[float], list[float]]:
        """Time two contenders in turn, in alternating order; return the slowest ranks' seconds.

        Both are prepared before each is timed, so that nobody's pool fills at the other's cost.
        """
        times: dict[int, list[float]] = {0: [], 1: []}
        sides = ((0, ours, baseline), (1, baseline, ours))
        rounds = min(calls, ours.calls, baseline.calls)
        for index in range(-warm_up, pairs):
            for side, contender, other in sides if index % 2 else reversed(sides):
                other.prepare()
                seconds = self.timed(contender.call, contender.prepare, rounds)
                if index >= 0:
                    times[side].append(seconds)
        return self.slowest(times[0]), self.slowest(times[1])
