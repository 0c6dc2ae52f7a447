"""How long a step takes on more ranks than there are here: measured computing, reckoned sums.

What one of R ranks computes in a step is measured on this machine: a shard of n/R records, sampled
at the same rate, with noise, encoding and decoding. What the sum over ranks takes is the cost
model's, by the algorithm that it finds fastest (`dither.reduce.cost`). Nothing is taken to overlap.
A step is over when its slowest rank is done, and shards' samples differ: of R Poisson sizes with
mean b the largest is about b + √(2b ln R).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from dither.errors import ConfigError
from dither.privacy.plan import Plan
from dither.reduce.cost import PLAIN_BYTES, Network, fastest

RANKS = (4, 64, 1024)


@dataclass(frozen=True)
class Share:
    """What one of several ranks computes in a step, measured.

    Attributes:
        batch: Expected size of its batch.
        seconds: Of a step, without the sum over ranks.
    """

    batch: float
    seconds: float


@dataclass(frozen=True)
class Projected:
    """A step on many ranks.

    Attributes:
        network: Its name.
        ranks: R.
        computing: Seconds of the slowest rank's own work.
        summing: Seconds of the sum over ranks.
        algorithm: What sums.
        wire_bits: Of one coordinate of a message.
    """

    network: str
    ranks: int
    computing: float
    summing: float
    algorithm: str
    wire_bits: int

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.computing + self.summing


def project(
    shares: Sequence[Share],
    *,
    batch_size: float,
    dimension: int,
    networks: Sequence[Network],
    ranks: Sequence[int] = RANKS,
    plan: Plan | None = None,
) -> tuple[Projected, ...]:
    """Return the time of a step by network and number of ranks.

    Args:
        shares: Measured, of at least two sizes; between them lines are drawn.
        batch_size: Of all ranks together.
        dimension: Trained coordinates.
        networks: Where.
        ranks: Numbers of ranks.
        plan: The promise; without one, sums are of plain float32.

    Raises:
        ConfigError: Too few shares to draw a line.
    """
    known = sorted(shares, key=lambda share: share.batch)
    if len({share.batch for share in known}) < 2:
        raise ConfigError(
            expected="measured shares of at least two sizes",
            got=str(len(known)),
            fix="measure more",
        )
    found = []
    for network in networks:
        for count in ranks:
            bits = 8 * PLAIN_BYTES
            if plan is not None:
                bits = plan.bind(plan.l2_clip, dimension, count).wire_bits
            algorithm, summing = fastest(count, dimension * bits / 8, network)
            computing = computing_time(known, largest_batch(batch_size / count, count))
            crowded = computing * network.crowding(count)
            found.append(Projected(network.name, count, crowded, summing, algorithm, bits))
    return tuple(found)


def largest_batch(mean: float, ranks: int) -> float:
    """Return about how large the largest of so many Poisson sizes is."""
    return mean + math.sqrt(2.0 * mean * math.log(ranks))


def computing_time(shares: Sequence[Share], batch: float) -> float:
    """Return the seconds of a share between measured ones, or beyond on the last line.

    Args:
        shares: By size, at least two of different size.
        batch: Size of the share asked for.
    """
    lines = list(pairwise(shares))
    below, above = next((line for line in lines if batch <= line[1].batch), lines[-1])
    slope = (above.seconds - below.seconds) / (above.batch - below.batch)
    return max(0.0, below.seconds + slope * (batch - below.batch))
