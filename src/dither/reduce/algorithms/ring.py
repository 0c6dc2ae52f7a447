"""Ring: parts of the sum go round, then the finished parts once more."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dither.reduce.algorithms.common import cuts
from dither.reduce.endpoint import Buffer, Endpoint

# Small enough that what has come is still in the cache when it is added and sent on.
SEGMENT_BYTES = 1 << 20


def ring(endpoint: Endpoint, buffer: Buffer) -> None:
    """Sum by sending one part of R to the next rank and adding what comes, then passing sums on.

    Patarasuk and Yuan 2009. The fewest bytes and only neighbours: best for long messages. Parts
    travel in segments of 1 MiB, so that a rank sends one segment on while the next still comes.

    - Steps: 2(R - 1), each of as many segments as a part has.
    - Sent by each rank: 2(R - 1)/R·n bytes.
    - Seen by each rank: from its left neighbour that one's own part, then R - 2 parts of sums of
      2, 3, ... ranks, and the result.
    - Floats: part p is added in the order of ranks from p on, and copied from there.
    """
    ranks, rank = endpoint.world_size, endpoint.rank
    if ranks == 1:
        return
    borders = cuts(buffer.size, ranks)
    right, left = (rank + 1) % ranks, (rank - 1) % ranks
    room = np.empty(min(borders[1], _segment(buffer)), buffer.dtype)
    for step in range(ranks - 1):
        for out, part in _segments(buffer, borders, (rank - step) % ranks):
            message = room[: part.size]
            endpoint.exchange(right, out, left, message)
            np.add(part, message, out=part)
    for step in range(ranks - 1):
        for out, part in _segments(buffer, borders, (rank + 1 - step) % ranks):
            endpoint.exchange(right, out, left, part)


def _segments(buffer: Buffer, borders: list[int], part: int) -> Iterator[tuple[Buffer, Buffer]]:
    """Yield segments of a part to send and of the part before it, which comes."""
    before = (part - 1) % (len(borders) - 1)
    size = _segment(buffer)
    for start in range(0, borders[1], size):
        yield _cut(buffer, borders, part, start, size), _cut(buffer, borders, before, start, size)


def _cut(buffer: Buffer, borders: list[int], part: int, start: int, size: int) -> Buffer:
    stop = borders[part + 1]
    first = min(borders[part] + start, stop)
    return buffer[first : min(first + size, stop)]


def _segment(buffer: Buffer) -> int:
    return SEGMENT_BYTES // buffer.itemsize
