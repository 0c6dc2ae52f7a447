"""What several algorithms share: how vectors are cut, and views of a part of the ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, final

from dither.errors import ConfigError
from dither.reduce.endpoint import Buffer, Endpoint
from dither.reduce.transports.hosts import number_hosts

# Sums a buffer over all ranks in place: integers modulo 2^bits, the same bits on all ranks.
Algorithm: TypeAlias = Callable[[Endpoint, Buffer], None]


def cuts(length: int, parts: int) -> list[int]:
    """Return the ``parts`` + 1 borders of near-equal parts; the first ones are the longer."""
    base, longer = divmod(length, parts)
    return [part * base + min(part, longer) for part in range(parts + 1)]


def largest_power_of_two(ranks: int) -> int:
    """Return the largest power of two that is at most ``ranks``."""
    return 1 << (ranks.bit_length() - 1)


@final
class SubGroup(Endpoint):
    """Some of a group's ranks, as a group of their own.

    Several may be used in turn, but not at the same time: messages are told apart by their order.

    Args:
        endpoint: This rank's end of the whole group.
        ranks: Its members, this rank among them; member i is rank i here. The same on all of them.

    Raises:
        ConfigError: This rank is no member, or one is named twice.
    """

    def __init__(self, endpoint: Endpoint, ranks: Sequence[int]) -> None:
        self._endpoint = endpoint
        self._ranks = tuple(ranks)
        if len(set(ranks)) != len(self._ranks) or endpoint.rank not in self._ranks:
            raise ConfigError(
                expected=f"distinct ranks, rank {endpoint.rank} among them",
                got=str(list(ranks)),
                fix="make a sub-group on its members only",
            )
        self._rank = self._ranks.index(endpoint.rank)

    @property
    def rank(self) -> int:
        """This rank's place among the members."""
        return self._rank

    @property
    def world_size(self) -> int:
        """Number of members."""
        return len(self._ranks)

    @property
    def hosts(self) -> tuple[int, ...]:
        """Hosts of the members, numbered anew."""
        hosts = self._endpoint.hosts
        return number_hosts([hosts[rank] for rank in self._ranks])

    @property
    def timeout(self) -> float:
        """The whole group's."""
        return self._endpoint.timeout

    @property
    def kind(self) -> str:
        """The whole group's."""
        return self._endpoint.kind

    def send(self, to: int, message: Buffer) -> None:
        """Send to a member."""
        self._endpoint.send(self._ranks[to], message)

    def receive(self, source: int, out: Buffer) -> None:
        """Receive from a member."""
        self._endpoint.receive(self._ranks[source], out)

    def exchange(self, to: int, message: Buffer, source: int, out: Buffer) -> None:
        """Exchange with members."""
        self._endpoint.exchange(self._ranks[to], message, self._ranks[source], out)

    def close(self) -> None:
        """Do nothing: the whole group stays."""
