"""Numbers of ranks that are no power of two: some ranks stand back and let a neighbour act."""

from __future__ import annotations

import numpy as np

from dither.reduce.algorithms.common import Algorithm, SubGroup, largest_power_of_two
from dither.reduce.endpoint import Buffer, Endpoint


def folded(endpoint: Endpoint, buffer: Buffer, algorithm: Algorithm) -> None:
    """Run an algorithm for powers of two on any number of ranks.

    Of the first 2·(R - p) ranks, p the largest power of two ≤ R, the even ones give their message
    to their right neighbour before, and get the sum after (Thakur et al. 2005, section 4.2). That
    is two more steps, and n more bytes sent by each rank of such a pair.
    """
    rank, ranks = endpoint.rank, endpoint.world_size
    extra = ranks - largest_power_of_two(ranks)
    if rank < 2 * extra and rank % 2 == 0:
        endpoint.send(rank + 1, buffer)
        endpoint.receive(rank + 1, buffer)
        return
    if rank < 2 * extra:
        message = np.empty_like(buffer)
        endpoint.receive(rank - 1, message)
        buffer += message
    active = [*range(1, 2 * extra, 2), *range(2 * extra, ranks)]
    algorithm(SubGroup(endpoint, active) if extra else endpoint, buffer)
    if rank < 2 * extra:
        endpoint.send(rank - 1, buffer)
