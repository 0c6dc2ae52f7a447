"""Releases of which only (ε, δ) is known: their event, and how it composes."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld

from dither.errors import ConfigError
from dither.privacy.accountant import _of_distributions, epsilon, epsilon_rdp
from dither.privacy.events import (
    ApproximateDP,
    Event,
    Gaussian,
    NonPrivate,
    Relation,
    SampledGaussian,
    event_from_json,
    event_to_json,
)

RELATIONS = list(Relation)


def optimal_epsilon(each: float, count: int, delta: float) -> float:
    """Kairouz, Oh and Viswanath 1311.0776, Theorem 3.3, for pure ε: the best of k + 1 answers."""
    for i in range(count // 2, -1, -1):
        total = sum(
            math.comb(count, j)
            * (math.exp((count - j) * each) - math.exp((count - 2 * i + j) * each))
            for j in range(i)
        )
        if total / (1 + math.exp(each)) ** count <= delta:
            return (count - 2 * i) * each
    raise AssertionError


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize(("each", "delta"), [(0.1, 0.0), (1.0, 0.0), (0.3, 1e-8)])
def test_one_release_costs_what_it_says(relation: Relation, each: float, delta: float) -> None:
    found = epsilon([(ApproximateDP(each, delta), 1)], delta + 1e-12, relation)
    assert found == pytest.approx(each, rel=1e-6, abs=2e-4)
    assert found >= each * (1 - 1e-6)


@pytest.mark.parametrize(("each", "count"), [(0.1, 4), (0.5, 3), (0.2, 10)])
def test_composition_is_kairouz_oh_viswanath(each: float, count: int) -> None:
    for delta in (1e-2, 1e-4, 1e-6):
        found = epsilon([(ApproximateDP(each), count)], delta)
        best = optimal_epsilon(each, count, delta)
        # Theirs steps by 2ε; PLD interpolates between two of its answers.
        assert best - 2 * each - 1e-3 <= found <= best + 1e-3


def test_deltas_add_and_without_room_nothing_is_promised() -> None:
    two = [(ApproximateDP(0.3, 1e-6), 2)]
    assert epsilon(two, 1e-7) == math.inf
    assert epsilon(two, 2.1e-6) <= 0.6 + 2e-4
    assert epsilon_rdp(two, 1e-7) is None


@pytest.mark.parametrize("relation", RELATIONS)
def test_beside_a_training_it_costs_more_than_nothing_and_less_than_all(
    relation: Relation,
) -> None:
    training: tuple[Event, int] = (SampledGaussian(0.01, 1.0), 300)
    statistic: tuple[Event, int] = (ApproximateDP(0.2, 1e-9), 1)
    alone = epsilon([training], 1e-6, relation)
    both = epsilon([training, statistic], 1e-6, relation)
    assert alone + 1e-3 < both < alone + 0.2 + 1e-3
    rdp = epsilon_rdp([training, statistic], 1e-6, relation)
    if relation is Relation.REPLACE_ONE:
        assert rdp is None
    else:
        assert rdp is not None
        assert both < rdp
        assert rdp == pytest.approx(0.2 + (epsilon_rdp([training], 1e-6 - 1e-9, relation) or 0))


@pytest.mark.parametrize("relation", RELATIONS)
def test_our_composition_of_gaussians_is_dp_accountings(relation: Relation) -> None:
    counts: Counter[Event] = Counter({SampledGaussian(0.02, 0.9): 200, Gaussian(4.0): 3})
    accountant = pld.PLDAccountant(relation.to_dp_accounting())
    for event, count in counts.items():
        accountant.compose(event.to_dp_event(), count)
    assert _of_distributions(counts, 1e-6, relation) == pytest.approx(
        accountant.get_epsilon(1e-6), rel=1e-9
    )


def test_it_dominates_mechanisms_with_that_guarantee() -> None:
    # Laplace noise of scale 1/ε is ε-private and composes better, at every δ.
    for each, count, delta in itertools.product((0.1, 0.5), (1, 5), (1e-3, 1e-6)):
        accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
        accountant.compose(dp_accounting.LaplaceDpEvent(1 / each), count)
        assert (
            accountant.get_epsilon(delta) <= epsilon([(ApproximateDP(each), count)], delta) + 1e-3
        )


def test_an_unprotected_release_beside_it_is_still_infinite() -> None:
    assert epsilon([(ApproximateDP(0.1), 1), (NonPrivate("x"), 1)], 1e-6) == math.inf


def test_it_survives_the_ledgers_json_exactly() -> None:
    event = ApproximateDP(float(np.nextafter(0.1, 1)), 1e-8 / 3)
    assert event_from_json(event_to_json(event)) == event


@pytest.mark.parametrize(
    ("given", "delta"),
    [(0.0, 0.0), (-1.0, 0.0), (math.inf, 0.0), (math.nan, 0.0), (1.0, 1.0), (1.0, -0.1)],
)
def test_what_is_no_guarantee_is_refused(given: float, delta: float) -> None:
    with pytest.raises(ConfigError):
        ApproximateDP(given, delta)


def test_dp_accountings_own_accountants_refuse_it_rather_than_pass_it_over() -> None:
    event = ApproximateDP(0.1).to_dp_event()
    with pytest.raises(dp_accounting.UnsupportedEventError):
        pld.PLDAccountant().compose(event)
