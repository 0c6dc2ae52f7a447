"""The launcher's end of the ranks' sockets: grants releases that are charged already.

One line of question, one of answer, a connection a rank::

    hello TOKEN RANK SIZE PID   ->  ok | error TEXT
    lease K                     ->  granted G LEFT | error TEXT
    stats {statistics}          ->  ok | error TEXT
    bye USED {statistics}       ->  ok | error TEXT

What is granted is durably in that rank's ledger before the answer leaves. After ``bye`` the unused
part goes back to the ledger; a connection that ends without it keeps what it leased charged, and
the report then has the statistics that it last sent, as before an abort.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import selectors
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from dither.errors import BudgetExhaustedError, DitherError, LedgerError, OutputError
from dither.privacy.ledger import Ledger
from dither.privacy.ledger_entries import Head
from dither.privacy.plan import Plan

Ended = Literal["well", "lost", "absent", "running"]

_LONGEST_LINE = 1 << 20
_LARGEST_LEASE = 1 << 32
_PATIENCE = 30.0
_CREDENTIALS = struct.Struct("3i")  # Linux: process, user, group


@dataclass
class RankState:
    """What the agent knows of one rank.

    Attributes:
        ledger: Its own account.
        head: The account's last entry, as last seen.
        left: Releases that the run may still charge, as far as this launcher knows.
        ended: How its last connection ended.
        used: Releases that it says it made, if it ended well.
        charged: Releases that this launcher charged to it and did not give back.
        statistics: What it reported, one a connection.
        error: What went wrong with its account, if anything.
    """

    ledger: Ledger
    head: Head
    left: int
    ended: Ended = "absent"
    used: int = 0
    charged: int = 0
    statistics: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None


@dataclass
class _Connection:
    """One rank's socket.

    `process` is a handle of who made it (a number could be another's by now), where the system
    has such; `rank` is None before its hello; `leased` is what this one was granted.
    """

    socket: socket.socket
    process: int | None
    rank: int | None = None
    leased: int = 0
    left: bytes = b""
    statistics: dict[str, Any] | None = None
    done: bool = False


class _RefusedError(Exception):
    """A question that gets ``error`` for an answer."""


class Agent:
    """Serves all ranks of one run from one thread, while it is open as a context.

    Args:
        path: Of the socket, in a folder that only its owner can enter.
        token: What a rank must know.
        plan: The promise; its event is charged, at most ``plan.steps`` times a rank.
        run: Name of the run in the ledgers.
        ledgers: One a rank.
        unlimited: Mode encrypted: nothing is charged, so nothing is granted.
        told: Is told, once, which ranks are missing when others have come.
        patience: Seconds after the first rank until then.
    """

    def __init__(
        self,
        path: Path,
        token: str,
        plan: Plan,
        run: str,
        ledgers: list[Ledger],
        *,
        unlimited: bool = False,
        told: Callable[[str], None] = lambda _: None,
        patience: float = _PATIENCE,
    ) -> None:
        self.path = path
        self.ranks = [
            RankState(ledger, ledger.head(), plan.steps - ledger.charged(run)) for ledger in ledgers
        ]
        self._token = token
        self._plan = plan
        self._run = run
        self._unlimited = unlimited
        self._told = told
        self._patience = patience
        self._came = False
        self._first: float | None = None
        self._selector = selectors.DefaultSelector()
        self._connections: dict[int, _Connection] = {}
        self._stopping = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._thread = threading.Thread(target=self._serve, name="dither-agent", daemon=True)
        self._wake, self._woken = socket.socketpair()

    def __enter__(self) -> Agent:
        try:
            self._listener.bind(str(self.path))
            self._listener.listen(len(self.ranks) + 8)
        except OSError as error:
            self._close()
            raise OutputError(
                expected=f"to open a socket at {self.path}",
                got=error.strerror or str(error),
                fix="set TMPDIR to a short path of a folder that you may write to",
            ) from error
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._wake.send(b"x")
        self._thread.join()
        self._close()
        self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        for each in (self._listener, self._selector, self._wake, self._woken):
            each.close()

    def finish(self, seconds: float) -> None:
        """Wait until no rank is connected any more; then end those that are, as mpiexec has.

        Args:
            seconds: How long to wait before a rank is asked to end, and again before it is killed.
        """
        for number in (0, signal.SIGTERM, signal.SIGKILL):
            for connection in list(self._connections.values()):
                if number and connection.process is not None:
                    with contextlib.suppress(OSError):
                        signal.pidfd_send_signal(connection.process, number)
            deadline = time.monotonic() + seconds
            while self._connections and time.monotonic() < deadline:
                time.sleep(0.01)
            if not self._connections:
                return

    def _serve(self) -> None:
        try:
            while not self._stopping.is_set():
                for key, _ in self._selector.select(self._until_missing()):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj is not self._woken:
                        self._read(self._connections[key.fd])
                if self._until_missing() == 0.0:
                    self._name_missing()
        finally:  # an error of ours must not leave ranks waiting
            self._listener.close()
            for connection in list(self._connections.values()):
                self._end(connection)

    def _until_missing(self) -> float | None:
        """Seconds until the missing ranks are named; None while there is no reason to."""
        if self._first is None or all(state.ended != "absent" for state in self.ranks):
            return None
        return max(0.0, self._first + self._patience - time.monotonic())

    def _name_missing(self) -> None:
        missing = [rank for rank, state in enumerate(self.ranks) if state.ended == "absent"]
        self._first = None  # once
        with contextlib.suppress(OSError, ValueError):  # nobody reads it: not the ranks' fault
            self._told(
                f"dither: {named_ranks(missing)} not in MPI_Init through dither, "
                f"{self._patience:g} s after others: started without the library, it is NOT "
                "PROTECTED, and the others may wait for it for ever; Ctrl-C ends them"
            )

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # it went away before we looked
            return
        raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        process, user, _ = _CREDENTIALS.unpack(raw)
        if user != os.getuid():
            client.close()
            return
        client.settimeout(10.0)  # an answer is short: a rank that does not read it is stuck
        handle: int | None = None
        with contextlib.suppress(OSError, AttributeError):
            handle = os.pidfd_open(process)
        self._connections[client.fileno()] = _Connection(client, handle)
        self._selector.register(client, selectors.EVENT_READ)

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(1 << 16)
        except OSError:
            data = b""
        connection.left += data
        *lines, connection.left = connection.left.split(b"\n")
        if not data or len(connection.left) > _LONGEST_LINE:
            self._end(connection)
            return
        for line in lines:
            try:
                connection.socket.sendall(f"{self._answer(connection, line)}\n".encode())
            except OSError:
                self._end(connection)
                return

    def _end(self, connection: _Connection) -> None:
        found = self._connections.pop(connection.socket.fileno(), None)
        if found is None:
            return
        self._selector.unregister(connection.socket)
        connection.socket.close()
        if connection.process is not None:
            os.close(connection.process)
            connection.process = None
        if connection.rank is not None and not connection.done:
            state = self.ranks[connection.rank]
            state.ended = "lost"
            if connection.statistics is not None:
                state.statistics.append(connection.statistics)

    def _answer(self, connection: _Connection, line: bytes) -> str:
        try:
            return self._said(connection, *line.decode().split(" ", 1))
        except (_RefusedError, ValueError) as error:
            return f"error {error}".replace("\n", " ")

    def _said(self, connection: _Connection, verb: str, rest: str = "") -> str:
        if verb == "hello" and connection.rank is None:
            return self._hello(connection, rest)
        if connection.rank is None or connection.done:
            raise _RefusedError("say hello first")
        if verb == "lease":
            return self._lease(connection, self.ranks[connection.rank], int(rest))
        if verb == "stats":
            connection.statistics = _statistics(rest)
            return "ok"
        if verb == "bye":
            return self._bye(connection, self.ranks[connection.rank], rest)
        raise _RefusedError("no such question")

    def _hello(self, connection: _Connection, text: str) -> str:
        token, rank_text, size_text, _ = text.split(" ")
        rank, size = int(rank_text), int(size_text)
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            raise _RefusedError("this process does not belong to the run")
        if size != len(self.ranks) or not 0 <= rank < size:
            raise _RefusedError(
                f"rank {rank} of {size} came, but the plan is for {len(self.ranks)} ranks: "
                "give dither mpirun the number of ranks that start"
            )
        if self.ranks[rank].ended == "running":
            raise _RefusedError(f"rank {rank} is here already: spawned programs are not covered")
        connection.rank = rank
        self.ranks[rank].ended = "running"
        if not self._came:
            self._came, self._first = True, time.monotonic()
        return "ok"

    def _lease(self, connection: _Connection, state: RankState, count: int) -> str:
        if self._unlimited:
            raise _RefusedError("encrypted sums are not releases: nothing is granted for them")
        if not 1 <= count <= _LARGEST_LEASE:
            raise _RefusedError("a lease of that size cannot be")
        ledger, plan = state.ledger, self._plan
        try:
            granted, state.head = ledger.lease(
                self._run, plan.event, count, limit=plan.steps, seen=state.head
            )
            connection.leased += granted
            state.charged += granted
            state.left -= granted
        except BudgetExhaustedError:
            state.left = 0
            return "granted 0 0"
        except DitherError as error:
            state.error = str(error)
            raise _RefusedError(str(error)) from error
        return f"granted {granted} {max(state.left, 0)}"

    def _bye(self, connection: _Connection, state: RankState, text: str) -> str:
        used_text, _, statistics = text.partition(" ")
        used = int(used_text)
        if self._unlimited:
            used = 0
        if not 0 <= used <= connection.leased:
            raise _RefusedError(f"{used} releases of {connection.leased} granted")
        found = _statistics(statistics)
        connection.done = True
        state.ended = "well"
        state.used += used
        state.statistics.append(found)
        self._give_back(state, connection.leased - used)
        return "ok"

    def _give_back(self, state: RankState, count: int) -> None:
        try:
            head = state.ledger.give_back(self._run, self._plan.event, count, seen=state.head)
            state.charged -= count
            state.left += count
            state.head = head or state.head
        except (LedgerError, OutputError) as error:  # too much stays charged: safe, but said
            state.error = str(error)


def _statistics(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise _RefusedError("statistics are a JSON object")
    return found


def named_ranks(ranks: list[int]) -> str:
    """Return the ranks as a text: ``ranks 0, 2``."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
