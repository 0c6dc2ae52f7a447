"""Round-robin: pairs meet in turn, as in a tournament."""

from __future__ import annotations

from collections.abc import Iterator

from dither.reduce.algorithms.pairwise import sum_everything
from dither.reduce.endpoint import Buffer, Endpoint


def round_robin(endpoint: Endpoint, buffer: Buffer) -> None:
    """Sum by exchanging whole messages with one partner a round, until all have met.

    The circle method for tournaments (Kirkman 1847): in every round each rank talks to one partner
    and no link carries two messages one way.

    - Steps: R - 1 for even R; R for odd R, each rank idle in one.
    - Sent by each rank: (R - 1)·n bytes.
    - Seen by each rank: every other rank's message, whole.
    - Floats: added in the order of ranks.
    """
    met = partners(endpoint.rank, endpoint.world_size)
    sum_everything(endpoint, buffer, ((partner, partner) for partner in met))


def partners(rank: int, ranks: int) -> Iterator[int]:
    """Yield whom a rank meets, round by round; nobody in a round where it is idle."""
    seats = ranks + ranks % 2
    for turn in range(seats - 1):
        partner = _partner(rank, turn, seats)
        if partner < ranks:
            yield partner


def _partner(rank: int, turn: int, seats: int) -> int:
    """In round t, i meets j where i + j = t modulo (seats - 1); the last seat meets i = j."""
    circle = seats - 1
    if rank == circle:
        return turn * (seats // 2) % circle  # half of t: 2·(seats/2) = 1 modulo (seats - 1)
    partner = (turn - rank) % circle
    return circle if partner == rank else partner
