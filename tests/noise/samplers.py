"""Where draws come from: the core, by each of its doors, and ways to do it wrong."""

from __future__ import annotations

import numpy as np
from tests.noise.laws import WIDE, Integers, Reals, Source

from dither.noise.codec import encode
from dither.noise.gaussian import fill_gaussian
from dither.noise.key import Key
from dither.noise.rounded import fill_rounded_gaussian
from dither.privacy.lattice import Lattice


def core(sigma: float = WIDE, key: Key | None = None) -> Source:
    """The lattice draw, as int32."""
    return _filling(np.int32, sigma, key or Key())


def core_int64(sigma: float = WIDE) -> Source:
    """The lattice draw, as int64."""
    return _filling(np.int64, sigma, Key())


def _filling(kind: type[np.int32 | np.int64], sigma: float, key: Key) -> Source:
    def draw(count: int) -> Integers:
        drawn = np.empty(count, kind)
        fill_rounded_gaussian(drawn, sigma, key)
        return drawn

    return draw


def released(sigma: float = WIDE) -> Source:
    """Zeros through the very call that releases take, on a wire as fine as the noise."""
    key, grid = Key(), Lattice(0, sigma, 1, 0, 32, 1)
    return lambda count: encode(np.zeros(count, np.float32), grid, key).message


def rounded(reals: Reals) -> Integers:
    """To the nearest integer, as the naive do it."""
    drawn: Integers = np.rint(reals).astype(np.int32)
    return drawn


def float32_box_muller(sigma: float = WIDE) -> Source:
    """Our own float32 normals, scaled and rounded: what must never be on a release path."""
    key = Key()

    def draw(count: int) -> Integers:
        drawn = np.empty(count, np.float32)
        fill_gaussian(drawn, key)
        return rounded(drawn * np.float32(sigma))

    return draw


def even_more_often(source: Source, share: float) -> Source:
    """P(even) = ½ + share."""
    generator = np.random.default_rng()

    def draw(count: int) -> Integers:
        drawn = source(count)
        return drawn & ~(generator.random(count, np.float32) < 2 * share).astype(drawn.dtype)

    return draw


def low_bits_dropped(source: Source, bits: int) -> Source:
    """As if the radius had fewer bits: multiples of 2**bits."""
    return lambda count: source(count) >> bits << bits


def cut(source: Source, limit: float) -> Source:
    """Nothing beyond the limit: such draws are halved."""

    def draw(count: int) -> Integers:
        drawn = source(count)
        return np.where(np.abs(drawn) > limit, drawn >> 1, drawn)

    return draw


def heavier(source: Source, limit: float, share: float) -> Source:
    """This share of the draws near half the limit moves beyond it."""
    generator = np.random.default_rng()

    def draw(count: int) -> Integers:
        drawn = source(count)
        moved = generator.random(count, np.float32) < share
        moved &= np.abs(drawn) > limit / 2
        return np.where(moved, drawn * 2, drawn)

    return draw


def shifted(source: Source, steps: int) -> Source:
    """Off centre."""
    return lambda count: source(count) + np.int32(steps)


def uniform_sum(sigma: float = WIDE) -> Source:
    """Twelve uniforms added: the right mean and variance, and no normal."""
    generator = np.random.default_rng()

    def draw(count: int) -> Integers:
        total = generator.random((12, count), np.float32).sum(axis=0) - np.float32(6)
        return rounded(total * np.float32(sigma))

    return draw
