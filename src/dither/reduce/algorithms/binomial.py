"""Binomial tree: reduce to one rank, then broadcast."""

from __future__ import annotations

import numpy as np

from dither.reduce.endpoint import Buffer, Endpoint


def binomial(endpoint: Endpoint, buffer: Buffer) -> None:
    """Sum up a binomial tree to rank 0, then send the sum down the same tree.

    Thakur, Rabenseifner, Gropp, "Optimization of collective communication operations in MPICH"
    (2005), sections 3 and 4.

    - Steps: 2⌈log₂ R⌉.
    - Sent: by rank 0 up to ⌈log₂ R⌉·n bytes; by a leaf n; in all 2(R - 1)·n.
    - Seen: an inner rank sees the sums of the subtrees below it, a leaf's message being such a
      sum of one; every rank sees the result. Only rank 0 adds all.
    - Floats: added up the tree.
    """
    reduce_to_root(endpoint, buffer)
    broadcast_from_root(endpoint, buffer)


def reduce_to_root(endpoint: Endpoint, buffer: Buffer) -> None:
    """Sum up a binomial tree to rank 0; elsewhere ``buffer`` is left with a subtree's sum."""
    rank, ranks = endpoint.rank, endpoint.world_size
    message: Buffer | None = None
    distance = 1
    while distance < ranks:
        if rank & distance:
            endpoint.send(rank - distance, buffer)
            return
        if rank + distance < ranks:
            message = np.empty_like(buffer) if message is None else message
            endpoint.receive(rank + distance, message)
            buffer += message
        distance *= 2


def broadcast_from_root(endpoint: Endpoint, buffer: Buffer) -> None:
    """Send rank 0's buffer down a binomial tree, to the largest subtree first."""
    rank, ranks = endpoint.rank, endpoint.world_size
    distance = 1
    while distance < ranks and not rank & distance:
        distance *= 2
    if rank:
        endpoint.receive(rank - distance, buffer)
    while distance > 1:
        distance //= 2
        if rank + distance < ranks:
            endpoint.send(rank + distance, buffer)
