"""What guesses say of a claim: two bounds, each at the stated confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from dither.audit import f_dp
from dither.audit.bounds import Guesses, epsilon_one_run, p_value
from dither.privacy.plan import Plan


@dataclass(frozen=True)
class Finding:
    """Guesses against a claim.

    Attributes:
        guesses: How many were right.
        claimed: ε of the plan at its δ.
        epsilon: Lower bound on ε, for any mechanism.
        p_value: Of the claim, for any (ε, δ)-private mechanism.
        noise: Upper bound on the share of the claimed noise that was there, for the plan's own
            mechanism; infinite where nothing is ruled out.
        noise_epsilon: ε of the plan with that share of noise.
        confidence: Of each bound by itself.
    """

    guesses: Guesses
    claimed: float
    epsilon: float
    p_value: float
    noise: float
    noise_epsilon: float
    confidence: float

    @property
    def detected(self) -> bool:
        """Whether the bound for any mechanism is above the claim."""
        return self.epsilon > self.claimed

    @property
    def noise_detected(self) -> bool:
        """Whether there was less noise than claimed."""
        return self.noise < 1.0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; an infinite bound is null."""
        return {
            "guesses": self.guesses.made,
            "correct": self.guesses.correct,
            "epsilon_lower": self.epsilon,
            "p_value": self.p_value,
            "detected": self.detected,
            "noise_share_upper": self.noise if math.isfinite(self.noise) else None,
            "noise_epsilon_lower": self.noise_epsilon,
            "noise_detected": self.noise_detected,
        }


def finding(found: Guesses, plan: Plan, confidence: float = 0.95) -> Finding:
    """Return what one run's guesses say of its plan.

    The two bounds are two tests of one run: each errs with probability at most 1 - confidence, so
    that either does has at most twice that.

    Args:
        found: The guesses.
        plan: The claim.
        confidence: Of each bound, in (0, 1).

    Raises:
        ConfigError: The confidence is not in (0, 1).
    """
    claimed = plan.epsilon()
    noise = f_dp.noise_bound(found, plan, confidence)
    return Finding(
        guesses=found,
        claimed=claimed,
        epsilon=epsilon_one_run(found, plan.delta, confidence),
        p_value=p_value(found, claimed, plan.delta),
        noise=noise.noise,
        noise_epsilon=noise.epsilon,
        confidence=confidence,
    )


def histogram(
    scores: Float[np.ndarray, " canaries"], included: Bool[np.ndarray, " canaries"], bins: int = 40
) -> dict[str, list[float]]:
    """Return how the scores of canaries that were in, and of those that were not, lie.

    Args:
        scores: Of all.
        included: Which were in.
        bins: Of equal width.

    Returns:
        Edges, and counts for each bin.
    """
    edges = np.histogram_bin_edges(scores, bins)
    return {
        "edges": edges.tolist(),
        "in": np.histogram(scores[included], edges)[0].tolist(),
        "out": np.histogram(scores[~included], edges)[0].tolist(),
    }
