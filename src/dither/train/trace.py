"""What overlapped what: spans of steps, as a trace that Chrome and Perfetto show.

A trace is the operator's. It holds names of parameters and times, no values; but times depend on
the sizes of batches, so the guarantee does not cover them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

from dither.errors import DataError
from dither.files import write_atomic

STEPS = 100
_MICRO = 1e6
_KEPT = 200_000  # spans; some 30 MB of JSON


@runtime_checkable
class Timed(Protocol):
    """Something with a name that began and ended on a thread, in seconds of `perf_counter`."""

    @property
    def name(self) -> str:
        """What it was; its first word is the kind: product, send, ..."""

    @property
    def start(self) -> float:
        """When it began."""

    @property
    def end(self) -> float:
        """When it ended."""

    @property
    def thread(self) -> str:
        """What did it."""


@dataclass(frozen=True)
class Event:
    """A span as a trace holds it.

    Attributes:
        name: What it was.
        start: Seconds since the trace's own zero.
        end: The same.
        thread: What did it.
        step: Of the run, from 1 up.
        rank: Whose it was.
    """

    name: str
    start: float
    end: float
    thread: str
    step: int
    rank: int

    @property
    def kind(self) -> str:
        """The first word of the name."""
        return self.name.split(" ", 1)[0]


def profile_path(path: Path, rank: int) -> Path:
    """Return where a rank's trace goes: rank 0's where the user said, the others' beside it.

    No rank sends its times to another.
    """
    return path if rank == 0 else path.with_name(f"{path.stem}.rank-{rank}{path.suffix}")


@final
class Trace:
    """Collects the spans of a run's first steps.

    Args:
        rank: Whose steps they are.
        steps: How many to keep; more of a long run would tell nothing new.
    """

    def __init__(self, rank: int = 0, *, steps: int = STEPS) -> None:
        self.rank = rank
        self._left = steps
        self._events: list[Event] = []
        # Wall-clock time of perf_counter's zero, so that traces of ranks lie beside each other.
        self._zero = time.time() - time.perf_counter()

    @property
    def full(self) -> bool:
        """Whether it takes no more."""
        return self._left <= 0 or len(self._events) >= _KEPT

    def add(self, step: int, spans: Iterable[Timed]) -> None:
        """Keep one step's spans, while there is room."""
        if self.full:
            return
        self._left -= 1
        self._events.extend(
            Event(span.name, span.start, span.end, str(span.thread), step, self.rank)
            for span in spans
        )

    def to_json(self) -> dict[str, Any]:
        """Return Chrome's trace event format: complete events, and names of rank and threads."""
        threads = {name: number for number, name in enumerate(_threads(self._events), start=1)}
        named = [_named("process_name", self.rank, 0, f"rank {self.rank}")]
        named += [_named("thread_name", self.rank, tid, name) for name, tid in threads.items()]
        return {
            "traceEvents": named
            + [_complete(event, threads[event.thread], self._zero) for event in self._events],
            "displayTimeUnit": "ms",
        }

    def write(self, path: Path) -> None:
        """Write the trace, whole or not at all.

        Raises:
            OutputError: It cannot be written.
        """
        write_atomic(path, json.dumps(self.to_json(), allow_nan=False).encode())


def _threads(events: Sequence[Event]) -> list[str]:
    return list(dict.fromkeys(event.thread for event in events))


def _named(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}


def _complete(event: Event, tid: int, zero: float) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": event.name,
        "cat": event.kind,
        "pid": event.rank,
        "tid": tid,
        "ts": (zero + event.start) * _MICRO,
        "dur": (event.end - event.start) * _MICRO,
        "args": {"step": event.step},
    }


def read_trace(path: Path) -> tuple[Event, ...]:
    """Return the spans of a trace that `Trace.write` wrote, in order of their beginning.

    Raises:
        DataError: It is no such file.
    """
    try:
        events = json.loads(path.read_bytes())["traceEvents"]
        names = {
            (e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"
        }
        found = [_event(e, names) for e in events if e["ph"] == "X"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            expected=f"a trace of dither train --profile at {path}",
            got=f"{type(error).__name__}: {error}",
            fix="name the file that --profile wrote",
        ) from error
    return tuple(sorted(found, key=lambda event: event.start))


def _event(fields: Mapping[str, Any], names: Mapping[tuple[int, int], str]) -> Event:
    start = fields["ts"] / _MICRO
    return Event(
        name=fields["name"],
        start=start,
        end=start + fields["dur"] / _MICRO,
        thread=names[fields["pid"], fields["tid"]],
        step=fields["args"]["step"],
        rank=fields["pid"],
    )


@dataclass(frozen=True)
class Overlap:
    """How much of the sending went on while something else was computed.

    Attributes:
        steps: Steps that sent anything.
        early: Of these, those whose first message left before the last product was done.
        sending: Seconds spent sending.
        hidden: Of these, seconds within products.
    """

    steps: int
    early: int
    sending: float
    hidden: float

    @property
    def share(self) -> float:
        """Share of the sending that was hidden; 0 where nothing was sent."""
        return self.hidden / self.sending if self.sending else 0.0


def overlap(events: Iterable[Event], *, work: str = "product", send: str = "send") -> Overlap:
    """Return how sending and computing overlapped, step by step of each rank.

    Args:
        events: Of one or several ranks.
        work: Kind of the spans of computing.
        send: Kind of the spans of sending.
    """
    steps: dict[tuple[int, int], tuple[list[Event], list[Event]]] = {}
    for event in events:
        works, sends = steps.setdefault((event.rank, event.step), ([], []))
        if event.kind == work:
            works.append(event)
        elif event.kind == send:
            sends.append(event)
    both = [(works, sends) for works, sends in steps.values() if sends]
    return Overlap(
        steps=len(both),
        early=sum(_early(works, sends) for works, sends in both),
        sending=sum(event.end - event.start for _, sends in both for event in sends),
        hidden=sum(_within(event, works) for works, sends in both for event in sends),
    )


def _early(works: Sequence[Event], sends: Sequence[Event]) -> bool:
    return bool(works) and min(e.start for e in sends) < max(e.end for e in works)


def _within(event: Event, others: Sequence[Event]) -> float:
    """Seconds of an event that lie within others, which follow one another."""
    return sum(max(0.0, min(event.end, o.end) - max(event.start, o.start)) for o in others)
