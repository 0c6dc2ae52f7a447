"""Who masks with whom: circulant graphs that t colluding ranks cannot cut apart.

Each edge of the graph is a pair of ranks whose pads cancel in the sum of all. Colluders take away
the pads they know: their own edges. What is left of the graph keeps hidden whatever it joins, so an
observer learns the sum of each connected component of the other ranks and nothing finer. If a lone
rank is cut off, its own message is such a sum, protected by its own share of the noise only:
variance z²C²/(R−t), instead of the z²C² that the ledger charges (PRIVACY-REVIEW A3). So the graph
must be (t+1)-connected: it stays in one piece whichever t ranks are taken out.

With t = R − 1 one rank is honest, and the others know its message from the sum: masks hide it from
the network alone. Its share of the noise is then all of z²C², which protects it by itself, as
under trust local.

Circulant graphs Cₙ(1, …, m), each rank joined to the m next on either side, are 2m-connected, and
with the opposite rank (n even) (2m+1)-connected, for m ≥ 1: they are Harary's graphs, with as few
edges as any graph so connected (F. Harary, The maximum connectivity of a graph, PNAS 48 (1962)
1142-1146). Random graphs (Bell et al., CCS 2020) have fewer edges, but are safe only against ranks
corrupted at random; these are safe against any t.
"""

from __future__ import annotations

from dither.errors import ConfigError


def mask_degree(world_size: int, colluders: int) -> int:
    """Return k, the fewest neighbours a rank needs against this many colluders.

    Args:
        world_size: R.
        colluders: t, how many ranks may pool what they know, any of them.

    Returns:
        k ≥ t + 1, at least 2 where there are 3 ranks or more (else the graph is in pieces), R − 1
        if that is less. No graph of odd degree has an odd number of ranks: there one more.

    Raises:
        ConfigError: t ≥ R: no rank is honest. A lone rank needs no mask.
    """
    _check_colluders(world_size, colluders)
    degree = max(colluders + 1, 2)
    degree += degree % 2 and world_size % 2
    return min(degree, world_size - 1)


def neighbours(rank: int, world_size: int, degree: int) -> tuple[int, ...]:
    """Return the neighbours of a rank in the circulant graph of this degree, in rising order.

    Args:
        rank: The rank.
        world_size: R.
        degree: k < R; odd only where R is even.

    Raises:
        ConfigError: No such graph.
    """
    if not 0 <= rank < world_size or not 0 <= degree < world_size or degree * world_size % 2:
        raise ConfigError(
            expected=f"a rank and a degree below {world_size}, even where the ranks are odd",
            got=f"rank {rank}, degree {degree}",
            fix="take the degree that mask_degree returns",
        )
    steps = range(1, degree // 2 + 1)
    found = {(rank + step) % world_size for step in steps}
    found |= {(rank - step) % world_size for step in steps}
    if degree % 2:
        found.add((rank + world_size // 2) % world_size)
    return tuple(sorted(found))


def check_degree(world_size: int, colluders: int, degree: int) -> None:
    """Refuse a graph that this many colluders could cut apart.

    Raises:
        ConfigError: Fewer than t + 1 neighbours, or no such graph, or t ≥ R.
    """
    needed = mask_degree(world_size, colluders)
    if degree < needed:
        cut = f"{degree} neighbour{'s' if degree > 1 else ''}"
        share = world_size - colluders
        raise ConfigError(
            expected=f"at least {needed} neighbours a rank to mask against {colluders} colluders",
            got=f"{cut}: they could isolate a rank, whose own noise is 1/{share} of the variance",
            fix="leave the degree out",
        )
    neighbours(0, world_size, degree)


def _check_colluders(world_size: int, colluders: int) -> None:
    if world_size < 1 or colluders < 0 or (colluders >= world_size and colluders > 0):
        raise ConfigError(
            expected=f"0 ≤ t ≤ R − 1 colluders of R = {world_size} ranks",
            got=f"t = {colluders}: no rank would be honest",
            fix="lower t, start more ranks, or use trust local, which needs no masks",
        )
