"""Private sums over thousands of ranks on one: real noise, real lattice, reckoned time.

The error is measured: every rank's message is encoded with noise from a key of its own, on the
lattice that the plan gives for so many ranks; the integers are summed as on the wire, and decoded.
The time is the model's (`cost`), with the speed of this machine's core measured here.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import chi2

from dither.errors import ConfigError
from dither.noise.codec import decode, encode_ready, message_type
from dither.noise.key import Key
from dither.noise.pool import FreshNoise
from dither.noise.rounded import fill_rounded_gaussian
from dither.noise.stream import add_mask
from dither.privacy.lattice import Lattice
from dither.privacy.plan import Plan
from dither.privacy.trust import CENTRAL, LOCAL, Trust
from dither.reduce.cost import Network, Speed, fastest, predicted, protections
from dither.release.contribution import bound_lattice, contribution_plan
from dither.release.encoder import Encoder

LARGEST_WORLD = 8192
COORDINATES = 4096
CONFIDENCE = 0.999
_COLLUDERS = 7
_TIMED = 1 << 20
_REPEATS = 5


@dataclass(frozen=True)
class ErrorPoint:
    """How far the decoded sum of one release is from the sum of the clipped contributions.

    Attributes:
        trust: Under which each rank added its share of noise.
        world_size: R.
        coordinates: That were drawn, each rank's separately.
        wire_bits: Of a message at this number of ranks.
        rms: Root mean square error a coordinate, in units of the noise zC of `central`.
        low: Lower end of its confidence interval (`CONFIDENCE`).
        high: Upper end.
        theory: The same by `Trust.sum_multiple`: 1, √(R/(R−t)) or √R.
    """

    trust: str
    world_size: int
    coordinates: int
    wire_bits: int
    rms: float
    low: float
    high: float
    theory: float

    def agrees(self, multiple: float = 1.0) -> bool:
        """Whether the interval holds so many times the theory."""
        return self.low <= multiple * self.theory <= self.high


@dataclass(frozen=True)
class TimePoint:
    """Reckoned time of one sum.

    Attributes:
        network: Name.
        protection: Name; ``sustained`` after a slash where preparation counts too.
        algorithm: The fastest one there.
        world_size: R.
        seconds: Time.
    """

    network: str
    protection: str
    algorithm: str
    world_size: int
    seconds: float


@dataclass(frozen=True)
class Simulation:
    """All of it.

    Attributes:
        message: Coordinates of a message, for the times.
        errors: Measured errors.
        times: Reckoned times.
        networks: What was reckoned with.
        speed: Of this machine's core.
    """

    message: int
    errors: tuple[ErrorPoint, ...]
    times: tuple[TimePoint, ...]
    networks: tuple[Network, ...]
    speed: Speed

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def world_sizes(largest: int) -> tuple[int, ...]:
    """Return 2, 4, 8, ... up to and with the largest.

    Raises:
        ConfigError: Below 2 or above `LARGEST_WORLD`.
    """
    if not 2 <= largest <= LARGEST_WORLD:
        raise ConfigError(
            expected=f"a number of ranks from 2 to {LARGEST_WORLD}",
            got=str(largest),
            fix="choose for instance 1024",
        )
    powers = [1 << k for k in range(1, largest.bit_length())]
    return tuple(sorted({*powers, largest}))


def trusts(world_size: int) -> tuple[Trust, ...]:
    """Return the three trusts that are compared.

    Up to 7 colluders, never more than half, nor so many that an honest rank would be alone.
    """
    colluders = min(_COLLUDERS, world_size // 2, world_size - 2)
    return (CENTRAL, Trust("distributed", colluders), LOCAL)


def simulated_plan(trust: Trust, world_size: int) -> Plan:
    """Return the plan of one sum whose unit of privacy is a rank's whole contribution, ε ≈ 1."""
    return contribution_plan(
        world_size, l2_clip=1.0, releases=1, delta=1e-6, noise_multiplier=8.0, trust=trust
    )


def simulate(
    world_size: int,
    *,
    networks: Sequence[Network],
    coordinates: int = COORDINATES,
    message: int = 1 << 22,
    tell: Callable[[ErrorPoint], object] | None = None,
) -> Simulation:
    """Return error and time for 2, 4, 8, ... ranks.

    Args:
        world_size: The largest R, up to `LARGEST_WORLD`.
        networks: To reckon times for.
        coordinates: Drawn of the message.
        message: Coordinates of a message; the lattice is the one of so many.
        tell: Is told of every error when it is known.

    Raises:
        ConfigError: A number out of range.
    """
    sizes = world_sizes(world_size)
    if not 2 <= coordinates <= message:
        raise ConfigError(
            expected=f"2 to {message} coordinates drawn, of a message of that many",
            got=str(coordinates),
            fix="draw for instance 4096",
        )
    errors = []
    for size in sizes:
        for trust in trusts(size):
            point = measured_error(trust, size, coordinates=coordinates, message=message)
            if tell is not None:
                tell(point)
            errors.append(point)
    speed = measured_speed(bound_lattice(simulated_plan(LOCAL, 2), message, 2))
    times = tuple(
        point
        for network in networks
        for size in sizes
        for point in _times(network, size, message, speed)
    )
    return Simulation(message, tuple(errors), times, tuple(networks), speed)


def measured_error(
    trust: Trust, world_size: int, *, coordinates: int = COORDINATES, message: int | None = None
) -> ErrorPoint:
    """Return the error of one release, measured.

    Contributions are random directions of norm C. One message at a time is in memory.

    Args:
        trust: Says each rank's share of the noise.
        world_size: R.
        coordinates: Drawn.
        message: Coordinates of the message they stand for; themselves by default.
    """
    plan = simulated_plan(trust, world_size)
    lattice = bound_lattice(plan, message or coordinates, world_size)
    difference = _noisy_sum(lattice, world_size, coordinates, plan.l2_clip)
    unit = lattice.sigma * lattice.step / plan.trust.rank_share(world_size)
    squares = float(difference @ difference) / unit**2
    tail = (1.0 - CONFIDENCE) / 2.0
    return ErrorPoint(
        trust=str(trust),
        world_size=world_size,
        coordinates=coordinates,
        wire_bits=lattice.wire_bits,
        rms=math.sqrt(squares / coordinates),
        low=math.sqrt(squares / chi2.isf(tail, coordinates)),
        high=math.sqrt(squares / chi2.ppf(tail, coordinates)),
        theory=trust.sum_multiple(world_size),
    )


def _noisy_sum(
    lattice: Lattice, world_size: int, coordinates: int, l2_clip: float
) -> Float[np.ndarray, " coordinates"]:
    """Return the decoded sum of all ranks' messages less the true one."""
    generator = np.random.default_rng()
    total = np.zeros(coordinates, message_type(lattice))
    true = np.zeros(coordinates)
    room = np.empty_like(total)
    for _ in range(world_size):
        values = generator.standard_normal(coordinates, np.float32)
        values *= np.float32(l2_clip) / np.float32(math.sqrt(float(values @ values)))
        # A fresh key a rank, as real ranks have; its stream starts anew with each.
        total += Encoder(lattice, FreshNoise(Key())).encode(values, out=room).message
        true += values
    return decode(total, lattice) - true


def measured_speed(lattice: Lattice) -> Speed:
    """Return what this machine's core needs, each the median of a few runs on 2²⁰ coordinates."""
    key, values = Key(), np.linspace(-1.0, 1.0, _TIMED, dtype=np.float32)
    draws = np.zeros(_TIMED, np.int32)
    message, pads = (np.zeros(_TIMED, message_type(lattice)) for _ in range(2))

    def clip_and_encode() -> None:
        float(values @ values)
        encode_ready(values, draws, lattice, out=message)

    out = np.empty(_TIMED, np.float32)
    return Speed(
        noise=_seconds(lambda: fill_rounded_gaussian(draws, lattice.sigma, key)),
        encode=_seconds(clip_and_encode),
        mask=_seconds(lambda: add_mask(message, key)),
        add=_seconds(lambda: np.add(message, pads, out=message)),
        decode=_seconds(lambda: decode(message, lattice, out=out)),
    )


def _seconds(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times) / _TIMED


def _times(network: Network, world_size: int, message: int, speed: Speed) -> list[TimePoint]:
    bits = bound_lattice(simulated_plan(LOCAL, world_size), message, world_size).wire_bits
    neighbours = min(_COLLUDERS + 1, world_size - 1)
    found = []
    for protected in protections(speed, wire_bits=bits, neighbours=neighbours):
        algorithm, _ = fastest(world_size, message * protected.bytes_per_coordinate, network)
        for suffix, sustained in (("", False), ("/sustained", True)):
            if sustained and protected.ahead == 0.0:
                continue
            seconds = predicted(
                protected, message, world_size, network, algorithm=algorithm, sustained=sustained
            )
            name = protected.name + suffix
            found.append(TimePoint(network.name, name, algorithm, world_size, seconds))
    return found
