"""Naive all-to-all: everybody sends everything to everybody."""

from __future__ import annotations

from dither.reduce.algorithms.pairwise import sum_everything
from dither.reduce.endpoint import Buffer, Endpoint


def naive(endpoint: Endpoint, buffer: Buffer) -> None:
    """Sum by sending the whole message to every other rank, the next one first.

    What fastDP's second version did (Harvard CS205, 2020); the baseline.

    - Steps: R - 1.
    - Sent by each rank: (R - 1)·n bytes.
    - Seen by each rank: every other rank's message, whole.
    - Floats: added in the order of ranks.
    """
    ranks, rank = endpoint.world_size, endpoint.rank
    sum_everything(
        endpoint,
        buffer,
        (((rank + step) % ranks, (rank - step) % ranks) for step in range(1, ranks)),
    )
