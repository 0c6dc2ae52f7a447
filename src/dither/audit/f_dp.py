"""One-run bounds that use the whole trade-off curve of a mechanism, not one (ε, δ) of it.

Mahloujifar, Melis and Chaudhuri, "Auditing f-differential privacy in one run" (2410.22235).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from dp_accounting import pld
from jaxtyping import Float
from scipy import stats

from dither.audit.bounds import Guesses, check_confidence
from dither.privacy.events import Event, Relation
from dither.privacy.plan import Plan

_GRID = np.concatenate([np.linspace(0.0, 4.0, 81), np.linspace(4.25, 12.0, 32)])

_INTERVAL = 3e-3
# Shares of the claimed noise that are tried; and a noise multiplier below which PLD takes minutes.
_LEAST_SHARE, _MOST_SHARE, _LEAST_NOISE = 0.2, 16.0, 0.1


@dataclass(frozen=True)
class TradeOff:
    """Pairs (ε, δ) that a mechanism satisfies all at once, in both directions.

    They say that P(A) ≤ min over pairs of e^ε·Q(A) + δ for neighbours P and Q and every event A.

    Attributes:
        epsilons: Any real numbers.
        deltas: One for each.
    """

    epsilons: Float[np.ndarray, " pairs"]
    deltas: Float[np.ndarray, " pairs"]

    @classmethod
    def of(
        cls, epsilons: Float[np.ndarray, " pairs"], deltas: Float[np.ndarray, " pairs"]
    ) -> TradeOff:
        """Return the curve of pairs with ε ≥ 0, and of what they say of complements.

        P(A) ≤ e^ε·Q(A) + δ of complements and the other direction is
        P(A) ≤ e^(-ε)·Q(A) + 1 - e^(-ε)·(1 - δ).
        """
        beyond = 1.0 - np.exp(-epsilons) * (1.0 - deltas)
        return cls(np.concatenate([epsilons, -epsilons]), np.concatenate([deltas, beyond]))

    @classmethod
    def approximate(cls, epsilon: float, delta: float) -> TradeOff:
        """Return the curve of a mechanism that is (ε, δ)-private, and no more."""
        return cls.of(np.array([epsilon]), np.array([delta]))

    @classmethod
    def gaussian(cls, mu: float) -> TradeOff:
        """Return the curve of N(0, 1) against N(μ, 1) (Balle and Wang 1805.06530, Theorem 8)."""
        deltas = stats.norm.cdf(mu / 2 - _GRID / mu) - np.exp(_GRID) * stats.norm.cdf(
            -mu / 2 - _GRID / mu
        )
        return cls.of(_GRID, np.maximum(deltas, 0.0))

    @classmethod
    def of_plan(cls, plan: Plan, noise: float = 1.0) -> TradeOff:
        """Return the curve of all steps of a plan, with so many times its noise, by PLD."""
        planned = plan.with_noise_multiplier(plan.noise_multiplier * noise)
        return cls.of(_GRID, _deltas(planned.event, planned.steps, planned.relation))

    def least(self, mass: float) -> float:
        """Return the least Q(A) of an event with P(A) = mass."""
        return max(0.0, float(((mass - self.deltas) * np.exp(-self.epsilons)).max()))


@functools.lru_cache(maxsize=128)
def _deltas(event: Event, steps: int, relation: Relation) -> Float[np.ndarray, " pairs"]:
    # Coarser than an account's: dp-accounting rounds δ up, so the curve holds all the same.
    accountant: Any = pld.PLDAccountant(relation.to_dp_accounting(), _INTERVAL)
    accountant.compose(event.to_dp_event(), steps)
    return np.array([accountant.get_delta(float(each)) for each in _GRID])


def p_value(found: Guesses, curve: TradeOff) -> float:
    """Return how likely so many correct guesses are at most, on a mechanism of this curve.

    With p_i the probability of exactly i correct guesses of the r made, and J a canary chosen at
    random, "J is guessed rightly, and i ≥ c in all" has probability A_c = Σ_{i≥c} (i/m)·p_i; with
    J's coin turned over, the same guesses are one fewer right and J's is wrong, which has
    probability B_{c-1} = Σ_{i≥c-1} ((r-i)/m)·p_i. So A_c ≤ f̄(B_{c-1}) for every c (their Theorem
    3.2, f̄ concave). A tail that large forces the p_i below it from above; where they come to more
    than 1 the tail cannot be (their Algorithm 3). All r guesses must always be made.

    Args:
        found: The guesses.
        curve: Of the hypothesis.
    """
    if found.correct == 0:
        return 1.0
    if _possible(found, curve, 1.0):
        return 1.0
    low, high = 0.0, 1.0
    while high - low > 1e-3 * high and high > 1e-12:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _possible(found, curve, middle) else (low, middle)
    return high


def _possible(found: Guesses, curve: TradeOff, tail: float) -> bool:
    """Whether P[correct ≥ v] = tail leaves the p_i with a sum of at most 1."""
    m, r, v = found.canaries, found.made, found.correct
    right, wrong = tail * v / m, tail * (r - v) / m
    for i in range(v - 1, -1, -1):
        needed = max(wrong, curve.least(right))
        right += i / (r - i) * (needed - wrong)
        wrong = needed
        if right + wrong > r / m:
            return False
    return True


@dataclass(frozen=True)
class NoiseBound:
    """What one run's guesses say of the noise that was there.

    Attributes:
        noise: The run had at most this share of its claimed noise, at the stated confidence; 1
            and above: the claim stands.
        epsilon: ε of the plan at that much noise, a lower bound; 0 where nothing is ruled out.
    """

    noise: float
    epsilon: float


def noise_bound(
    found: Guesses,
    plan: Plan,
    confidence: float = 0.95,
    *,
    curve: Callable[[float], TradeOff] | None = None,
) -> NoiseBound:
    """Return the least share of the claimed noise that one run's guesses do not rule out.

    More than that is ruled out: with as much noise, so many correct guesses had a probability
    below 1 - confidence. ε follows from the plan with that share of its noise. The bound holds
    among mechanisms that are the plan's with some share of its noise, which is what a defect of
    the noise is; `dither.audit.bounds.epsilon_one_run` holds for any mechanism.

    Args:
        found: The guesses.
        plan: What was claimed.
        confidence: In (0, 1).
        curve: Of a share of noise; by default the plan's, by PLD.

    Raises:
        ConfigError: The confidence is not in (0, 1).
    """
    check_confidence(confidence)
    shape = curve or (lambda share: TradeOff.of_plan(plan, share))
    low, high = max(_LEAST_SHARE, _LEAST_NOISE / plan.noise_multiplier), _MOST_SHARE
    if p_value(found, shape(high)) > 1.0 - confidence:
        return NoiseBound(math.inf, 0.0)
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        ruled_out = p_value(found, shape(middle)) <= 1.0 - confidence
        low, high = (low, middle) if ruled_out else (middle, high)
    share = plan.with_noise_multiplier(plan.noise_multiplier * high)
    return NoiseBound(high, share.epsilon())
