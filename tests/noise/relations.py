"""Whether two series of draws at σ = `WIDE` know of each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tests.noise.laws import WIDE, Counts, Draws, poisson, uniform, within


@dataclass(frozen=True)
class Relation:
    """What two series of independent draws have in common.

    Attributes:
        count: Pairs compared.
        values: Sum of products in units of σ².
        squares: Sum of products of (z² − 1)/√2.
        signs: Pairs of equal sign, less half of all.
        differences: Counts of their difference modulo 256, shape ``[256]``.
        equal: Pairs that are equal.
    """

    count: int
    values: float
    squares: float
    signs: float
    differences: Counts
    equal: int

    @classmethod
    def of(cls, left: Draws, right: Draws) -> Relation:
        """Compare draws, pair by pair."""
        one, two = left / WIDE, right / WIDE
        apart = left - right
        return cls(
            count=left.size,
            values=float(one @ two),
            squares=float((one * one - 1) @ (two * two - 1)) / 2,
            signs=float(np.count_nonzero((left < 0) == (right < 0))) - left.size / 2,
            differences=np.bincount(apart.astype(np.uint8), minlength=256),
            equal=int(np.count_nonzero(apart == 0)),
        )

    def __add__(self, other: Relation) -> Relation:
        return Relation(
            self.count + other.count,
            self.values + other.values,
            self.squares + other.squares,
            self.signs + other.signs,
            self.differences + other.differences,
            self.equal + other.equal,
        )

    def alarms(self) -> set[str]:
        """Return what independent series would show with probability 1e-7 each, five verdicts.

        The products' sums are nearly normal at the millions of pairs used here: with a skewness
        of 8 a pair, the squares' false-alarm rate is 1.3e-7 at 2 million.
        """
        root = np.sqrt(self.count)
        holds = {
            "values": within(self.values / root),
            "squares": within(self.squares / root),
            "signs": within(2 * self.signs / root),
            "low bits": uniform(self.differences),
            "equal": poisson(self.equal, self.count / (2 * WIDE * np.sqrt(np.pi))),
        }
        return {name for name, fine in holds.items() if not fine}


def lagged(drawn: Draws, lag: int) -> Relation:
    """Each draw with the one so many places before it."""
    return Relation.of(drawn[lag:], drawn[:-lag])


def partners(drawn: Draws) -> Relation:
    """Each cosine part with the sine part of the same radius and angle, 8 places after it."""
    pairs = drawn.reshape(-1, 2, 8)
    return Relation.of(pairs[:, 0].reshape(-1), pairs[:, 1].reshape(-1))


def repeats(*series: Draws) -> int:
    """How many runs of 4 draws, from multiples of 4 on, stand again anywhere.

    Compared by 64 bits of them: a false alarm in 10⁷ calls for 8 million draws.
    """
    runs = np.concatenate([drawn[: drawn.size // 4 * 4] for drawn in series]).astype(np.uint64)
    words = runs[0::2] << np.uint64(32) ^ runs[1::2] & np.uint64(0xFFFFFFFF)
    both = np.sort(words[0::2] * np.uint64(0x9E3779B97F4A7C15) + words[1::2])
    return int(np.count_nonzero(both[1:] == both[:-1]))
