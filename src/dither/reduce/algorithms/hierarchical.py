"""Hierarchical: inside each host, across hosts, and back."""

from __future__ import annotations

import numpy as np

from dither.reduce.algorithms.binomial import broadcast_from_root, reduce_to_root
from dither.reduce.algorithms.common import Algorithm, SubGroup, cuts, largest_power_of_two
from dither.reduce.algorithms.rabenseifner import rabenseifner
from dither.reduce.algorithms.recursive_doubling import recursive_doubling
from dither.reduce.algorithms.ring import ring
from dither.reduce.endpoint import Buffer, Endpoint

# Below this, steps cost more than bytes on any network.
_SHORT_BYTES = 1 << 15


def hierarchical(endpoint: Endpoint, buffer: Buffer, across: Algorithm | None = None) -> None:
    """Sum inside each host, over hosts by another algorithm, and spread the sum inside again.

    Between hosts travels what one rank a host would send, however many ranks it has. H hosts of L
    ranks each. Up to 32 KiB, or where hosts have different numbers of ranks, the first rank of each
    host speaks for it:

    - Steps: 2⌈log₂ L⌉ inside, and those of the other algorithm for H ranks.
    - Sent: inside a host 2(L - 1)·n bytes in all; by its first rank those of the other algorithm
      (2(H - 1)/H·n) across.
    - Seen: the first rank of a host sees its host's messages and partial sums of them, and what
      the other algorithm shows of the sums of hosts; the others as in a binomial tree.

    Else each rank of a host speaks for its part of 1/L:

    - Steps: 2(L - 1) inside, and those of the other algorithm for H ranks.
    - Sent by each rank: 2(L - 1)/L·n bytes inside, and 1/L of those of the other algorithm across.
    - Seen by each rank: one part of each message of its own host, what the other algorithm shows of
      that part of the sums of hosts, and the result.

    Floats: each host's sum first, the same bits on all ranks.

    Args:
        endpoint: This rank's end.
        buffer: What to sum.
        across: Any flat algorithm; by default recursive doubling for short messages, else
            Rabenseifner's, or a ring where the number of hosts is no power of two.
    """
    hosts = endpoint.hosts
    members = [[r for r, host in enumerate(hosts) if host == h] for h in range(max(hosts) + 1)]
    chosen = _across(len(members), buffer.nbytes) if across is None else across
    if buffer.nbytes > _SHORT_BYTES and len({len(ranks) for ranks in members}) == 1:
        _by_parts(endpoint, buffer, members, chosen)
    else:
        _by_leaders(endpoint, buffer, members, chosen)


def _by_leaders(
    endpoint: Endpoint, buffer: Buffer, members: list[list[int]], across: Algorithm
) -> None:
    inside = SubGroup(endpoint, members[endpoint.hosts[endpoint.rank]])
    reduce_to_root(inside, buffer)
    if inside.rank == 0:
        across(SubGroup(endpoint, [ranks[0] for ranks in members]), buffer)
    broadcast_from_root(inside, buffer)


def _by_parts(
    endpoint: Endpoint, buffer: Buffer, members: list[list[int]], across: Algorithm
) -> None:
    inside = SubGroup(endpoint, members[endpoint.hosts[endpoint.rank]])
    place, count = inside.rank, inside.world_size
    borders = cuts(buffer.size, count)
    parts = [buffer[borders[i] : borders[i + 1]] for i in range(count)]
    message = np.empty_like(parts[place])
    turns = [((place + step) % count, (place - step) % count) for step in range(1, count)]
    for to, source in turns:
        inside.exchange(to, parts[to], source, message)
        parts[place] += message
    across(SubGroup(endpoint, [ranks[place] for ranks in members]), parts[place])
    for to, source in turns:
        inside.exchange(to, parts[place], source, parts[source])


def _across(hosts: int, size: int) -> Algorithm:
    if size <= _SHORT_BYTES:
        return recursive_doubling
    return rabenseifner if hosts == largest_power_of_two(hosts) else ring
