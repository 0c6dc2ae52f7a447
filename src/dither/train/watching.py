"""Who is told how a run goes on, and what they may be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, final, runtime_checkable

from dither.train.run import Run


@runtime_checkable
class Watcher(Protocol):
    """Is told how a run goes on. Gets released and public values only."""

    def started(self, run: Run, first_step: int, last_step: int) -> None:
        """The loop begins."""

    def stepped(self, step: int) -> None:
        """One step is done."""

    def evaluated(self, line: dict[str, Any]) -> None:
        """Held-out metrics of a checkpoint, as in ``metrics.jsonl``."""

    def measured(self, step: int, figures: Mapping[str, float]) -> None:
        """Cost of the steps since the last checkpoint: time by part, bytes sent, noise pool."""


@runtime_checkable
class PrivateWatcher(Protocol):
    """Is the operator's: gets what is not released, too."""

    def trained(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Exact figures of steps, as in ``private/training.jsonl``."""


@final
class Watchers:
    """Several watchers as one; exact figures reach those alone that are the operator's.

    Args:
        watchers: Told in this order; None is skipped.
    """

    def __init__(self, *watchers: Watcher | None) -> None:
        self._all = [watcher for watcher in watchers if watcher is not None]

    def started(self, run: Run, first_step: int, last_step: int) -> None:
        """Pass it on."""
        for watcher in self._all:
            watcher.started(run, first_step, last_step)

    def stepped(self, step: int) -> None:
        """Pass it on."""
        for watcher in self._all:
            watcher.stepped(step)

    def evaluated(self, line: dict[str, Any]) -> None:
        """Pass it on."""
        for watcher in self._all:
            watcher.evaluated(line)

    def measured(self, step: int, figures: Mapping[str, float]) -> None:
        """Pass it on."""
        for watcher in self._all:
            watcher.measured(step, figures)

    def trained(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Pass it on to the operator's watchers."""
        for watcher in self._all:
            if isinstance(watcher, PrivateWatcher):
                watcher.trained(lines)
