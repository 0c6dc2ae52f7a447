"""Bounds on mechanisms whose ε is known: below it at the stated confidence, not far below it."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from scipy import stats

from dither.audit import f_dp
from dither.audit.bounds import (
    Guesses,
    clopper_pearson,
    epsilon_many_runs,
    epsilon_one_run,
    p_value,
)
from dither.errors import ConfigError
from dither.privacy.accountant import epsilon
from dither.privacy.events import Gaussian, SamplerKind
from dither.privacy.plan import Plan

# Trials often find the same counts.
one_run = functools.cache(epsilon_one_run)
TRIALS = 400
# At the stated confidence 5 % of bounds may be above ε. More than this of 400 happens to a right
# bound with probability 1e-6.
MOST_ABOVE = int(stats.binom.isf(1e-6, TRIALS, 0.05))


def randomised_response(m: int, eps: float, draw: np.random.Generator) -> Guesses:
    """Each coin is told rightly with probability e^ε/(1+e^ε): the worst ε-private mechanism."""
    right = draw.binomial(m, 1.0 / (1.0 + math.exp(-eps)))
    return Guesses(m, m, int(right))


def gaussian(m: int, mu: float, guesses: int, draw: np.random.Generator) -> Guesses:
    """A sum with noise on m coordinates of its own: each canary's release is μ-GDP."""
    included = draw.random(m) < 0.5
    order = np.argsort(mu * included + draw.standard_normal(m))
    right = included[order[-guesses:]].sum() + (~included[order[:guesses]]).sum()
    return Guesses(m, 2 * guesses, int(right))


@pytest.mark.parametrize("eps", [0.5, 1.0, 3.0])
def test_one_run_bound_on_randomised_response(eps: float) -> None:
    draw = np.random.default_rng(1)
    bounds = [one_run(randomised_response(2000, eps, draw), 0.0) for _ in range(TRIALS)]
    assert sum(bound > eps for bound in bounds) <= MOST_ABOVE
    assert sum(bound > eps for bound in bounds) >= 1  # exact there: a bound that never errs is lax
    assert np.mean(bounds) > 0.75 * eps


def test_one_run_bound_on_a_gaussian() -> None:
    draw, mu, delta = np.random.default_rng(2), 1.0, 1e-5
    eps = epsilon([(Gaussian(1.0 / mu), 1)], delta)  # 4.4
    found = [gaussian(5000, mu, 100, draw) for _ in range(TRIALS)]
    bounds = [one_run(each, delta) for each in found]
    assert max(bounds) < eps
    assert np.mean(bounds) > 0.4 * eps


def test_f_dp_bound_on_a_gaussian_is_right_and_tighter() -> None:
    draw, mu, m = np.random.default_rng(3), 1.0, 5000
    plan = Plan(
        records=10**4,
        sampling_rate=1.0,
        steps=1,
        l2_clip=1.0,
        noise_multiplier=1.0 / mu,
        delta=1e-5,
        sampler=SamplerKind.FULL,
    )
    found = [gaussian(m, mu, 100, draw) for _ in range(12)]
    bounds = [
        f_dp.noise_bound(each, plan, curve=lambda share: f_dp.TradeOff.gaussian(mu / share))
        for each in found
    ]
    # Each is below the truth with probability at most 0.05; more than 6 of 12, with 1e-6.
    assert sum(bound.noise < 1.0 for bound in bounds) <= 6
    epsilons = [bound.epsilon for bound in bounds]
    assert np.mean(epsilons) > 0.5 * plan.epsilon()
    assert np.mean(epsilons) > np.mean([one_run(each, plan.delta) for each in found])


def test_f_dp_of_an_approximate_mechanism_is_valid_on_randomised_response() -> None:
    draw, eps = np.random.default_rng(4), 1.0
    curve = f_dp.TradeOff.approximate(eps, 0.0)
    judged = functools.cache(lambda found: f_dp.p_value(found, curve))
    alarms = [judged(randomised_response(300, eps, draw)) <= 0.05 for _ in range(TRIALS)]
    assert sum(alarms) <= MOST_ABOVE


def test_a_curve_holds_what_a_gaussian_does() -> None:
    curve, mu = f_dp.TradeOff.gaussian(0.8), 0.8
    for mass in (0.01, 0.2, 0.5, 0.9, 0.99):
        exact = stats.norm.sf(stats.norm.isf(mass) + mu)  # Neyman-Pearson
        assert curve.least(mass) <= exact + 1e-12
        assert curve.least(mass) >= exact - 2e-3


def test_a_plan_of_one_full_step_is_its_gaussian() -> None:
    plan = Plan(
        records=10**4,
        sampling_rate=1.0,
        steps=1,
        l2_clip=1.0,
        noise_multiplier=1.25,
        delta=1e-5,
        sampler=SamplerKind.FULL,
    )
    ours, exact = f_dp.TradeOff.of_plan(plan), f_dp.TradeOff.gaussian(0.8)
    for mass in (0.05, 0.5, 0.95):
        assert ours.least(mass) == pytest.approx(exact.least(mass), abs=2e-3)
        assert ours.least(mass) <= exact.least(mass) + 1e-9  # rounded to the safe side


@pytest.mark.parametrize("delta", [0.0, 1e-5])
def test_guesses_by_chance_bound_nothing(delta: float) -> None:
    draw = np.random.default_rng(5)
    bounds = [
        one_run(Guesses(1000, 200, int(draw.binomial(200, 0.5))), delta) for _ in range(TRIALS)
    ]
    assert sum(bound > 0.0 for bound in bounds) <= MOST_ABOVE


def test_without_noise_the_bound_is_large() -> None:
    assert epsilon_one_run(Guesses(1000, 1000, 1000), 1e-6) > 5.0
    assert epsilon_many_runs(1000, 1000, 0, 1000, delta=1e-6) > 5.0


def test_delta_costs_what_the_theorem_says() -> None:
    found = Guesses(1000, 100, 90)
    tail = stats.binom.sf(89, 100, 1.0 / (1.0 + math.exp(-1.0)))
    slow = max(
        sum(stats.binom.pmf(k, 100, 1.0 / (1.0 + math.exp(-1.0))) for k in range(90 - i, 90)) / i
        for i in range(1, 91)
    )
    assert p_value(found, 1.0, 1e-4) == pytest.approx(tail + 2 * 1000 * 1e-4 * slow, rel=1e-9)


def test_many_runs_on_randomised_response() -> None:
    draw, eps, runs = np.random.default_rng(6), 1.5, 1000
    right = 1.0 / (1.0 + math.exp(-eps))
    bounds = [
        epsilon_many_runs(
            int(draw.binomial(runs, right)),
            runs,
            int(draw.binomial(runs, 1.0 - right)),
            runs,
            delta=0.0,
        )
        for _ in range(TRIALS)
    ]
    assert sum(bound > eps for bound in bounds) <= MOST_ABOVE
    assert np.mean(bounds) > 0.75 * eps


@pytest.mark.parametrize(("hits", "trials"), [(0, 20), (7, 20), (20, 20)])
def test_clopper_pearson_covers(hits: int, trials: int) -> None:
    low, high = clopper_pearson(hits, trials, 0.9)
    if hits:
        assert stats.binom.sf(hits - 1, trials, low) == pytest.approx(0.05)
    if hits < trials:
        assert stats.binom.cdf(hits, trials, high) == pytest.approx(0.05)


@pytest.mark.parametrize("counts", [(10, 11, 5), (10, 5, 6), (10, 5, -1)])
def test_impossible_counts_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="correct"):
        Guesses(*counts)


def test_confidence_is_checked() -> None:
    with pytest.raises(ConfigError, match="confidence"):
        epsilon_one_run(Guesses(10, 10, 5), 0.0, 1.0)
    with pytest.raises(ConfigError, match="at least one trial"):
        clopper_pearson(1, 0, 0.95)
