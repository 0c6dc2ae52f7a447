"""Two transports as one: shared memory inside a host, another across hosts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import final

from dither.errors import ConfigError
from dither.reduce.endpoint import Buffer, Endpoint


@final
class Hybrid(Endpoint):
    """One rank of a group whose messages take a faster way inside each host.

    Args:
        across: This rank's end of the whole group.
        inside: Its end of a group of the ranks on its host, in the same order.

    Raises:
        ConfigError: ``inside`` does not hold the ranks that ``across`` places on this host.
    """

    def __init__(self, across: Endpoint, inside: Endpoint) -> None:
        here = across.hosts[across.rank]
        nearby = [rank for rank, host in enumerate(across.hosts) if host == here]
        if inside.world_size != len(nearby) or inside.rank != nearby.index(across.rank):
            raise ConfigError(
                expected=f"rank {nearby.index(across.rank)} of {len(nearby)} inside the host",
                got=f"rank {inside.rank} of {inside.world_size}",
                fix="make the inner group of the ranks of one host, in the order of ranks",
            )
        self._across = across
        self._inside = inside
        self._nearby = {rank: place for place, rank in enumerate(nearby)}
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="dither-send")

    @property
    def rank(self) -> int:
        """Rank in the whole group."""
        return self._across.rank

    @property
    def world_size(self) -> int:
        """Size of the whole group."""
        return self._across.world_size

    @property
    def hosts(self) -> tuple[int, ...]:
        """As the outer transport found them."""
        return self._across.hosts

    @property
    def timeout(self) -> float:
        """The longer one of the two."""
        return max(self._across.timeout, self._inside.timeout)

    @property
    def kind(self) -> str:
        """The outer transport's, for it is the slower one."""
        return self._across.kind

    def send(self, to: int, message: Buffer) -> None:
        """Send by the nearer way."""
        endpoint, place = self._way(to)
        endpoint.send(place, message)

    def receive(self, source: int, out: Buffer) -> None:
        """Receive by the nearer way."""
        endpoint, place = self._way(source)
        endpoint.receive(place, out)

    def exchange(self, to: int, message: Buffer, source: int, out: Buffer) -> None:
        """Exchange, by both ways at once where the two peers need that."""
        onward, to_place = self._way(to)
        back, source_place = self._way(source)
        if onward is back:
            onward.exchange(to_place, message, source_place, out)
            return
        # Neither way may wait for the other, or a ring of ranks would stand still.
        sending = self._sender.submit(onward.send, to_place, message)
        try:
            back.receive(source_place, out)
        finally:
            sending.result()

    def all_reduce(self, buffer: Buffer) -> bool:
        """Sum by the outer transport's own algorithm."""
        return self._across.all_reduce(buffer)

    def close(self) -> None:
        """Close both."""
        self._sender.shutdown()
        self._inside.close()
        self._across.close()

    def _way(self, rank: int) -> tuple[Endpoint, int]:
        place = self._nearby.get(rank)
        return (self._across, rank) if place is None else (self._inside, place)
