"""Lower bounds on ε from an attack's hits and misses, at a stated confidence.

A bound above the ε that was claimed is a bug, but for the chance that the confidence leaves. A
bound below it is no proof of anything: another attack may do better.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from dither.errors import ConfigError

LARGEST = 20.0
"""Where the search for ε ends: beyond it accuracies differ from 1 by less than 1e-8."""

_PRECISION = 1e-4


@dataclass(frozen=True)
class Guesses:
    """What an auditor guessed of canaries, each of which was in by a fair coin.

    Attributes:
        canaries: m, how many there were.
        made: r, how many were guessed; of the others the auditor said nothing.
        correct: v, how many of these rightly.
    """

    canaries: int
    made: int
    correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.made <= self.canaries:
            raise ConfigError(
                expected="0 <= correct <= made <= canaries",
                got=f"{self.correct}, {self.made}, {self.canaries}",
                fix="count correct guesses among those made, and these among the canaries",
            )


def p_value(found: Guesses, epsilon: float, delta: float) -> float:
    """Return how likely so many correct guesses are at most, if one run is (ε, δ)-private.

    Steinke, Nasr and Jagielski 2305.08846, Theorem 5.2: with W ~ Binomial(r, e^ε/(1+e^ε)),
    P[V ≥ v] ≤ P[W ≥ v] + 2mδ · max over i of P[v - i ≤ W < v] / i. The number of guesses made must
    not depend on which canaries were in.

    Args:
        found: The guesses.
        epsilon: ε ≥ 0 of the hypothesis.
        delta: δ of the hypothesis.
    """
    made, correct = found.made, found.correct
    if correct == 0:
        return 1.0
    accuracy = 1.0 / (1.0 + math.exp(-epsilon))
    tail = float(stats.binom.sf(correct - 1, made, accuracy))
    below = np.cumsum(stats.binom.pmf(np.arange(correct - 1, -1, -1), made, accuracy))
    worst = float((below / np.arange(1, correct + 1)).max())
    return min(1.0, tail + 2.0 * found.canaries * delta * worst)


def epsilon_one_run(found: Guesses, delta: float, confidence: float = 0.95) -> float:
    """Return the largest ε that one run's guesses rule out; 0 where they rule out nothing.

    If the run was (ε, δ)-private, the result is above ε with probability at most 1 - confidence.
    See `p_value`.

    Args:
        found: The guesses of one run.
        delta: δ at which ε is bounded.
        confidence: In (0, 1).

    Raises:
        ConfigError: The confidence is not in (0, 1).
    """
    allowed = _alarm(confidence)
    return _largest(lambda epsilon: p_value(found, epsilon, delta) <= allowed)


def clopper_pearson(hits: int, trials: int, confidence: float) -> tuple[float, float]:
    """Return a two-sided confidence interval for a probability, exact for any number of trials.

    Args:
        hits: Successes.
        trials: Independent trials, at least 1.
        confidence: That the interval holds the probability.

    Raises:
        ConfigError: Counts that cannot be, or a confidence not in (0, 1).
    """
    side = _alarm(confidence) / 2.0
    if not 0 <= hits <= trials or trials < 1:
        raise ConfigError(
            expected="between 0 and all of at least one trial",
            got=f"{hits} of {trials}",
            fix="count hits among trials",
        )
    low = 0.0 if hits == 0 else float(stats.beta.ppf(side, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(stats.beta.isf(side, hits + 1, trials - hits))
    return low, high


def epsilon_many_runs(
    true_positives: int,
    trials_in: int,
    false_positives: int,
    trials_out: int,
    *,
    delta: float,
    confidence: float = 0.95,
) -> float:
    """Return a lower bound on ε from one test over many independent runs.

    (ε, δ)-privacy keeps TPR ≤ e^ε·FPR + δ and 1 - FPR ≤ e^ε·(1 - TPR) + δ (Kairouz, Oh and
    Viswanath 1311.0776). Each rate has a Clopper-Pearson interval at half of the error, and from
    each only one side is used, so the bound is above ε with probability at most 1 - confidence.

    Args:
        true_positives: Runs with the record in which the test said so.
        trials_in: Runs with the record.
        false_positives: Runs without it in which the test said that it was in.
        trials_out: Runs without it.
        delta: δ at which ε is bounded.
        confidence: In (0, 1).

    Raises:
        ConfigError: Counts or confidence out of range.
    """
    # Both intervals' used sides err with (1 - confidence) / 2 each.
    hit = clopper_pearson(true_positives, trials_in, confidence)[0]
    false = clopper_pearson(false_positives, trials_out, confidence)[1]
    return max(0.0, _log_ratio(hit - delta, false), _log_ratio(1.0 - delta - false, 1.0 - hit))


def _log_ratio(above: float, below: float) -> float:
    return math.log(above / below) if above > 0.0 < below else 0.0


def _largest(ruled_out: Callable[[float], bool]) -> float:
    """Return the largest ε of a decreasing rule, up to `LARGEST`, rounded down."""
    low, high = 0.0, LARGEST
    if not ruled_out(low):
        return 0.0
    while high - low > _PRECISION:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if ruled_out(middle) else (low, middle)
    return low


def check_confidence(confidence: float) -> float:
    """Return a confidence that can be one.

    Raises:
        ConfigError: It is not in (0, 1).
    """
    if not 0.0 < confidence < 1.0:
        raise ConfigError(
            expected="a confidence in (0, 1)", got=repr(confidence), fix="choose 0.95"
        )
    return confidence


def _alarm(confidence: float) -> float:
    return 1.0 - check_confidence(confidence)
