"""Messages that leave while the next ones are still computed, and when all of that happened."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, TypeAlias, TypeVar, final

from dither.errors import ReleaseError

Result = TypeVar("Result")

_LAST_SECONDS = 2.0
STEP, SEND = "step", "send"  # threads, as spans name them

_Job: TypeAlias = Callable[[], object]


@dataclass(frozen=True)
class Span:
    """One piece of work of a step. Durations are not covered by the guarantee: the operator's.

    Attributes:
        name: A kind, then what: ``product layer.weight``, ``send 3``.
        start: Seconds of `time.perf_counter`.
        end: Likewise.
        thread: ``step`` or ``send``.
    """

    name: str
    start: float
    end: float
    thread: str

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


@final
class Spans:
    """Collects the spans of one step, from any thread."""

    def __init__(self) -> None:
        self._found: list[Span] = []

    def add(self, name: str, start: float, *, end: float | None = None, thread: str = STEP) -> None:
        """Note what began at ``start`` and ends now, if not before."""
        self._found.append(Span(name, start, time.perf_counter() if end is None else end, thread))

    def clear(self) -> None:
        """Forget: a new step begins."""
        self._found = []

    def list(self) -> list[Span]:
        """Return them in the order in which they ended."""
        return list(self._found)


def hidden(spans: list[Span]) -> float:
    """Return the seconds of sends during which the step's own thread computed something."""
    ordered = sorted(spans, key=lambda span: span.start)
    work: list[tuple[float, float]] = []  # merged: a pass may have products within it
    for span in (s for s in ordered if s.thread == STEP and not s.name.startswith("wait")):
        if work and span.start <= work[-1][1]:
            work[-1] = work[-1][0], max(work[-1][1], span.end)
        else:
            work.append((span.start, span.end))
    total, first = 0.0, 0
    for send in (s for s in ordered if s.thread == SEND):
        while first < len(work) and work[first][1] <= send.start:
            first += 1
        for start, end in work[first:]:
            if start >= send.end:
                break
            total += min(send.end, end) - max(send.start, start)
    return total


@final
class Sender:
    """A thread that sends one message after the other.

    A daemon: a peer that never answers must not keep the interpreter from ending. It starts with
    its first job.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, job: _Job) -> None:
        """Do a job that raises nothing, after all of before."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="dither-send", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def close(self) -> None:
        """End the thread after what it has to do; do not wait for peers that do not answer.

        Closing twice is harmless.
        """
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(_LAST_SECONDS)
            self._thread = None

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


@final
class Line(Generic[Result]):
    """The messages of one release, in their order, beside the caller's work or in its midst.

    After the first error nothing more leaves. As a context: where its block fails, messages that
    have not left are dropped.

    Args:
        sender: Whose thread sends; None to send at once.
        spans: Where to note each send.
    """

    def __init__(self, sender: Sender | None, spans: Spans | None = None) -> None:
        self._sender = sender
        self._spans = spans
        self._futures: list[Future[Result]] = []
        self._error: BaseException | None = None

    def send(self, act: Callable[[], Result]) -> Future[Result]:
        """Send in turn.

        Raises:
            BaseException: What an earlier send raised.
        """
        self.check()
        future: Future[Result] = Future()
        number = len(self._futures)
        self._futures.append(future)
        if self._sender is None:
            self._do(act, future, number)
            self.check()
        else:
            self._sender.submit(lambda: self._do(act, future, number))
        return future

    def check(self) -> None:
        """Raise what a send raised, if one did."""
        if self._error is not None:
            raise self._error

    def results(self) -> list[Result]:
        """Wait for all sends; return what each gave, in order.

        Raises:
            BaseException: What the first failed send raised.
        """
        start = time.perf_counter()
        waited = not all(future.done() for future in self._futures)
        found = [future.result() for future in self._futures]
        if self._sender is not None and self._spans is not None and waited:
            self._spans.add("wait", start)
        return found

    def _do(self, act: Callable[[], Result], future: Future[Result], number: int) -> None:
        start = time.perf_counter()
        try:
            self.check()
            found = act()
        except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
            self._error = self._error or error
            future.set_exception(error)
            return
        if self._spans is not None:
            thread = STEP if self._sender is None else SEND
            self._spans.add(f"send {number}", start, thread=thread)
        future.set_result(found)

    def __enter__(self) -> Line[Result]:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drop what has not left, if the block failed; wait for what is leaving.

        Not after an interrupt: a peer may keep a send waiting for minutes.
        """
        if error is None:
            return
        self._error = self._error or _stopped(error)
        if isinstance(error, Exception):
            for future in self._futures:
                future.exception()


def _stopped(error: BaseException) -> BaseException:
    return ReleaseError(
        expected="a release whose every part can be computed",
        got=f"{type(error).__name__} on the way",
        fix="look at that error; the charge stays, so go on with a fresh batch",
    )
