"""Ranks hear from each other while some are busy: one that stands still is noticed in time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar, final

from dither.reduce import small
from dither.reduce.endpoint import Endpoint

Value = TypeVar("Value")

_LONGEST = 10.0  # seconds between two beats


def during(endpoint: Endpoint, action: Callable[[], Value]) -> Value:
    """Return what an action gives, once all ranks are done with theirs. Collective.

    An action may take hours; a rank that died, or stands still, is noticed within the endpoint's
    time limit all the same, for until all are done every rank sends a sign of life each third of
    it, from a thread of its own. What travels is one bit, whether somebody is still busy: how long
    an action takes is seen by all ranks anyway.

    Args:
        endpoint: This rank's end; the action must not use it.
        action: Whatever this rank has to do.

    Raises:
        PeerError: A rank is dead or stands still; once this rank's own action has ended.
        Exception: The action's own, after all ranks are done.
    """
    pulse = _Pulse(endpoint)
    try:
        value = action()
    except Exception:
        pulse.rest()
        raise
    except BaseException:  # this process is about to end: it must not wait for the others
        pulse.stop()
        raise
    pulse.rest()
    pulse.check()
    return value


@final
class _Pulse:
    """Beats until all ranks rest."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._resting = threading.Event()
        self._stopped = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="dither-pulse", daemon=True)
        self._thread.start()

    def rest(self) -> None:
        """Say that this rank is done, and wait until all are."""
        self._resting.set()
        self._thread.join()

    def stop(self) -> None:
        """Beat no more."""
        self._stopped = True
        self._resting.set()

    def check(self) -> None:
        """Raise what the beats found."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        every = min(self._endpoint.timeout / 3.0, _LONGEST)
        try:
            while True:
                resting = self._resting.wait(every)
                # A rank that rests waits in here for the next beat of those that are busy.
                if self._stopped or not small.anyone(self._endpoint, not resting):
                    return
        except BaseException as error:  # noqa: BLE001 - raised where the caller waits
            self._error = error
