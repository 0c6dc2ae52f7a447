"""TensorBoard and MLflow: released figures, and exact ones only where the user said private.

What a tracker gets by default is what stands at the top of a run folder: options, plan, held-out
metrics, ε; and what steps cost: time by part, bytes, noise pool. Loss, sizes of batches and clipped
shares of training are exact. They go to trackers named in ``--track-private`` and to no others.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, TypeAlias, final

from dither.errors import ConfigError, DitherWarning, StoppedError
from dither.train.run import Run
from dither.train.targets import Target, absolute, check_targets
from dither.train.tracker_sinks import SINKS, Facts, Outcome, Sink
from dither.train.watching import Watchers

__all__ = ["Target", "Tracker", "absolute", "check_targets", "open_trackers"]

OPENING = 30.0  # seconds to be reached
PATIENCE = 15.0  # seconds for what still waits at the end
WAITING = 10_000  # figures; a tracker that is slower than that loses some

Work: TypeAlias = Callable[[Sink], None]


@final
class Tracker:
    """Tells one target how a run goes on, on a thread of its own: a slow one stops no step.

    A target that fails in the middle of a run is given up with a `DitherWarning`: training costs
    budget, figures do not.

    Args:
        target: Where figures go.
        run: The run.
        first_step: Where it goes on; a target drops or keeps apart what was told of later steps.

    Raises:
        ConfigError: The target cannot be reached or written.
    """

    def __init__(self, target: Target, run: Run, first_step: int) -> None:
        self.target = target
        self._queue: queue.Queue[Work | None] = queue.Queue(WAITING)
        self._lost = 0
        self._failure: Exception | None = None
        self._warned = False
        self._closed = False
        self._open = threading.Event()
        opening = (target.place, run.id, run.folder.name, first_step)
        self._thread = threading.Thread(
            target=self._work, args=(opening,), name="tracker", daemon=True
        )
        self._thread.start()
        self._wait_until_open()
        told = facts_of(run)
        self._put(lambda sink: sink.facts(told))

    def _wait_until_open(self) -> None:
        if not self._open.wait(OPENING):
            self._closed = True
            raise ConfigError(
                expected=f"a tracker at {self.target}",
                got=f"no answer within {OPENING:g} s",
                fix="check the place, start its server, or leave it out",
            )
        if self._failure is not None:
            self._closed = True
            raise self._failure

    def started(self, run: Run, first_step: int, last_step: int) -> None:
        """Do nothing: what a run is was told at the beginning."""

    def stepped(self, step: int) -> None:
        """Do nothing: single steps release nothing to tell."""

    def evaluated(self, line: Mapping[str, Any]) -> None:
        """Tell held-out metrics and ε."""
        self._figures(line["step"], released_figures(line))

    def measured(self, step: int, figures: Mapping[str, float]) -> None:
        """Tell what steps cost."""
        self._figures(step, dict(figures))

    def trained(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Tell exact figures, if the user said that this target may have them."""
        if self.target.private:
            for line in lines:
                self._figures(line["step"], private_figures(line))

    def close(self, outcome: Outcome = "finished") -> None:
        """Tell how the run ended, and wait a while until all is written. Twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self._put(lambda sink: sink.close(outcome))
        self._put(None)
        self._thread.join(PATIENCE)
        self._warn_of_failure()
        if self._thread.is_alive():
            self._warn(f"did not answer within {PATIENCE:g} s; the last figures are missing there")
        elif self._lost:
            self._warn(f"was too slow: {self._lost} figures are missing there")

    def _figures(self, step: int, values: Mapping[str, float]) -> None:
        if values:
            self._put(lambda sink: sink.figures(step, values))

    def _put(self, work: Work | None) -> None:
        self._warn_of_failure()
        try:
            # The last words wait for room; everything else must not hold up a step.
            self._queue.put(work, block=self._closed, timeout=PATIENCE)
        except queue.Full:
            self._lost += 1

    def _work(self, opening: tuple[str, str, str, int]) -> None:
        try:
            sink = SINKS[self.target.kind](*opening)
        except Exception as error:  # noqa: BLE001 - raised again where the tracker is made
            self._failure = error
            return
        finally:
            self._open.set()
        while (work := self._queue.get()) is not None:
            if self._failure is None:
                try:
                    work(sink)
                except Exception as error:  # noqa: BLE001 - must not end what costs budget
                    self._failure = error

    def _warn_of_failure(self) -> None:
        if self._failure is not None and not self._warned:
            self._warned = True
            self._warn(f"failed and gets no more figures: {self._failure}")

    def _warn(self, text: str) -> None:
        warnings.warn(f"the tracker {self.target} {text}", DitherWarning, stacklevel=2)


@contextmanager
def open_trackers(
    run: Run, track: Sequence[str], track_private: Sequence[str], first_step: int
) -> Iterator[Watchers]:
    """Open all trackers of a run; they learn how it ended.

    Args:
        run: The run.
        track: ``--track``.
        track_private: ``--track-private``.
        first_step: Where the run begins or goes on.

    Raises:
        ConfigError: A target is not one, or cannot be reached.
    """
    targets = check_targets(track, track_private)
    with ExitStack() as held:
        trackers = [
            held.enter_context(_Ending(Tracker(target, run, first_step))) for target in targets
        ]
        yield Watchers(*trackers)


@final
class _Ending:
    """Closes a tracker with the outcome that fits how its ``with`` block ended."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def __enter__(self) -> Tracker:
        return self._tracker

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        stopped = isinstance(error, StoppedError | KeyboardInterrupt)
        self._tracker.close("finished" if error is None else "stopped" if stopped else "failed")


def facts_of(run: Run) -> Facts:
    """Return what may be told of a run before it begins: what ``run.json`` holds of it."""
    plan = {} if run.plan is None else run.plan.to_json()
    found = {**run.config.public(), **{f"plan/{name}": value for name, value in plan.items()}}
    return {name: str(value) for name, value in found.items() if value is not None}


_RELEASED = {
    "epsilon": "privacy/epsilon",
    "clip_bound": "privacy/clip_bound",
    "auroc": "held_out/auroc",
    "loss": "held_out/loss",
    "loss_of_constant_guess": "held_out/loss_of_constant_guess",
    "seconds": "seconds/total",
}


def released_figures(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a line of ``metrics.jsonl``, by the names that trackers show."""
    return {shown: float(line[name]) for name, shown in _RELEASED.items() if _number(line, name)}


def private_figures(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a line of ``private/training.jsonl``; histograms are left out."""
    names = (name for name in line if name != "step" and _number(line, name))
    return {f"private/{name}": float(line[name]) for name in names}


def _number(line: Mapping[str, Any], name: str) -> bool:
    return isinstance(line.get(name), int | float)
