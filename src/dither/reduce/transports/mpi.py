"""Ranks of an MPI program, through mpi4py."""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn, final

import numpy as np

from dither.errors import ConfigError, PeerError
from dither.reduce.endpoint import Buffer, Endpoint
from dither.reduce.transports.hosts import number_hosts
from dither.reduce.transports.refusal import check_whole

# Look again at once for so long, then let others run, then sleep for longer and longer.
_SPIN_SECONDS = 2e-4
_YIELD_SECONDS = 5e-3
_LONGEST_SLEEP = 1e-3
_TAG = 1
# Seconds for the launcher to carry on what this process printed: abort would cut it off.
_LAST_WORDS = 0.5

# Requests that will never be complete, and what they point to: MPI may still write there.
_unfinished: list[tuple[list[Any], list[Buffer]]] = []


@final
class Mpi(Endpoint):
    """One rank of an mpi4py communicator, which is duplicated: messages never mix with the user's.

    All of the communicator's ranks must make one at the same time. Waiting spins for a moment and
    then gives the core away, so that more ranks than cores get on.

    Launchers end the whole program when one of its processes dies; a `PeerError` says that one does
    not answer. MPI_Finalize would wait for it without end, so after such an error this process ends
    by MPI_Abort, which ends all.

    Args:
        comm: An intra-communicator; all processes by default.
        timeout: Seconds that a call may wait for peers.

    Raises:
        ConfigError: mpi4py or MPI is missing, or the communicator joins two groups.
    """

    def __init__(self, comm: Any = None, timeout: float = 300.0) -> None:
        mpi = load_mpi()
        comm = mpi.COMM_WORLD if comm is None else comm
        if comm == mpi.COMM_NULL or comm.Is_inter():
            raise ConfigError(
                expected="a communicator of one group of ranks",
                got="no communicator" if comm == mpi.COMM_NULL else "one between two groups",
                fix="pass COMM_WORLD or a part of it",
            )
        self._mpi = mpi
        self._timeout = timeout
        self._broken: str | None = None
        self._comm = comm.Dup()
        self._comm.Set_errhandler(mpi.ERRORS_RETURN)
        self._rank = int(self._comm.Get_rank())
        self._world_size = int(self._comm.Get_size())
        self._types = _sum_types(mpi)
        self._hosts = self._find_hosts()

    @property
    def rank(self) -> int:
        """Rank in the communicator."""
        return self._rank

    @property
    def world_size(self) -> int:
        """Size of the communicator."""
        return self._world_size

    @property
    def hosts(self) -> tuple[int, ...]:
        """By whom ranks can share memory with."""
        return self._hosts

    @property
    def timeout(self) -> float:
        """Seconds that a call may wait for peers."""
        return self._timeout

    def send(self, to: int, message: Buffer) -> None:
        """Send; large messages wait for the receiver."""
        if message.size:
            self._run(
                lambda: [self._comm.Isend(self._bytes(message), to, _TAG)], [message], f"rank {to}"
            )

    def receive(self, source: int, out: Buffer) -> None:
        """Receive."""
        if out.size:
            self._run(
                lambda: [self._comm.Irecv(self._bytes(out), source, _TAG)],
                [out],
                f"rank {source}",
                out,
            )

    def exchange(self, to: int, message: Buffer, source: int, out: Buffer) -> None:
        """Post both, then wait for both."""

        def post() -> list[Any]:
            requests = []
            if out.size:
                requests.append(self._comm.Irecv(self._bytes(out), source, _TAG))
            if message.size:
                requests.append(self._comm.Isend(self._bytes(message), to, _TAG))
            return requests

        if out.size or message.size:
            peers = f"rank {to}" if to == source else f"rank {to} or {source}"
            self._run(post, [message, out], peers, out)

    def all_reduce(self, buffer: Buffer) -> bool:
        """Sum by MPI_Iallreduce: integers as unsigned ones, whose sums C defines modulo 2^bits.

        Floats have the same bits on all ranks where the MPI library says so; MPICH and Open MPI do
        for one process layout.
        """
        if buffer.dtype not in self._types:
            return False
        if buffer.size:
            content = [buffer, buffer.size, self._types[buffer.dtype]]
            self._run(
                lambda: [self._comm.Iallreduce(self._mpi.IN_PLACE, content, self._mpi.SUM)],
                [buffer],
                "the other ranks",
            )
        return True

    def close(self) -> None:
        """Free the duplicate; after an error it is left alone, for that would wait for peers."""
        if self._broken is None and not self._mpi.Is_finalized():
            self._comm.Free()
        self._broken = self._broken or "a closed endpoint"

    def _bytes(self, buffer: Buffer) -> list[Any]:
        return [buffer, buffer.nbytes, self._mpi.BYTE]

    def _run(
        self,
        post: Callable[[], list[Any]],
        buffers: list[Buffer],
        peers: str,
        out: Buffer | None = None,
    ) -> None:
        """Post requests, of them what fills ``out`` first, and wait until they are done."""
        check_whole(self._broken)
        requests: list[Any] = []
        try:
            requests = post()
            states = [self._mpi.Status() for _ in requests]
            done = wait_until(
                lambda: bool(self._mpi.Request.Testall(requests, states)), self._timeout
            )
        except BaseException as error:
            # An interrupt too: what comes to lie in memory that MPI still reads would be sent.
            self._abandon(requests, buffers, str(error) or type(error).__name__)
            if isinstance(error, self._mpi.Exception):
                self._fail(peers, error)
            raise
        if not done:
            self._abandon(requests, buffers, f"no answer within {self._timeout:g} s")
            self._fail(peers)
        if out is not None and out.size:
            self._require_whole(states[0].Get_count(self._mpi.BYTE), out.nbytes, peers)

    def _require_whole(self, arrived: int, wanted: int, peers: str) -> None:
        """Refuse a message that is too short, which MPI takes: the rest is memory of before."""
        if arrived != wanted:
            self._abandon([], [], f"a message of {arrived} bytes where {wanted} were due")
            self._fail(peers)

    def _abandon(self, requests: list[Any], buffers: list[Buffer], reason: str) -> None:
        _unfinished.append((requests, buffers))
        self._broken = reason
        atexit.register(_abort, self._mpi)

    def _fail(self, peers: str, cause: BaseException | None = None) -> NoReturn:
        raise PeerError(
            expected=f"{peers} to answer rank {self._rank}",
            got=str(self._broken),
            fix="look at the other ranks' own errors; end the program, then start it anew",
        ) from cause

    def _find_hosts(self) -> tuple[int, ...]:
        nearby = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED, key=self._rank)
        first = nearby.bcast(self._rank, root=0)
        nearby.Free()
        return number_hosts(self._comm.allgather(first))


def _abort(mpi: Any) -> None:
    """End all processes, when this one has nothing more to do."""
    if not mpi.Is_finalized():
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(_LAST_WORDS)
        mpi.COMM_WORLD.Abort(1)


def wait_until(ready: Callable[[], bool], timeout: float) -> bool:
    """Ask until something is ready: at once at first, then with ever longer sleeps between.

    A sleep is a twentieth of the time waited so far, so it adds little, and at most a millisecond.

    Returns:
        Whether it was ready in time.
    """
    start = time.perf_counter()
    while not ready():
        waited = time.perf_counter() - start
        if waited > timeout:
            return False
        if waited > _YIELD_SECONDS:
            time.sleep(min(waited / 20, _LONGEST_SLEEP))
        elif waited > _SPIN_SECONDS:
            os.sched_yield()
    return True


def load_mpi() -> Any:
    """Return mpi4py's MPI; importing it starts MPI.

    Raises:
        ConfigError: mpi4py or an MPI library is missing.
    """
    try:
        from mpi4py import MPI  # noqa: PLC0415 - importing it starts MPI
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            expected="mpi4py and an MPI library",
            got=str(error),
            fix="install dither with its extra: pip install 'dither[mpi]'",
        ) from error
    return MPI


def _sum_types(mpi: Any) -> dict[np.dtype[Any], Any]:
    types: dict[np.dtype[Any], Any]
    types = {np.dtype("float32"): mpi.FLOAT, np.dtype("float64"): mpi.DOUBLE}
    for bits in (8, 16, 32, 64):
        for sign in ("int", "uint"):
            types[np.dtype(f"{sign}{bits}")] = getattr(mpi, f"UINT{bits}_T")
    return types
