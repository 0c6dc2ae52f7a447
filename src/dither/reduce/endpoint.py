"""One rank's end of a group: what every transport gives and every algorithm needs."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from types import TracebackType
from typing import TypeAlias, TypeVar

import numpy as np
from jaxtyping import Shaped

# Flat and contiguous; 8 to 64 bit integers, float32 or float64, in the host's byte order. The
# underscore: two buffers of one call may differ in size.
Buffer: TypeAlias = Shaped[np.ndarray, " _size"]

# Not Self, which beartype cannot check in a method that jaxtyping decorates by itself.
_Entered = TypeVar("_Entered", bound="Endpoint")


class Endpoint(ABC):
    """One rank's end of a group of ranks that exchange messages.

    Messages between two ranks arrive in the order in which they were sent, whole. The receiver
    knows type and size beforehand: ranks agree on them first (`agreement`). A transport neither
    adds nor hides anything: what may be sent is for protections to say.

    After any error an endpoint is broken and refuses all further use, for its peers may be
    anywhere in their protocol: make a new group.
    """

    @property
    @abstractmethod
    def rank(self) -> int:
        """This rank, 0 ≤ rank < world_size."""

    @property
    @abstractmethod
    def world_size(self) -> int:
        """R, the number of ranks."""

    @property
    @abstractmethod
    def hosts(self) -> tuple[int, ...]:
        """Number of the host of each rank, from 0 up, in order of first appearance."""

    @property
    @abstractmethod
    def timeout(self) -> float:
        """Seconds that a call may wait for peers."""

    @property
    def kind(self) -> str:
        """Name of the transport, by which tables of measured times know it."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def crowded(self) -> bool:
        """Whether this host's ranks leave no core idle, for threads that each of them may have."""
        return len(os.sched_getaffinity(0)) < 2 * self.hosts.count(self.hosts[self.rank])

    @abstractmethod
    def send(self, to: int, message: Buffer) -> None:
        """Send a message; it may be overwritten when this returns.

        Raises:
            PeerError: The peer is dead or does not answer in time.
        """

    @abstractmethod
    def receive(self, source: int, out: Buffer) -> None:
        """Receive a message of the size and type of ``out`` into it.

        Raises:
            PeerError: The peer is dead or does not answer in time.
        """

    @abstractmethod
    def exchange(self, to: int, message: Buffer, source: int, out: Buffer) -> None:
        """Send and receive at once, so that rings of ranks that all send do not stand still.

        Args:
            to: Rank to send to.
            message: What to send.
            source: Rank to receive from; may be another.
            out: Where the message goes; shares no memory with ``message``.

        Raises:
            PeerError: A peer is dead or does not answer in time.
        """

    def all_reduce(self, buffer: Buffer) -> bool:  # noqa: ARG002 - for those that have one
        """Sum over ranks in place by the back end's own algorithm, integers mod 2^bits.

        Returns:
            False, with nothing sent, where the back end has none for this type. The answer
            depends on type and size alone, so it is the same on all ranks.
        """
        return False

    @abstractmethod
    def close(self) -> None:
        """Leave the group. Closing twice is harmless."""

    def __enter__(self: _Entered) -> _Entered:
        """Return the endpoint."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()
