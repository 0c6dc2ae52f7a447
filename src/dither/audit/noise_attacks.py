"""Attacks on how noise is made: a pool that hands a block out twice, floats on a lattice.

Both need no key and no contribution: they look at released numbers alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Integer
from scipy.stats import norm

from dither.audit.bounds import clopper_pearson
from dither.audit.telling import gaussian_ceiling, told
from dither.errors import ConfigError
from dither.noise.codec import decode, encode_ready
from dither.noise.key import Key
from dither.noise.pool import NoisePool
from dither.noise.rounded import fill_rounded_gaussian
from dither.privacy.lattice import Lattice
from dither.privacy.trust import LOCAL
from dither.reduce.simulate import simulated_plan
from dither.release.contribution import bound_lattice
from dither.release.encoder import Encoder

FALSE_ALARM = 1e-6
_LENGTH = 1 << 16  # coordinates of a release
_RELEASES = 16
_SHORTEST = 4096  # overlaps below it are not looked at
WIDE = 2.0**20

# Makes so many integers of noise.
Sampler: TypeAlias = Callable[[int], Integer[np.ndarray, " size"]]


@dataclass(frozen=True)
class Reuse:
    """What the search for repeated noise found.

    Attributes:
        case: What was searched.
        numbers: Released numbers in all.
        found: Whether noise repeats.
        lag: Distance of the two uses, in numbers; where it is strongest, found or not.
        score: Autocorrelation there, in standard deviations of that of fresh noise.
        threshold: Above it noise counts as repeated.
        false_alarm: Probability that fresh noise does.
        noise_left: Standard deviation of what noise is left in the difference of the two uses, over
            that of one release: √2 where noise is fresh, near 0 where it repeats.
    """

    case: str
    numbers: int
    found: bool
    lag: int
    score: float
    threshold: float
    false_alarm: float
    noise_left: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def autocorrelation(values: Float[np.ndarray, " size"]) -> Float[np.ndarray, " lags"]:
    """Return Σ xᵢ·xᵢ₊ₗ / (σ²·√(n − l)) for each lag l with enough overlap; the first is of lag 0.

    About standard normal for every lag above 0 where the values are independent; where L of them
    are used twice at that distance, about L/√(n − l).
    """
    centred = values - values.mean()
    size = centred.size
    transformed = np.fft.rfft(centred, 2 * size)
    sums = np.fft.irfft(transformed * transformed.conj(), 2 * size)[: size - _SHORTEST]
    variance = float(centred @ centred) / size
    return np.asarray(sums / (variance * np.sqrt(size - np.arange(sums.size))))


def find_reuse(
    case: str,
    released: Float[np.ndarray, " size"],
    true: Float[np.ndarray, " size"],
    sigma: float,
    repeated: int = _SHORTEST,
) -> Reuse:
    """Look for noise that was used twice, at whatever distance.

    Args:
        case: Name.
        released: All numbers, in the order in which they left.
        true: The contributions in them: only to say afterwards how much noise was left.
        sigma: Standard deviation of the noise in them.
        repeated: Length of a piece to look at afterwards.

    Raises:
        ConfigError: Too few numbers.
    """
    if released.size < 4 * _SHORTEST:
        raise ConfigError(
            expected=f"at least {4 * _SHORTEST} released numbers",
            got=str(released.size),
            fix="watch more releases",
        )
    scores = autocorrelation(released)[1:]
    lag = int(scores.argmax()) + 1
    score = float(scores[lag - 1])
    threshold = float(norm.isf(FALSE_ALARM / scores.size))
    noise = (released - true)[lag:] - (released - true)[:-lag]
    pieces = noise[: noise.size // repeated * repeated].reshape(-1, repeated)
    # Where they are closest: only a piece of the stream may be used twice.
    left = float(np.sqrt((pieces**2).mean(axis=1)).min()) / sigma
    return Reuse(case, released.size, score > threshold, lag, score, threshold, FALSE_ALARM, left)


def attack_pool(generator: np.random.Generator) -> tuple[Reuse, Reuse]:
    """Search releases by dither's pool, and by one that hands out a quarter of a block twice.

    Args:
        generator: Draws contributions.
    """
    lattice = bound_lattice(simulated_plan(LOCAL, 8), _LENGTH, 8)
    true = generator.standard_normal((_RELEASES, _LENGTH)).astype(np.float32)
    true /= np.linalg.norm(true, axis=1, keepdims=True) * np.float32(1.0 + 1e-6)
    flat = true.reshape(-1).astype(np.float64)
    sigma = lattice.sigma * lattice.step
    with NoisePool(lattice.sigma, capacity=1 << 18) as pool:
        encoder = Encoder(lattice, pool)
        honest = np.concatenate([encoder.decode(encoder.encode(row).message) for row in true])
    with NoisePool(lattice.sigma, capacity=1 << 18) as pool:
        reused = _with_reuse(pool, true, lattice)
    return (
        find_reuse("dither's pool", honest, flat, sigma),
        find_reuse("a pool that hands out 16,384 draws twice", reused, flat, sigma),
    )


def _with_reuse(
    pool: NoisePool, true: Float[np.ndarray, "releases size"], lattice: Lattice
) -> Float[np.ndarray, " numbers"]:
    """The defect, put in here on purpose: a piece of the third release is in the tenth again."""
    draws = np.empty(true.shape, np.int32)
    for row in draws:
        pool.take(row)
    draws[9, 1000 : 1000 + 16384] = draws[2, 30000 : 30000 + 16384]
    messages = [
        encode_ready(row, noise, lattice).message for row, noise in zip(true, draws, strict=True)
    ]
    return np.concatenate([decode(message, lattice) for message in messages])


@dataclass(frozen=True)
class Parity:
    """What the lowest bit of noise on a lattice tells (PRIVACY-REVIEW A1).

    Attributes:
        case: How the noise was made.
        draws: How many were counted.
        even: Share of even numbers.
        low: Lower end of its confidence interval.
        high: Upper end.
        coordinates: Shifted together by one lattice step in the game.
        advantage: In telling whether they were.
        advantage_low: Lower end of its confidence interval.
        advantage_high: Upper end.
        ceiling: Of whoever sees Gaussian noise: the shift is a tiny part of σ.
        confidence: Of the intervals.
        leaks: Whether the advantage is surely above the ceiling.
    """

    case: str
    draws: int
    even: float
    low: float
    high: float
    coordinates: int
    advantage: float
    advantage_low: float
    advantage_high: float
    ceiling: float
    confidence: float
    leaks: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def float32_box_muller(sigma: float, generator: np.random.Generator) -> Sampler:
    """Return the naive sampler: Box and Muller's normals in float32, scaled and rounded.

    Quarters and eighths of a step are all that float32 has out there, and ties go to even numbers.
    """

    def draw(count: int) -> np.ndarray:
        uniform = np.float32(1.0) - generator.random(count, np.float32)
        radius = np.sqrt(np.float32(-2.0) * np.log(uniform))
        angle = np.float32(2.0 * math.pi) * generator.random(count, np.float32)
        scaled = radius * np.cos(angle) * np.float32(sigma)
        return np.asarray(np.rint(scaled).astype(np.int32))

    return draw


def lattice_sampler(sigma: float) -> Sampler:
    """Return dither's own."""
    key = Key()

    def draw(count: int) -> np.ndarray:
        drawn = np.empty(count, np.int32)
        fill_rounded_gaussian(drawn, sigma, key)
        return drawn

    return draw


def attack_parity(
    case: str,
    sampler: Sampler,
    *,
    generator: np.random.Generator,
    sigma: float = WIDE,
    coordinates: int = 10_000,
    games: int = 400,
    confidence: float = 1.0 - FALSE_ALARM,
) -> Parity:
    """Count even numbers, and tell a shift of all coordinates by one step from none by them.

    Args:
        case: Name.
        sampler: Of the noise.
        generator: Throws the coins of the games.
        sigma: Its standard deviation, in steps.
        coordinates: Shifted together.
        games: How often.
        confidence: Of both intervals.
    """
    coins = generator.random(games) < 0.5
    share = np.array([float((sampler(coordinates) & 1 == 0).mean()) for _ in coins])
    even = round(float(share.sum()) * coordinates)
    low, high = clopper_pearson(even, games * coordinates, confidence)
    # Shifted by one, even numbers are odd ones.
    answers = np.where(coins, 1.0 - share, share) < 0.5
    found = told(answers, coins, confidence)
    ceiling = gaussian_ceiling(math.sqrt(coordinates) / sigma)
    return Parity(
        case=case,
        draws=games * coordinates,
        even=even / (games * coordinates),
        low=low,
        high=high,
        coordinates=coordinates,
        advantage=found.value,
        advantage_low=found.low,
        advantage_high=found.high,
        ceiling=ceiling,
        confidence=confidence,
        leaks=not found.within(ceiling),
    )
