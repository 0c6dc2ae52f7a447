"""Scores of canaries, guesses from scores, and how many guesses to make, decided before."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool, Float

from dither.audit.bounds import Guesses, epsilon_one_run
from dither.errors import ConfigError

ALTERNATIVE = 0.5
"""Share of the claimed noise that the score is made to tell, registered before any run."""

# Steps over which the records' own drift on a coordinate is followed.
_WINDOW = 50
# The same for their spread; and steps before the first that counts.
_SPREAD_WINDOW = 200
LEARNT = 10
_TRIALS = 3


@dataclass(frozen=True)
class Channel:
    """What an auditor knows of a run's noise and samples; all of it public.

    Attributes:
        steps: T.
        rate: q, with which a canary that is in joins a step.
        sigma: Claimed standard deviation of a coordinate's noise over C.
        delta: δ of the claim.
    """

    steps: int
    rate: float
    sigma: float
    delta: float


@final
class LikelihoodScore:
    """Log-likelihood ratio of "in" against "out", step by step, at the alternative's noise.

    With r_t the released number on a canary's coordinate over C, times its sign, less the records'
    drift: Σ_t log(1 - q + q·exp((2·r_t - 1)/(2s²))). The drift is the mean of the coordinate's
    numbers before (a window of 50 steps), which follows the gradient of the records. s² is the
    variance of the alternative's noise plus what the records' own sampling adds on that coordinate:
    how far its numbers spread (a window of 200) beyond those of the median coordinate, which is
    nearly noise alone. Without that, the coordinates on which records differ most would have the
    highest scores, whoever was in. A sum of the r_t alone, without the likelihood, misses halved
    noise (PRIVACY-REVIEW D).

    Args:
        canaries: m.
        channel: Of the run.
        alternative: Share of the claimed noise.
        l2_clip: C.
    """

    def __init__(
        self,
        canaries: int,
        channel: Channel,
        alternative: float = ALTERNATIVE,
        l2_clip: float = 1.0,
    ) -> None:
        self.values: Float[np.ndarray, " canaries"] = np.zeros(canaries)
        self._drift = _Trailing(canaries, _WINDOW)
        self._spread = _Trailing(canaries, _SPREAD_WINDOW)
        self._rate = channel.rate
        self._variance = (channel.sigma * alternative) ** 2
        self._clip = l2_clip
        self._steps = 0

    def step(self, released: Float[np.ndarray, " canaries"]) -> None:
        """Add one step; the first few only teach the drift and the spread.

        Args:
            released: The noisy sum on each canary's coordinate, times the canary's sign.
        """
        numbers = released / self._clip
        # A mean of the past has a variance of its own, a share of one number's.
        beyond = 1.0 + self._drift.variance
        rest = numbers - self._drift.mean
        if self._steps >= LEARNT:
            known = self._spread.mean
            excess = np.maximum(known - np.median(known), 0.0)
            exponent = (2.0 * rest - 1.0) / (2.0 * (self._variance * beyond + excess))
            self.values += _log_mixture(self._rate, exponent)
        if self._steps:
            self._spread.add(rest**2 / beyond)
        self._drift.add(numbers)
        self._steps += 1


@final
class _Trailing:
    """Mean of what came before, most recent first."""

    def __init__(self, size: int, window: int) -> None:
        self._sum: Float[np.ndarray, " size"] = np.zeros(size)
        self._keep = 1.0 - 1.0 / window
        self._weight = self._squares = 0.0

    def add(self, numbers: Float[np.ndarray, " size"]) -> None:
        self._sum = self._keep * self._sum + numbers
        self._weight = self._keep * self._weight + 1.0
        self._squares = self._keep**2 * self._squares + 1.0

    @property
    def mean(self) -> Float[np.ndarray, " size"]:
        return self._sum / self._weight if self._weight else self._sum

    @property
    def variance(self) -> float:
        """Of the mean, as a share of one number's: Σw²/(Σw)²."""
        return self._squares / self._weight**2 if self._weight else 0.0


def _log_mixture(
    rate: float, exponent: Float[np.ndarray, " canaries"]
) -> Float[np.ndarray, " canaries"]:
    """Return log(1 - q + q·exp(x))."""
    outside = math.log1p(-rate) if rate < 1.0 else -math.inf
    found: Float[np.ndarray, " canaries"] = np.logaddexp(outside, math.log(rate) + exponent)
    return found


@dataclass(frozen=True)
class Rule:
    """How many guesses are made: fixed before the run, whatever the scores are.

    Attributes:
        highest: Of the highest scores, guessed to be in.
        lowest: Of the lowest, guessed to be out.
    """

    highest: int
    lowest: int


def guess(
    scores: Float[np.ndarray, " canaries"], included: Bool[np.ndarray, " canaries"], rule: Rule
) -> Guesses:
    """Guess, and count what is right.

    Args:
        scores: Higher is likelier in. Equal ones are ordered by the canaries' numbers.
        included: The truth.
        rule: How many.

    Raises:
        ConfigError: More guesses than canaries.
    """
    if rule.highest + rule.lowest > scores.size or min(rule.highest, rule.lowest) < 0:
        raise ConfigError(
            expected=f"at most {scores.size} guesses, one a canary",
            got=f"{rule.highest} + {rule.lowest}",
            fix="guess fewer, or insert more canaries",
        )
    order = np.argsort(scores, kind="stable")
    high = order[scores.size - rule.highest :]
    low = order[: rule.lowest]
    correct = int(included[high].sum()) + int((~included[low]).sum())
    return Guesses(scores.size, rule.highest + rule.lowest, correct)


def simulate(
    channel: Channel, canaries: int, noise: float, draw: np.random.Generator
) -> tuple[Float[np.ndarray, " canaries"], Bool[np.ndarray, " canaries"]]:
    """Draw what a run would release on canaries' coordinates, and score it as a run is scored.

    The numbers have exactly the distribution of a run's on coordinates where the records' sum is
    zero: independent Gaussians of ``noise`` times the claimed σ, plus 1 in the steps that a canary
    is in. A run whose records move these coordinates is as hard or harder.

    Args:
        channel: Of the run.
        canaries: m.
        noise: Share of the claimed noise.
        draw: Randomness.

    Returns:
        The scores, and which canaries were in.
    """
    included = draw.random(canaries) < 0.5
    score = LikelihoodScore(canaries, channel)
    sigma = channel.sigma * noise
    for _ in range(channel.steps):
        numbers = sigma * draw.standard_normal(canaries)
        numbers += included & (draw.random(canaries) < channel.rate)
        score.step(numbers)
    return score.values, included


@functools.lru_cache(maxsize=64)
def choose_rule(channel: Channel, canaries: int) -> Rule:
    """Return how many guesses serve best at the alternative, by simulation with a public seed.

    It sees public numbers only and is the same for everyone, so it is fixed before the run.

    Args:
        channel: Of the run.
        canaries: m.
    """
    draw = np.random.default_rng(0)
    runs = [simulate(channel, canaries, ALTERNATIVE, draw) for _ in range(_TRIALS)]
    sizes = sorted({max(1, round(canaries * share)) for share in np.geomspace(0.002, 0.3, 12)})
    rules = [Rule(high, low) for high in sizes for low in (0, high)]
    return max(rules, key=lambda rule: _mean_bound(runs, rule, channel.delta))


def _mean_bound(
    runs: Iterable[tuple[Float[np.ndarray, " m"], Bool[np.ndarray, " m"]]],
    rule: Rule,
    delta: float,
) -> float:
    bounds = [epsilon_one_run(guess(scores, known, rule), delta) for scores, known in runs]
    return float(np.mean(bounds))
