"""The best test reaches the ceiling and nobody passes it; guessing has no advantage."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from scipy import stats

from dither.audit.telling import (
    Advantage,
    dp_ceiling,
    dp_tpr,
    gaussian_ceiling,
    gaussian_tpr,
    says_second,
    told,
)
from dither.errors import ConfigError

CONFIDENCE = 1.0 - 1e-6  # of every interval here: a false alarm of this file is below 1e-4
GAMES = 40_000


@pytest.mark.parametrize("mu", [0.0, 0.1, 1.0, 3.7])
def test_the_gaussian_ceiling_is_the_total_variation(mu: float) -> None:
    """Of N(0, 1) and N(μ, 1), by numerical integration."""

    def apart(x: float) -> mpmath.mpf:
        return abs(mpmath.npdf(x) - mpmath.npdf(x, mu)) / 2

    slow = float(mpmath.quad(apart, [-12, mu / 2, mu + 12]))
    assert gaussian_ceiling(mu) == pytest.approx(slow, abs=1e-12)


@pytest.mark.parametrize("mu", [0.0, 0.5, 2.0])
def test_the_ceiling_is_the_largest_gap_of_the_roc(mu: float) -> None:
    fpr = stats.norm.sf(np.linspace(-6, 8, 2001))
    gaps = [gaussian_tpr(float(rate), mu) - rate for rate in fpr]
    assert max(gaps) == pytest.approx(gaussian_ceiling(mu), abs=1e-4)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 0.0), (1.0, 1e-5), (3.0, 0.1)])
def test_randomised_response_with_a_leak_reaches_the_dp_ceiling(
    epsilon: float, delta: float
) -> None:
    """With probability δ it tells the bit, else it is randomised response: the worst of its kind
    (Kairouz, Oh and Viswanath 1311.0776)."""
    keeps = np.exp(epsilon) / (1 + np.exp(epsilon))
    right = delta + (1 - delta) * keeps
    assert dp_ceiling(epsilon, delta) == pytest.approx(2 * right - 1, abs=1e-12)
    fpr = (1 - delta) * (1 - keeps)
    assert dp_tpr(fpr, epsilon, delta) == pytest.approx(right, abs=1e-12)


def test_without_a_promise_there_is_no_ceiling() -> None:
    assert dp_ceiling(np.inf, 0.0) == dp_tpr(0.0, np.inf, 0.0) == gaussian_ceiling(np.inf) == 1.0


@pytest.mark.parametrize("distance", [0.2, 1.0])
def test_the_best_test_reaches_the_ceiling_and_no_more(distance: float) -> None:
    random = np.random.default_rng(0)
    first, second = np.zeros(5), np.full(5, distance / np.sqrt(5))
    coins = random.random(GAMES) < 0.5
    noise = random.standard_normal((GAMES, 5))
    seen = np.where(coins[:, None], second, first) + noise
    found = told(says_second(seen, first, second), coins, CONFIDENCE)
    ceiling = gaussian_ceiling(distance)
    assert found.within(ceiling)
    assert found.reaches(ceiling)
    assert not found.within(0.0)
    # Half of the noise is noticed.
    seen = np.where(coins[:, None], second, first) + 0.5 * noise
    assert not told(says_second(seen, first, second), coins, CONFIDENCE).within(ceiling)


def test_guessing_has_no_advantage() -> None:
    random = np.random.default_rng(1)
    coins, answers = random.random((2, GAMES)) < 0.5
    found = told(answers, coins, CONFIDENCE)
    assert found.low < 0.0 < found.high
    assert found.high - found.low < 0.06


def test_intervals_alarm_as_rarely_as_they_say() -> None:
    """At 90 %: of 4000 guessers 200 or fewer lie above 0, up to chance; false alarm 1e-6."""
    random = np.random.default_rng(2)
    rights = random.binomial(200, 0.5, 4000)
    alarms = sum(not Advantage.of(int(right), 200, 0.9).within(0.0) for right in rights)
    assert alarms <= stats.binom.isf(1e-6, 4000, 0.05)
    assert alarms > 0


@pytest.mark.parametrize(("games", "confidence"), [(0, 0.9), (10, 0.0), (10, 1.0)])
def test_no_interval_without_games_or_confidence(games: int, confidence: float) -> None:
    with pytest.raises(ConfigError):
        Advantage.of(0, games, confidence)
