"""Recursive doubling: whole messages, to partners twice as far away each time."""

from __future__ import annotations

import numpy as np

from dither.reduce.algorithms.folding import folded
from dither.reduce.endpoint import Buffer, Endpoint


def recursive_doubling(endpoint: Endpoint, buffer: Buffer) -> None:
    """Sum by exchanging whole sums with partners at distance 1, 2, 4, ...

    Thakur et al. 2005, section 4.2. The fewest steps: best for short messages.

    - Steps: ⌊log₂ R⌋, two more where R is no power of two.
    - Sent by each rank: ⌊log₂ R⌋·n bytes, at most n more where R is no power of two.
    - Seen by each rank: its first partner's message, then sums of 2, 4, ... ranks, and the result.
    - Floats: added up a balanced tree, the same on all ranks because a + b = b + a.
    """
    folded(endpoint, buffer, _double)


def _double(endpoint: Endpoint, buffer: Buffer) -> None:
    message = np.empty_like(buffer)
    distance = 1
    while distance < endpoint.world_size:
        partner = endpoint.rank ^ distance
        endpoint.exchange(partner, buffer, partner, message)
        buffer += message
        distance *= 2
