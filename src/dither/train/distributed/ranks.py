"""What accounts and checkpoints need of a group of ranks: to tell, to collect, to refuse together.

Only public facts travel so: counts, digests, names, verdicts. What derives from records goes
through `dither.release` under the plan's trust.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, final, runtime_checkable

from dither.errors import DitherError, PeerError
from dither.reduce import small
from dither.reduce.endpoint import Endpoint
from dither.train.distributed.heartbeat import during

Value = TypeVar("Value")


@runtime_checkable
class Ranks(Protocol):
    """A group of ranks. All calls are collective: the same ones, in the same order, on all ranks.

    A dead or slow peer is a `PeerError` within the group's time limit.
    """

    @property
    def rank(self) -> int:
        """This rank, 0 ≤ rank < world_size."""

    @property
    def world_size(self) -> int:
        """R."""

    def broadcast(self, payload: bytes) -> bytes:
        """Return rank 0's bytes on all ranks; those of others are ignored."""

    def gather(self, payload: bytes) -> list[bytes]:
        """Return every rank's bytes, in rank order, on all ranks."""

    def consent(self, problem: str | None) -> None:
        """Raise `ReduceError` on all ranks if one has a (public) problem."""

    def during(self, action: Callable[[], Value]) -> Value:
        """Return what an action gives, once all ranks are done with theirs, however long it takes.

        A rank that stands still meanwhile is a `PeerError` within the time limit.
        """


@final
class EndpointRanks:
    """The ranks at the other ends of an endpoint.

    Args:
        endpoint: This rank's end; stays the caller's.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    @property
    def rank(self) -> int:
        """This rank."""
        return self._endpoint.rank

    @property
    def world_size(self) -> int:
        """R."""
        return self._endpoint.world_size

    def broadcast(self, payload: bytes) -> bytes:
        """Return rank 0's bytes on all ranks."""
        return small.broadcast(self._endpoint, payload)

    def gather(self, payload: bytes) -> list[bytes]:
        """Return every rank's bytes, in rank order, on all ranks."""
        return small.gather(self._endpoint, payload)

    def consent(self, problem: str | None) -> None:
        """Raise `ReduceError` on all ranks if one has a problem."""
        small.consent(self._endpoint, problem)

    def during(self, action: Callable[[], Value]) -> Value:
        """Return what an action gives, once all ranks are done."""
        return during(self._endpoint, action)


def on_all(
    ranks: Ranks, action: Callable[[], Any], refusal: Callable[[int, str], DitherError]
) -> list[Any]:
    """Act on every rank and return what each got, on all; or raise on all if one could not.

    Collective. The rank that could not raises its own error; the others are told its kind only,
    for its words may name files that are its own. An action may take longer than the group's time
    limit, as writing a large checkpoint does.

    Args:
        ranks: The group.
        action: Returns plain JSON values, public ones. Its `DitherError`s are told.
        refusal: Makes the others' error of a rank and the kind of its error.

    Raises:
        PeerError: A rank is dead or late: what the others got is not known.
    """
    verdict: dict[str, Any] = {}
    error: DitherError | None = None
    try:
        verdict["value"] = ranks.during(action)
    except PeerError:
        raise  # nobody is there to tell
    except DitherError as raised:
        error = raised
        verdict["error"] = type(raised).__name__
    verdicts = [json.loads(text) for text in ranks.gather(json.dumps(verdict).encode())]
    if error is not None:
        raise error
    for rank, found in enumerate(verdicts):
        if "error" in found:
            raise refusal(rank, found["error"])
    return [found["value"] for found in verdicts]
