"""The processes that train together: how they meet, and what they tell each other beside sums."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any, Literal, TypeVar, final

import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from dither.errors import ConfigError, PeerError
from dither.reduce import small
from dither.reduce.agreement import require_same
from dither.reduce.endpoint import Endpoint
from dither.reduce.transports.mpi import Mpi, load_mpi
from dither.reduce.transports.torch_distributed import TorchDistributed
from dither.train.distributed.heartbeat import during
from dither.train.distributed.place import Place, find_place

__all__ = ["Place", "World", "find_place", "join"]

# Processes do not start at one moment: importing PyTorch from a busy disk takes its time. At least
# so long they wait for each other to meet.
_START = 120.0
_INTERFACE = "GLOO_SOCKET_IFNAME"

Value = TypeVar("Value")
TransportName = Literal["auto", "gloo", "mpi"]


@final
class World:
    """All processes of a run, as this one sees them. `join` makes one; ``World()`` is one alone.

    `broadcast`, `gather`, `consent`, `act` and `require_same` are collective: all ranks call them
    in the same order, from one thread. What goes through them is seen by all ranks and the
    network, so it must be public: nothing that depends on records.

    Args:
        place: Of this process.
        endpoint: Its end of the group, for these small messages; None for one rank alone.
        timeout: Seconds without a sign of life of another rank.
        group: The process group below, if there is one.
    """

    def __init__(
        self,
        place: Place | None = None,
        endpoint: Endpoint | None = None,
        *,
        timeout: float = 300.0,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.place = place or Place()
        self.endpoint = endpoint
        self.timeout = timeout
        self._group = group
        self._held = ExitStack()

    @classmethod
    def over(cls, endpoint: Endpoint) -> World:
        """Return the world of an endpoint's ranks, with its timeout: for tests, on threads."""
        place = Place(endpoint.rank, endpoint.world_size)
        return cls(place, endpoint, timeout=endpoint.timeout)

    @property
    def rank(self) -> int:
        """This rank, 0 ≤ rank < world_size."""
        return self.place.rank

    @property
    def world_size(self) -> int:
        """R, the number of ranks."""
        return self.place.world_size

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes the run folder."""
        return self.rank == 0

    @property
    def ranks(self) -> World | None:
        """Itself, None for one rank alone."""
        return None if self.endpoint is None else self

    @property
    def hosts(self) -> tuple[int, ...]:
        """Number of the host of each rank, from 0 up."""
        return (0,) if self.endpoint is None else self.endpoint.hosts

    def broadcast(self, payload: bytes) -> bytes:
        """Return rank 0's payload on all ranks.

        Raises:
            PeerError: A rank is dead, or late.
        """
        return payload if self.endpoint is None else small.broadcast(self.endpoint, payload)

    def gather(self, payload: bytes) -> list[bytes]:
        """Return every rank's payload, in rank order, on all ranks.

        Raises:
            PeerError: A rank is dead, or late.
        """
        return [payload] if self.endpoint is None else small.gather(self.endpoint, payload)

    def consent(self, problem: str | None) -> None:
        """Go on only where no rank has a problem.

        Args:
            problem: Why this rank cannot go on, in public words; None where it can.

        Raises:
            ReduceError: On all ranks alike.
        """
        if self.endpoint is not None:
            small.consent(self.endpoint, problem)

    def act(self, what: str, action: Callable[[], Value]) -> Value:
        """Return what this rank's action gives; where one rank's fails, all raise.

        Args:
            what: What is done, to say "it could not {what}".
            action: Not collective; may take however long (`during`).

        Raises:
            ReduceError: On the ranks that could; the others raise their own error.
            PeerError: A rank is dead, or stands still.
        """
        if self.endpoint is None:
            return action()
        return small.on_all(self.endpoint, lambda: self.during(action), what)

    def during(self, action: Callable[[], Value]) -> Value:
        """Return what this rank's action gives, once all are done; see `heartbeat.during`."""
        return action() if self.endpoint is None else during(self.endpoint, action)

    def first(self, what: str, action: Callable[[], Value]) -> Value | None:
        """Return what an action of rank 0 alone gives, None on the others; as `act`."""
        return self.act(what, action if self.is_first else _nothing)

    def require_same(self, values: dict[str, str]) -> None:
        """Refuse ranks that differ.

        Args:
            values: By name.

        Raises:
            MismatchError: On all ranks, naming which differs in what.
        """
        if self.endpoint is not None:
            require_same([small.unpack(text) for text in self.gather(small.pack(values))])

    def process_group(self) -> dist.ProcessGroup:
        """Return a gloo process group of all ranks, which all make together at the first call.

        Raises:
            PeerError: A rank does not come.
        """
        if self._group is None:
            self._group = self._made_group()
        return self._group

    def keep(self, context: AbstractContextManager[Value]) -> Value:
        """Enter a context and leave it when the world ends."""
        return self._held.enter_context(context)

    def at_end(self, act: Callable[[], object]) -> None:
        """Do something when the world ends, well or not: nothing that waits for other ranks."""
        self._held.callback(act)

    def __enter__(self) -> World:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave. After an error the group is left as it is: ending it could wait for others."""
        if error is None:
            self._held.close()
            return
        with contextlib.suppress(Exception):  # the error that brought us here says more
            self._held.close()

    def _made_group(self) -> dist.ProcessGroup:
        store = HashStore() if self.endpoint is None else self._common_store()
        return self.keep(_default_group(store, self.place, self.timeout))

    def _common_store(self) -> dist.Store:
        """Make a store at rank 0, at a port of the system's choice, and tell the others."""
        limit = dt.timedelta(seconds=_START)
        size, own = self.world_size, None
        if self.is_first:
            own = TCPStore("0.0.0.0", 0, size, True, limit, wait_for_workers=False)  # noqa: S104
        here = "localhost" if len(set(self.hosts)) == 1 else socket.gethostname()
        host, _, port = self.broadcast(f"{here} {own.port if own else 0}".encode()).partition(b" ")
        return own or TCPStore(host.decode(), int(port), size, False, limit)


def join(
    place: Place | None = None, *, transport: TransportName = "auto", timeout: float = 300.0
) -> World:
    """Meet the other processes; use what comes back in a ``with`` block.

    Args:
        place: Of this process; by default what its launcher says.
        transport: What carries messages: gloo, mpi, or by the launcher.
        timeout: Seconds that a rank may wait for a sum.

    Raises:
        ConfigError: MPI is asked for and is not there, or gloo without a place to meet.
        PeerError: A process does not come.
    """
    found = find_place() if place is None else place
    if found.world_size == 1:
        return World(found, timeout=timeout)
    chosen = transport if transport != "auto" else ("mpi" if found.launcher == "mpi" else "gloo")
    held = ExitStack()
    with held:  # closed here only where the following fails
        endpoint: Endpoint
        group = None
        if chosen == "mpi":
            endpoint = _mpi(found, timeout)
        else:
            group = held.enter_context(_default_group(None, found, timeout))
            endpoint = TorchDistributed(group, timeout=timeout)
        held.enter_context(endpoint)
        world = World(found, endpoint, timeout=timeout, group=group)
        world.keep(held.pop_all())
    return world


def _nothing() -> None:
    return None


def _mpi(place: Place, timeout: float) -> Mpi:
    mpi = load_mpi()
    size = mpi.COMM_WORLD.Get_size()
    if size != place.world_size:
        raise ConfigError(
            expected=f"an MPI program of {place.world_size} processes, as the launcher says",
            got=f"{size} by {mpi.Get_library_version().splitlines()[0]}",
            fix="start with the mpiexec of the MPI library that mpi4py was installed with, or use "
            "--transport gloo",
        )
    return Mpi(timeout=timeout)


class _default_group(AbstractContextManager[dist.ProcessGroup]):  # noqa: N801 - reads as a function
    """torch.distributed's default group: the program's own, or one made here and ended here."""

    def __init__(self, store: dist.Store | None, place: Place, timeout: float) -> None:
        self._store = store
        self._place = place
        self._timeout = timeout
        self._made = False
        self._interface = os.environ.get(_INTERFACE)

    def __enter__(self) -> dist.ProcessGroup:
        place = self._place
        if not dist.is_initialized():
            if self._interface is None and place.local_size == place.world_size:
                os.environ[_INTERFACE] = "lo"  # one host: its name need not resolve
            self._make()
        group = dist.group.WORLD
        if group is None or (dist.get_rank(), dist.get_world_size()) != (
            place.rank,
            place.world_size,
        ):
            raise ConfigError(
                expected=f"a process group with rank {place.rank} of {place.world_size}",
                got=f"one with rank {dist.get_rank()} of {dist.get_world_size()}",
                fix="initialise torch.distributed as the launcher says, or leave it to dither",
            )
        return group

    def __exit__(self, *_: Any) -> None:
        if self._made and dist.is_initialized():
            dist.destroy_process_group()
        if self._interface is None:
            os.environ.pop(_INTERFACE, None)

    def _make(self) -> None:
        place, limit = self._place, max(_START, self._timeout)
        deadline = time.monotonic() + limit

        def rest() -> dt.timedelta:
            return dt.timedelta(seconds=max(1.0, deadline - time.monotonic()))

        try:
            store = self._store or _meet(place, rest())
            store.set_timeout(rest())
            self._made = True
            dist.init_process_group(
                "gloo",
                store=PrefixStore("dither", store),
                rank=place.rank,
                world_size=place.world_size,
                timeout=dt.timedelta(seconds=self._timeout),
            )
        except (RuntimeError, OSError) as error:
            raise PeerError(
                expected=f"all {place.world_size} processes to meet at {place.meet or 'rank 0'} "
                f"within {limit:g} s",
                got=str(error).partition("\n")[0].rstrip("."),
                fix="see that all of them are started, reach that host and port, and that "
                "GLOO_SOCKET_IFNAME, if set, names the network between them",
            ) from error


def _meet(place: Place, limit: dt.timedelta) -> dist.Store:
    if not place.meet:
        raise ConfigError(
            expected="a host and port where processes meet, for --transport gloo under mpiexec",
            got="no MASTER_ADDR and MASTER_PORT",
            fix="set both, the same on all hosts, or leave --transport out",
        )
    found = rendezvous(place.meet, rank=place.rank, world_size=place.world_size, timeout=limit)
    store: dist.Store = next(iter(found))[0]
    return store
