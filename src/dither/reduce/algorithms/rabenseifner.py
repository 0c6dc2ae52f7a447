"""Rabenseifner's: recursive halving, then recursive doubling."""

from __future__ import annotations

import numpy as np

from dither.reduce.algorithms.folding import folded
from dither.reduce.endpoint import Buffer, Endpoint


def rabenseifner(endpoint: Endpoint, buffer: Buffer) -> None:
    """Sum by exchanging halves, quarters, ... of the sum, then gathering them the same way back.

    Rabenseifner 2004; Thakur et al. 2005, section 4.4.

    - Steps: 2⌊log₂ R⌋, two more where R is no power of two.
    - Sent by each rank: 2(R - 1)/R·n bytes for R a power of two; up to 3n otherwise.
    - Seen by each rank: half of one message, a quarter of a sum of two, ..., and the result.
    - Floats: each element is added up a balanced tree by one rank, and copied from there.
    """
    folded(endpoint, buffer, _halve_and_double)


def _halve_and_double(endpoint: Endpoint, buffer: Buffer) -> None:
    low, high = 0, buffer.size
    message = np.empty((buffer.size + 1) // 2, buffer.dtype)
    ranges: list[tuple[int, int, int]] = []
    distance = endpoint.world_size // 2
    while distance:
        partner = endpoint.rank ^ distance
        middle = (low + high + 1) // 2
        kept, given = ((low, middle), (middle, high))[:: -1 if endpoint.rank & distance else 1]
        ranges.append((partner, *given))
        part = message[: kept[1] - kept[0]]
        endpoint.exchange(partner, buffer[slice(*given)], partner, part)
        low, high = kept
        buffer[low:high] += part
        distance //= 2
    for partner, start, stop in reversed(ranges):
        endpoint.exchange(partner, buffer[low:high], partner, buffer[start:stop])
        low, high = min(low, start), max(high, stop)
