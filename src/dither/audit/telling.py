"""Telling two inputs apart: the best test of a shift in Gaussian noise, and what it can reach.

A game: a fair coin chooses one of two inputs, somebody sees an output and says which. The
*advantage* is P(says the second | it was) − P(says the second | it was not), 0 for one who only
guesses and 1 for one who always knows. Of all tests, comparing the likelihoods is the best (Neyman
and Pearson); between N(x₀, σ²I) and N(x₁, σ²I) that is to project on x₁ − x₀ and to compare with
the middle, and its advantage is 2Φ(μ/2) − 1 with μ = ‖x₁ − x₀‖/σ (Dong, Roth and Su 1905.02383,
μ-GDP). Nobody who sees no more can do better, however clever: that number is the ceiling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import norm

from dither.audit.bounds import clopper_pearson
from dither.errors import ConfigError


@dataclass(frozen=True)
class Advantage:
    """How well somebody told two inputs apart.

    Attributes:
        games: How many games were played.
        right: How many answers were right.
        value: 2·right/games − 1.
        low: Lower end of the confidence interval (Clopper and Pearson, exact).
        high: Upper end.
        confidence: That the true advantage lies between, over all repetitions of the games.
    """

    games: int
    right: int
    value: float
    low: float
    high: float
    confidence: float

    @classmethod
    def of(cls, right: int, games: int, confidence: float) -> Advantage:
        """Return it for so many right answers in games of independent fair coins.

        Raises:
            ConfigError: No games, or a confidence outside (0, 1).
        """
        if games < 1 or not 0.0 < confidence < 1.0:
            raise ConfigError(
                expected="at least one game and a confidence in (0, 1)",
                got=f"{games} games at {confidence!r}",
                fix="play more games; take a confidence of 0.999, for instance",
            )
        low, high = clopper_pearson(right, games, confidence)
        share = right / games
        return cls(games, right, 2 * share - 1, 2 * low - 1, 2 * high - 1, confidence)

    def within(self, ceiling: float) -> bool:
        """Whether this is no evidence of an advantage above the ceiling."""
        return self.low <= ceiling

    def reaches(self, ceiling: float) -> bool:
        """Whether this is no evidence of an advantage below it: the attack had its full power."""
        return self.high >= ceiling


def gaussian_ceiling(mu: float) -> float:
    """Return 2Φ(μ/2) − 1, the largest advantage over a shift of μ standard deviations.

    Also the largest TPR − FPR at any threshold under μ-GDP (1905.02383, Definition 2.6).

    Args:
        mu: Distance of the two inputs over the noise's standard deviation; ∞ without noise.
    """
    return 2.0 * float(norm.cdf(mu / 2.0)) - 1.0


def dp_ceiling(epsilon: float, delta: float) -> float:
    """Return (e^ε − 1 + 2δ)/(e^ε + 1), the largest advantage under (ε, δ) (Kairouz 1311.0776)."""
    if math.isinf(epsilon):
        return 1.0
    return min(1.0, math.tanh(epsilon / 2.0) + 2.0 * delta / (math.exp(epsilon) + 1.0))


def dp_tpr(fpr: float, epsilon: float, delta: float) -> float:
    """Return the largest TPR at an FPR that (ε, δ) allows: both inequalities of 1311.0776.

    Args:
        fpr: False-positive rate.
        epsilon: ε.
        delta: δ.
    """
    if math.isinf(epsilon):
        return 1.0
    by_record = math.exp(epsilon) * fpr + delta
    by_absence = 1.0 - math.exp(-epsilon) * (1.0 - delta - fpr)
    return max(0.0, min(1.0, by_record, by_absence))


def gaussian_tpr(fpr: float, mu: float) -> float:
    """Return the largest TPR at an FPR under μ-GDP: Φ(Φ⁻¹(fpr) + μ)."""
    return float(norm.cdf(norm.ppf(fpr) + mu))


def says_second(
    seen: Float[np.ndarray, "games dimension"],
    first: Float[np.ndarray, "*games dimension"],
    second: Float[np.ndarray, "*games dimension"],
) -> Bool[np.ndarray, " games"]:
    """Return the answers of the best test between two inputs in isotropic Gaussian noise.

    Args:
        seen: One output a game.
        first: Input of one hypothesis, for all games or one a game.
        second: Input of the other.
    """
    shift = second - first
    middle = (second + first) / 2.0
    return np.asarray(((seen - middle) * shift).sum(axis=-1) > 0.0)


def told(
    answers: Bool[np.ndarray, " games"], truth: Bool[np.ndarray, " games"], confidence: float
) -> Advantage:
    """Return the advantage of answers, given what the coins said."""
    return Advantage.of(int((answers == truth).sum()), answers.size, confidence)
