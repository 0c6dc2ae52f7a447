"""The audit's score and guesses, by simulation of what a run releases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dither.audit.bounds import epsilon_one_run
from dither.audit.power import power_curve
from dither.audit.scores import (
    Channel,
    LikelihoodScore,
    Rule,
    choose_rule,
    guess,
    simulate,
)
from dither.errors import ConfigError
from dither.privacy.plan import Plan

CHANNEL = Channel(steps=300, rate=0.004, sigma=0.76, delta=1e-5)


def test_the_score_is_the_likelihood_ratio() -> None:
    score = LikelihoodScore(3, CHANNEL, alternative=0.5)
    for _ in range(10):  # teach no drift and no spread
        score.step(np.zeros(3))
    assert not score.values.any()
    numbers = np.array([0.0, 1.0, -1.0])
    score.step(numbers)
    weights = 0.98 ** np.arange(10)  # of the mean of the past
    spread = (0.5 * CHANNEL.sigma) ** 2 * (1.0 + (weights**2).sum() / weights.sum() ** 2)
    inside = stats.norm.pdf(numbers, 1.0, math.sqrt(spread))
    outside = stats.norm.pdf(numbers, 0.0, math.sqrt(spread))
    mixed = CHANNEL.rate * inside + (1.0 - CHANNEL.rate) * outside
    assert score.values == pytest.approx(np.log(mixed / outside))


def test_a_constant_drift_of_the_records_does_not_matter() -> None:
    draw = np.random.default_rng(1)
    plain, moved = LikelihoodScore(200, CHANNEL), LikelihoodScore(200, CHANNEL)
    for _ in range(CHANNEL.steps):
        numbers = CHANNEL.sigma * draw.standard_normal(200)
        plain.step(numbers)
        moved.step(numbers + 5.0)
    assert moved.values == pytest.approx(plain.values, abs=1e-9)


def test_coordinates_on_which_records_differ_are_not_the_highest() -> None:
    """A tenth of the coordinates has 10 times the spread; none of these canaries is in."""
    draw = np.random.default_rng(2)
    factor = np.where(np.arange(1000) < 100, 10.0, 1.0)
    score = LikelihoodScore(1000, CHANNEL)
    for _ in range(CHANNEL.steps):
        score.step(factor * CHANNEL.sigma * draw.standard_normal(1000))
    highest = np.argsort(score.values)[-100:]
    # By chance 10 of 100. Without the spread in the score nearly all of them are.
    assert (highest < 100).sum() <= 30


def test_scale_and_bound_cancel() -> None:
    small, large = LikelihoodScore(4, CHANNEL), LikelihoodScore(4, CHANNEL, l2_clip=8.0)
    draw = np.random.default_rng(3)
    for _ in range(30):
        numbers = draw.standard_normal(4)
        small.step(numbers)
        large.step(8.0 * numbers)
    assert small.values.all()
    assert small.values == pytest.approx(large.values)


def test_guesses_are_the_extremes() -> None:
    scores = np.array([0.0, 3.0, 1.0, 2.0])
    included = np.array([False, True, True, False])
    assert guess(scores, included, Rule(1, 1)).correct == 2
    assert guess(scores, included, Rule(2, 0)).correct == 1
    with pytest.raises(ConfigError, match="at most 4 guesses"):
        guess(scores, included, Rule(3, 2))


def test_random_scores_bound_nothing() -> None:
    draw, alarms = np.random.default_rng(2), 0
    for _ in range(200):
        included = draw.random(1000) < 0.5
        found = guess(draw.standard_normal(1000), included, Rule(50, 50))
        alarms += epsilon_one_run(found, 1e-5) > 0.0
    # At 95 % a bound above 0 is false in at most 5 %; more than this, with probability 1e-6.
    assert alarms <= int(stats.binom.isf(1e-6, 200, 0.05))


def test_the_rule_is_public_and_fixed() -> None:
    rule = choose_rule(CHANNEL, 1000)
    choose_rule.cache_clear()
    assert choose_rule(CHANNEL, 1000) == rule


def test_halved_noise_is_seen_and_whole_noise_is_not() -> None:
    plan = Plan.calibrate(epsilon=1.0, records=3700, batch_size=12, steps=300, delta=1e-5)
    channel = Channel(plan.steps, plan.sampling_rate, 1.003 * plan.noise_multiplier, plan.delta)
    half, whole = power_curve(plan, channel, [4000], noises=(0.5, 1.0), trials=10, seed=3)
    assert half.detected >= 0.8
    assert half.noise_detected >= 0.9
    # Whole noise: false alarms, at most 5 % of each; above 5 of 10 happens with probability 3e-6.
    assert whole.detected <= 0.5
    assert whole.noise_detected <= 0.5
    assert whole.epsilon < 0.5 < half.epsilon


def test_simulated_canaries_that_are_in_join_at_the_rate() -> None:
    channel = Channel(steps=400, rate=0.5, sigma=0.05, delta=1e-5)
    scores, included = simulate(channel, 200, 1.0, np.random.default_rng(4))
    assert scores[included].min() > scores[~included].max()
