"""Ranks that are threads of one process: for tests and simulations of thousands of ranks."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NoReturn, TypeAlias, TypeVar, final

import numpy as np

from dither.errors import ConfigError, PeerError, ReduceError
from dither.reduce.endpoint import Buffer, Endpoint
from dither.reduce.transports.hosts import number_hosts
from dither.reduce.transports.refusal import check_whole

Result = TypeVar("Result")

# Sees every message as it travels: sender, receiver, content. Called in the sender's thread.
Observe: TypeAlias = Callable[[int, int, Buffer], None]

# Thousands of threads share one address space; a rank's Python code needs far less than 8 MiB.
_MANY_RANKS = 64
_SMALL_STACK = 1 << 19
_stack_size_lock = threading.Lock()


class _Group:
    """What the ranks of one group share.

    A rank waits on its own condition only, and says for whom, so that thousands of ranks can wait
    and leave without waking each other.
    """

    def __init__(self, size: int, timeout: float, rendezvous: bool, observe: Observe | None):
        self.size = size
        self.timeout = timeout
        self.rendezvous = rendezvous
        self.observe = observe
        self.arrived = [threading.Condition() for _ in range(size)]
        self.inboxes: list[defaultdict[int, deque[Buffer]]] = [
            defaultdict(deque) for _ in range(size)
        ]
        # taken[receiver][source]: messages of this source that the receiver has copied.
        self.taken: list[defaultdict[int, int]] = [defaultdict(int) for _ in range(size)]
        self.waiting_for: list[set[int]] = [set() for _ in range(size)]
        self.left: list[str | None] = [None] * size
        self.failure: str | None = None

    def wait(self, rank: int, peer: int, ready: Callable[[], bool]) -> str | None:
        """Wait on a rank's condition, held by the caller; return why it is in vain, if it is."""
        deadline = time.monotonic() + self.timeout
        # First say for whom one waits, then look: who leaves does it the other way round.
        self.waiting_for[peer].add(rank)
        try:
            while not ready():
                if self.failure is not None:
                    return self.failure
                if self.left[peer] is not None:
                    return self.left[peer]
                rest = deadline - time.monotonic()
                if rest <= 0.0:
                    return f"no answer from rank {peer} within {self.timeout:g} s"
                self.arrived[rank].wait(rest)
        finally:
            self.waiting_for[peer].discard(rank)
        return None

    def leave(self, rank: int, reason: str) -> None:
        self.left[rank] = reason
        self._wake(tuple(self.waiting_for[rank]))

    def fail(self, reason: str) -> None:
        if self.failure is None:
            self.failure = reason
            self._wake(range(self.size))

    def _wake(self, ranks: Sequence[int]) -> None:
        for rank in ranks:
            with self.arrived[rank]:
                self.arrived[rank].notify_all()


@final
class Threads(Endpoint):
    """One rank of a group of threads; `run_ranks` makes them."""

    def __init__(self, group: _Group, rank: int, hosts: tuple[int, ...]) -> None:
        self._group = group
        self._rank = rank
        self._hosts = hosts
        self._broken: str | None = None
        self._sent: defaultdict[int, int] = defaultdict(int)

    @property
    def rank(self) -> int:
        """This rank."""
        return self._rank

    @property
    def world_size(self) -> int:
        """R."""
        return self._group.size

    @property
    def hosts(self) -> tuple[int, ...]:
        """As declared to `run_ranks`."""
        return self._hosts

    @property
    def timeout(self) -> float:
        """Seconds that a call may wait for peers."""
        return self._group.timeout

    def send(self, to: int, message: Buffer) -> None:
        """Hand a copy over."""
        self._check(to)
        self._post(to, message)
        self._confirm(to)

    def receive(self, source: int, out: Buffer) -> None:
        """Wait for a message and copy it out."""
        self._check(source)
        group, rank = self._group, self._rank
        with group.arrived[rank]:
            inbox = group.inboxes[rank][source]
            reason = group.wait(rank, source, lambda: len(inbox) > 0)
            message = inbox.popleft() if reason is None else None
        if message is None:
            self._fail(source, reason or "no message")
        if message.dtype != out.dtype or message.shape != out.shape:
            self._fail(
                source,
                f"{message.size} {message.dtype} from rank {source} where rank {rank} expected "
                f"{out.size} {out.dtype}",
            )
        np.copyto(out, message)
        if group.rendezvous:
            with group.arrived[source]:
                group.taken[rank][source] += 1
                group.arrived[source].notify_all()

    def exchange(self, to: int, message: Buffer, source: int, out: Buffer) -> None:
        """Hand a copy over and wait for a message."""
        self._check(to)
        self._post(to, message)
        self.receive(source, out)
        self._confirm(to)

    def close(self) -> None:
        """Leave: who waits for this rank learns it."""
        if self._broken is None:
            self._broken = "a closed endpoint"
            self._group.leave(self._rank, f"rank {self._rank} left the group")

    def _post(self, to: int, message: Buffer) -> None:
        group, copy = self._group, message.copy()
        if group.observe is not None:
            group.observe(self._rank, to, copy)
        self._sent[to] += 1
        with group.arrived[to]:
            group.inboxes[to][self._rank].append(copy)
            if to in group.waiting_for[self._rank]:
                group.arrived[to].notify_all()

    def _confirm(self, to: int) -> None:
        group, rank = self._group, self._rank
        if not group.rendezvous:
            return
        with group.arrived[rank]:
            taken, sent = group.taken[to], self._sent[to]
            reason = group.wait(rank, to, lambda: taken[rank] >= sent)
        if reason is not None:
            self._fail(to, reason)

    def _check(self, peer: int) -> None:
        check_whole(self._broken)
        if self._group.failure is not None:
            self._fail(peer, self._group.failure)
        if self._group.left[peer] is not None and not self._group.inboxes[self._rank][peer]:
            self._fail(peer, self._group.left[peer] or "")

    def _fail(self, peer: int, reason: str) -> NoReturn:
        self._broken = reason
        self._group.fail(f"rank {self._rank} failed: {reason}")
        raise PeerError(
            expected=f"rank {peer} to answer rank {self._rank}",
            got=reason,
            fix="look at that rank's own error, then make a new group",
        )

    def abandon(self, error: BaseException) -> None:
        """Break the whole group, because this rank raised an error.

        An error that all ranks raise together only makes this one leave: the others shall still
        learn of theirs.
        """
        self._broken = f"an earlier {type(error).__name__}"
        if isinstance(error, ReduceError) and not isinstance(error, PeerError):
            self._group.leave(self._rank, f"rank {self._rank} left after {type(error).__name__}")
            return
        self._group.fail(f"rank {self._rank} raised {type(error).__name__}: {error}")


def run_ranks(
    world_size: int,
    function: Callable[[Threads], Result],
    *,
    hosts: Sequence[int] | None = None,
    timeout: float = 60.0,
    rendezvous: bool = False,
    observe: Observe | None = None,
) -> list[Result]:
    """Run a function on every rank of a new group, each on a thread of its own.

    Args:
        world_size: R, from one to thousands.
        function: What a rank does with its endpoint.
        hosts: What identifies the host of each rank; all on one by default.
        timeout: Seconds that a rank may wait for a peer.
        rendezvous: Whether a send waits until its message is taken, as MPI's may; otherwise
            messages queue up.
        observe: Sees every message.

    Returns:
        What each rank returned.

    Raises:
        ConfigError: No ranks, or hosts for another number of ranks.
        BaseException: The first error that a rank raised. It breaks the group, so that the others
            end at once.
    """
    outcomes = try_ranks(
        world_size, function, hosts=hosts, timeout=timeout, rendezvous=rendezvous, observe=observe
    )
    if outcomes.first_error is not None:
        raise outcomes.first_error
    return outcomes.results


@dataclass(frozen=True)
class Outcomes(Generic[Result]):
    """How the ranks of a group ended.

    Attributes:
        results: What the ranks without an error returned, in the order of ranks.
        errors: What the others raised, by rank, the first one first.
    """

    results: list[Result]
    errors: dict[int, BaseException]

    @property
    def first_error(self) -> BaseException | None:
        """What went wrong first; the rest may follow from it."""
        return next(iter(self.errors.values()), None)


def try_ranks(
    world_size: int,
    function: Callable[[Threads], Result],
    *,
    hosts: Sequence[int] | None = None,
    timeout: float = 60.0,
    rendezvous: bool = False,
    observe: Observe | None = None,
) -> Outcomes[Result]:
    """Run as `run_ranks` does, and return every rank's error rather than raise the first.

    Raises:
        ConfigError: No ranks, or hosts for another number of ranks.
    """
    declared = _check_ranks(world_size, hosts)
    group = _Group(world_size, timeout, rendezvous, observe)
    results: dict[int, Result] = {}
    errors: dict[int, BaseException] = {}

    def run(rank: int) -> None:
        with Threads(group, rank, declared) as endpoint:
            try:
                results[rank] = function(endpoint)
            except BaseException as error:  # noqa: BLE001 - handed to the caller
                errors[rank] = error
                endpoint.abandon(error)

    threads = _start(world_size, run)
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        group.fail("the caller was interrupted")
        raise
    return Outcomes([results[rank] for rank in sorted(results)], errors)


def _check_ranks(world_size: int, hosts: Sequence[int] | None) -> tuple[int, ...]:
    declared = number_hosts([0] * world_size if hosts is None else hosts)
    if world_size < 1 or len(declared) != world_size:
        raise ConfigError(
            expected="at least one rank and, where hosts are declared, one host a rank",
            got=f"{world_size} ranks, {len(declared)} hosts",
            fix="pass as many hosts as ranks",
        )
    return declared


def _start(count: int, run: Callable[[int], None]) -> list[threading.Thread]:
    threads = [
        threading.Thread(target=run, args=(rank,), name=f"rank {rank}", daemon=True)
        for rank in range(count)
    ]
    with _stack_size_lock:
        usual = threading.stack_size(_SMALL_STACK if count > _MANY_RANKS else 0)
        try:
            for thread in threads:
                thread.start()
        finally:
            threading.stack_size(usual)
    return threads
