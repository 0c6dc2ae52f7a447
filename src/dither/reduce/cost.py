"""What a sum over ranks costs: the α-β-γ model of algorithms, protections and networks.

A step in which a rank sends n bytes and adds up m takes α + nβ + mγ: latency, time a byte on the
link, time a byte added. Ranks stand host by host; those of a host that send to others at once share
its link. Links between hosts do not disturb each other, and what a rank computes does not overlap
with what it sends: real networks are slower than the first, good programs faster than the second.

Formulas: Thakur, Rabenseifner, Gropp 2005 (doi 10.1177/1094342005051521); Patarasuk and Yuan 2009
for the ring.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from dither.errors import ConfigError


@dataclass(frozen=True)
class Stage:
    """Like steps of an algorithm, one after the other, on the longest way through its ranks.

    Attributes:
        count: How many.
        size: Bytes that a rank sends in each.
        reduced: Bytes that a rank adds up in each.
        sharers: Ranks of one host that send to other hosts at once; 0 where all stay inside.
    """

    count: int
    size: float
    reduced: float
    sharers: int


@dataclass(frozen=True)
class Link:
    """A way between two ranks.

    Attributes:
        latency: α, seconds a message.
        seconds_per_byte: β; between hosts, of the host's whole link.
    """

    latency: float
    seconds_per_byte: float


@dataclass(frozen=True)
class Network:
    """Hosts, what joins them, and where the figures come from.

    Attributes:
        name: For tables and figures.
        inside: Between two ranks of a host.
        across: Between two hosts.
        seconds_per_reduced_byte: γ, of one core.
        ranks_per_host: Ranks on one host; 0 puts all of them on one.
        cores: Cores of a host; where its ranks are more, they take turns.
        source: Where the figures come from, and which are assumed.
    """

    name: str
    inside: Link
    across: Link
    seconds_per_reduced_byte: float
    ranks_per_host: int
    cores: int
    source: str

    def local_ranks(self, world_size: int) -> int:
        """Return how many of so many ranks stand on the fullest host."""
        return min(world_size, self.ranks_per_host or world_size)

    def crowding(self, world_size: int) -> float:
        """Return by how much ranks that take turns on a core are slower; 1 where none must."""
        return max(1.0, self.local_ranks(world_size) / self.cores)


@dataclass(frozen=True)
class Counts:
    """All steps on the longest way through the ranks.

    Attributes:
        steps: Messages one after the other: the factor of α.
        size: Bytes sent: of β.
        reduced: Bytes added up: of γ.
    """

    steps: float
    size: float
    reduced: float


StagesOf = Callable[[int, float, int], list[Stage]]


def stages(
    algorithm: str, world_size: int, size: float, *, ranks_per_host: int = 1
) -> tuple[Stage, ...]:
    """Return the steps of an algorithm.

    Args:
        algorithm: One of `ALGORITHMS`.
        world_size: R, at least 1.
        size: n, bytes of the whole message.
        ranks_per_host: Neighbouring ranks that share a host.

    Raises:
        ConfigError: Another algorithm, or numbers out of range.
    """
    if algorithm not in ALGORITHMS:
        raise ConfigError(
            expected=f"an algorithm of {', '.join(ALGORITHMS)}",
            got=repr(algorithm),
            fix="choose one of them; what sparse costs depends on the rows, so it has no formula",
        )
    if world_size < 1 or size < 0 or ranks_per_host < 1:
        raise ConfigError(
            expected="at least one rank, one rank a host, and no fewer than 0 bytes",
            got=f"{world_size} ranks, {ranks_per_host} a host, {size:g} bytes",
            fix="check the numbers",
        )
    local = min(ranks_per_host, world_size)
    return tuple(stage for stage in ALGORITHMS[algorithm](world_size, size, local) if stage.count)


def counts(algorithm: str, world_size: int, size: float) -> Counts:
    """Return steps, bytes sent and bytes added up on the longest way through the ranks."""
    found = stages(algorithm, world_size, size)
    return Counts(
        steps=sum(stage.count for stage in found),
        size=sum(stage.count * stage.size for stage in found),
        reduced=sum(stage.count * stage.reduced for stage in found),
    )


def seconds(algorithm: str, world_size: int, size: float, network: Network) -> float:
    """Return the time that the model gives for a sum of a message over ranks."""
    local, crowding = network.local_ranks(world_size), network.crowding(world_size)
    total = 0.0
    for stage in stages(algorithm, world_size, size, ranks_per_host=local):
        copy = network.inside.seconds_per_byte
        if stage.sharers:
            # No rank feeds a link faster than it copies.
            byte = max(stage.sharers * network.across.seconds_per_byte, copy)
            send = network.across.latency + stage.size * byte
        else:
            send = (network.inside.latency + stage.size * copy) * crowding
        add = stage.reduced * network.seconds_per_reduced_byte * crowding
        total += stage.count * (send + add)
    return total


def fastest(world_size: int, size: float, network: Network) -> tuple[str, float]:
    """Return the algorithm that the model finds fastest, and its seconds."""
    times = {name: seconds(name, world_size, size, network) for name in ALGORITHMS}
    best = min(times, key=lambda name: times[name])
    return best, times[best]


def _sharers(distance: int, world_size: int, local: int) -> int:
    """Ranks of a host whose peer at this distance, around the ring of ranks, is on another."""
    return 0 if local == world_size else min(distance, world_size - distance, local)


def _partners(distance: int, world_size: int, local: int) -> int:
    """The same for peers r ^ distance; hosts of 2^k ranks keep the short distances inside."""
    if local == world_size or local % (2 * distance) == 0:
        return 0
    return min(distance, local)


def _naive(world_size: int, size: float, local: int) -> list[Stage]:
    """All to all: in step k everyone sends its whole message to the rank k places on."""
    near = min(local, (world_size - 1) // 2)
    found = [Stage(2, size, size, _sharers(k, world_size, local)) for k in range(1, near + 1)]
    left = world_size - 1 - 2 * near
    return [*found, Stage(left, size, size, _sharers(near + 1, world_size, local))]


def _round_robin(world_size: int, size: float, local: int) -> list[Stage]:
    """Everyone meets everyone, a pair a round; odd R take a round more, in which one is idle."""
    crossing = 0 if local == world_size else local
    met = Stage(world_size - 1, size, size, crossing)
    return [met, Stage(world_size % 2 if world_size > 1 else 0, size, 0.0, crossing)]


def _binomial(world_size: int, size: float, local: int) -> list[Stage]:
    """Reduce to rank 0 along a tree, then broadcast back; across hosts only one of each sends."""
    found = []
    for level in range((world_size - 1).bit_length()):
        crossing = min(1, _partners(1 << level, world_size, local))
        found += [Stage(1, size, size, crossing), Stage(1, size, 0.0, crossing)]
    return found


def _folded(world_size: int, size: float, local: int) -> tuple[int, list[Stage]]:
    """Fold what exceeds a power of two into neighbours before, and unfold it after."""
    core = 1 << (world_size.bit_length() - 1)
    crossing = _partners(1, world_size, local)
    fold = [Stage(1, size, size, crossing), Stage(1, size, 0.0, crossing)]
    return core, [] if core == world_size else fold


def _recursive_doubling(world_size: int, size: float, local: int) -> list[Stage]:
    """Exchange whole messages at distances 1, 2, 4, ..."""
    core, fold = _folded(world_size, size, local)
    levels = range(core.bit_length() - 1)
    return fold + [Stage(1, size, size, _partners(1 << i, world_size, local)) for i in levels]


def _ring(world_size: int, size: float, local: int) -> list[Stage]:
    """R − 1 steps add up chunks of n/R, as many spread the sums; one rank a host sends across."""
    chunk, crossing = size / world_size, _sharers(1, world_size, local)
    steps = world_size - 1
    return [Stage(steps, chunk, chunk, crossing), Stage(steps, chunk, 0.0, crossing)]


def _rabenseifner(world_size: int, size: float, local: int) -> list[Stage]:
    """Halve the message while adding up, the far half first, then double it back the same way."""
    core, fold = _folded(world_size, size, local)
    levels = core.bit_length() - 1
    return fold + _halved(size, [core >> (level + 1) for level in range(levels)], world_size, local)


def _halved(size: float, distances: list[int], world_size: int, local: int) -> list[Stage]:
    found = []
    for level, distance in enumerate(distances, start=1):
        part, crossing = size / 2**level, _partners(distance, world_size, local)
        found += [Stage(1, part, part, crossing), Stage(1, part, 0.0, crossing)]
    return found


def _hierarchical(world_size: int, size: float, local: int) -> list[Stage]:
    """A tree inside each host, another algorithm between one rank of each, and the tree back."""
    hosts = math.ceil(world_size / local)
    if size <= _SHORT_HIERARCHICAL:
        across = _recursive_doubling
    else:
        across = _ring if hosts & (hosts - 1) else _rabenseifner
    return _binomial(local, size, local) + across(hosts, size, 1)


_SHORT_HIERARCHICAL = 1 << 15  # as `algorithms.hierarchical` has it
_SHORT_MPI = 2048  # bytes up to which MPICH doubles (Thakur et al. 2005, section 4.5)


def _backend(world_size: int, size: float, local: int) -> list[Stage]:
    """What MPI libraries commonly do: short messages doubled, others halved, near ranks first."""
    if size <= _SHORT_MPI:
        return _recursive_doubling(world_size, size, local)
    core, fold = _folded(world_size, size, local)
    distances = [1 << level for level in range(core.bit_length() - 1)]
    return fold + _halved(size, distances, world_size, local)


ALGORITHMS: Mapping[str, StagesOf] = MappingProxyType(
    {
        "naive": _naive,
        "round_robin": _round_robin,
        "binomial": _binomial,
        "recursive_doubling": _recursive_doubling,
        "ring": _ring,
        "rabenseifner": _rabenseifner,
        "hierarchical": _hierarchical,
        "backend": _backend,
    }
)


@dataclass(frozen=True)
class Speed:
    """Seconds a coordinate that one core needs for what protections do.

    Attributes:
        noise: Draw.
        encode: Clip, round, add ready noise, shift.
        mask: Add or take away one pad, keystream included.
        add: Add one pad that is ready.
        decode: Back to floating point.
    """

    noise: float
    encode: float
    mask: float
    add: float
    decode: float


@dataclass(frozen=True)
class Protected:
    """What a protection costs a rank, whatever carries its message.

    Attributes:
        name: Protection and trust.
        bytes_per_coordinate: On the wire.
        ready: Seconds a coordinate with everything prepared that can be.
        ahead: Seconds a coordinate of that preparation.
    """

    name: str
    bytes_per_coordinate: int
    ready: float
    ahead: float


PLAIN_BYTES = 4


def protections(speed: Speed, *, wire_bits: int, neighbours: int = 2) -> tuple[Protected, ...]:
    """Return what each protection costs.

    ``encrypted`` is HEAR's: two pads hide a message of 32 bits, a third one opens the sum. Made
    ahead, the two are one number to add in the pass that encodes, and the third is one more pass.
    Masks made ahead are one sum, added after the noise.

    Args:
        speed: Of one core.
        wire_bits: Of a lattice message, 16 or 32.
        neighbours: k, ranks with which each one shares masks.
    """
    width, coded = wire_bits // 8, speed.encode + speed.decode
    return (
        Protected("clear", PLAIN_BYTES, 0.0, 0.0),
        Protected("private", width, coded, speed.noise),
        Protected("masked", width, coded + speed.add, speed.noise + neighbours * speed.mask),
        Protected("encrypted", PLAIN_BYTES, coded + speed.add, 3 * speed.mask),
    )


def predicted(
    protected: Protected,
    coordinates: int,
    world_size: int,
    network: Network,
    *,
    algorithm: str | None = None,
    sustained: bool = False,
) -> float:
    """Return the seconds of a protected sum.

    Args:
        protected: The protection.
        coordinates: Of the vector.
        world_size: R.
        network: Where.
        algorithm: The fastest one by default.
        sustained: Whether what can be prepared has to be made in the same time.
    """
    size = coordinates * protected.bytes_per_coordinate
    if algorithm is None:
        moved = fastest(world_size, size, network)[1]
    else:
        moved = seconds(algorithm, world_size, size, network)
    work = protected.ready + (protected.ahead if sustained else 0.0)
    return moved + coordinates * work * network.crowding(world_size)
