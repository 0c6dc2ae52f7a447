"""Latency, link and adding, from measured sums: least squares for the model of `cost`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from dither.errors import ConfigError
from dither.reduce.cost import Link, counts


@dataclass(frozen=True)
class Point:
    """A measured sum.

    Attributes:
        algorithm: One of `ALGORITHMS`.
        world_size: R.
        size: Bytes of the message.
        seconds: Time.
    """

    algorithm: str
    world_size: int
    size: int
    seconds: float


@dataclass(frozen=True)
class Fit:
    """A link and a core as measured.

    Attributes:
        link: α and β.
        seconds_per_reduced_byte: γ.
        residuals: Model over measured, less 1, point by point.
    """

    link: Link
    seconds_per_reduced_byte: float
    residuals: tuple[float, ...]

    @property
    def error(self) -> float:
        """Root mean square of the residuals."""
        return math.sqrt(math.fsum(r * r for r in self.residuals) / len(self.residuals))


def fit(points: Sequence[Point]) -> Fit:
    """Return the α, β, γ ≥ 0 with the least squares of relative errors.

    Raises:
        ConfigError: The points do not tell the three apart: all of one size, or all of algorithms
            that add up the same share of what they send.
    """
    if any(point.seconds <= 0.0 for point in points):
        raise ConfigError(
            expected="measured times above 0", got="others", fix="measure again, with more repeats"
        )
    found = [counts(point.algorithm, point.world_size, point.size) for point in points]
    rows = [[each.steps, each.size, each.reduced] for each in found]
    table = np.asarray(rows, float).reshape(-1, 3)
    table /= np.asarray([[point.seconds] for point in points], float).reshape(-1, 1)
    scale = np.sqrt((table**2).sum(0))
    if table.shape[0] < 3 or not scale.all() or np.linalg.cond(table / scale) > 1e6:
        raise ConfigError(
            expected="points of several sizes, and of algorithms that add up different shares of "
            "what they send (naive and ring, for instance)",
            got=f"{len(points)} that do not tell latency, link and adding apart",
            fix="measure more sizes and algorithms",
        )
    solved, _ = nnls(table / scale, np.ones(len(points)))
    alpha, beta, gamma = (float(value) for value in solved / scale)
    residuals = table @ np.asarray([alpha, beta, gamma]) - 1.0
    return Fit(Link(alpha, beta), gamma, tuple(float(value) for value in residuals))
