"""Schedules: frequencies against theory, one rule for how many, and pure functions throughout."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dither.errors import ConfigError
from dither.precision.impacts import RELEASED, Impacts
from dither.precision.schedules import (
    SCHEDULES,
    AllLayers,
    Candidates,
    DpQuant,
    NoLayers,
    Ramp,
    Rotating,
    Schedule,
    Static,
    fill,
    parse_schedule,
)
from dither.release.release import Released

NAMES = ("a", "b", "c", "d", "e")
EVEN = Candidates(NAMES, (1.0,) * 5)
DRAWS = 2500
# Six standard deviations of a frequency: a false alarm in 5e8, were the seed not fixed.
SIX_SD = 6.0 * math.sqrt(0.25 / DRAWS)


def impacts(values: tuple[float, ...], noise: float = 0.0) -> Impacts:
    return Impacts(NAMES, values, noise, 1)


def chosen(
    schedule: Schedule, found: Impacts | None = None, draws: int = DRAWS
) -> list[tuple[str, ...]]:
    return [
        schedule.choose(period, EVEN, seed=7, periods=draws, impacts=found)
        for period in range(draws)
    ]


def frequencies(sets: list[tuple[str, ...]]) -> dict[str, float]:
    counts = Counter(name for names in sets for name in names)
    return {name: counts[name] / len(sets) for name in NAMES}


def drawn_one_by_one(weights: list[float], count: int) -> dict[frozenset[str], float]:
    """Exact probabilities of the sets that draws without replacement make, by enumeration."""
    found: dict[frozenset[str], float] = {}
    for order in itertools.permutations(range(len(weights)), count):
        probability, left = 1.0, sum(weights)
        for index in order:
            probability *= weights[index] / left
            left -= weights[index]
        names = frozenset(NAMES[index] for index in order)
        found[names] = found.get(names, 0.0) + probability
    return found


def test_random_takes_every_layer_equally_often() -> None:
    found = frequencies(chosen(Rotating(0.4)))
    for frequency in found.values():
        assert frequency == pytest.approx(0.4, abs=SIX_SD)


def test_random_takes_every_pair_equally_often() -> None:
    pairs = Counter(frozenset(names) for names in chosen(Rotating(0.4)))
    assert len(pairs) == math.comb(5, 2)
    for count in pairs.values():
        assert count / DRAWS == pytest.approx(0.1, abs=6.0 * math.sqrt(0.1 * 0.9 / DRAWS))


@pytest.mark.parametrize("fraction", [0.2, 0.4, 0.8])
def test_dpquant_draws_with_its_weights_without_replacement(fraction: float) -> None:
    found = impacts((0.0, 1.0, 2.0, 3.0, 9.0))
    schedule = DpQuant(fraction, beta=1.3)
    weights = [math.exp(-1.3 * score) for score in found.scores()]
    theory = drawn_one_by_one(weights, round(5 * fraction))
    counts = Counter(frozenset(names) for names in chosen(schedule, found))
    assert set(counts) <= set(theory)
    for names, probability in theory.items():
        margin = 6.0 * math.sqrt(probability * (1.0 - probability) / DRAWS) + 1.0 / DRAWS
        assert counts[names] / DRAWS == pytest.approx(probability, abs=margin)


def test_the_frequency_test_would_see_another_beta() -> None:
    found = impacts((0.0, 1.0, 2.0, 3.0, 9.0))
    wrong = drawn_one_by_one([math.exp(-2.1 * score) for score in found.scores()], 2)
    counts = Counter(frozenset(names) for names in chosen(DpQuant(0.4, beta=1.3), found))
    far = [abs(counts[names] / DRAWS - p) for names, p in wrong.items()]
    assert max(far) > SIX_SD


def test_dpquant_avoids_the_layer_that_minds_and_rotates_the_others() -> None:
    found = frequencies(chosen(DpQuant(0.6), impacts((0.001, 0.0, 0.002, 0.001, 0.4))))
    assert found["e"] < 0.02
    assert all(0.6 < found[name] < 0.9 for name in "abcd")


@pytest.mark.parametrize("found", [None, impacts((0.1, -0.2, 0.0, 0.2, 0.1), noise=0.3)])
def test_dpquant_is_random_where_nothing_was_seen_but_noise(found: Impacts | None) -> None:
    assert chosen(DpQuant(0.4, beta=50.0), found, 50) == chosen(Rotating(0.4), None, 50)


def test_dpquant_refuses_what_was_not_released() -> None:
    with pytest.raises(ConfigError, match="released impacts of these 5 layers"):
        DpQuant(0.5).choose(0, EVEN, seed=1, periods=1, impacts=Impacts(("x",), (0.0,), 0.0, 1))


def test_static_keeps_its_set_and_seeds_share_them_out() -> None:
    assert len(set(chosen(Static(0.6), None, 50))) == 1
    sets = [Static(0.6).choose(3, EVEN, seed=seed, periods=9) for seed in range(2000)]
    for frequency in frequencies(sets).values():
        assert frequency == pytest.approx(0.6, abs=6.0 * math.sqrt(0.24 / 2000))


def test_none_and_all_are_what_they_say() -> None:
    assert NoLayers().choose(0, EVEN, seed=1, periods=1) == ()
    assert AllLayers().choose(0, EVEN, seed=1, periods=1) == NAMES


def test_ramp_goes_evenly_from_start_to_fraction() -> None:
    ramp = Ramp(1.0)
    assert [ramp.share(period, 5) for period in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    counts = [len(ramp.choose(p, EVEN, seed=3, periods=6)) for p in range(6)]
    assert counts == [0, 1, 2, 3, 4, 5]
    down = Ramp(0.2, start=0.8)
    assert down.share(0, 4) == 0.8
    assert down.share(3, 4) == pytest.approx(0.2)
    assert Ramp(0.6).share(0, 1) == 0.6
    assert len(set(chosen(Ramp(0.4, start=0.4), None, 50))) > 1  # it rotates


@pytest.mark.parametrize("name", SCHEDULES)
def test_choices_follow_seed_and_period_alone(name: str) -> None:
    one, other = parse_schedule(name, 0.6), parse_schedule(name, 0.6)
    assert one == other
    assert one.kind == name
    found = impacts((0.1, 0.2, 0.3, 0.4, 0.5))
    for period in (5, 0, 3):
        first = one.choose(period, EVEN, seed=11, periods=9, impacts=found)
        assert first == other.choose(period, EVEN, seed=11, periods=9, impacts=found)


COSTS = st.lists(st.floats(0.0, 100.0), min_size=1, max_size=8).filter(any)


@given(COSTS, st.floats(0.0, 1.0), st.randoms())
def test_a_set_reaches_its_share_and_holds_no_needless_layer(
    costs: list[float], fraction: float, order: st.DataObject
) -> None:
    names = [f"layer{index}" for index in range(len(costs))]
    candidates = Candidates(tuple(names), tuple(costs))
    order.shuffle(names)  # type: ignore[attr-defined]
    found = fill(candidates, names, fraction)
    assert candidates.share(found) >= fraction - 1e-6
    for name in found:
        rest = [other for other in found if other != name]
        assert candidates.share(rest) < fraction


def test_equal_costs_take_the_first_in_the_order() -> None:
    assert fill(EVEN, ("e", "d", "c", "b", "a"), 0.6) == ("c", "d", "e")
    assert fill(EVEN, NAMES, 0.0) == ()
    assert fill(EVEN, NAMES, 1.0) == NAMES


def test_a_large_layer_that_comes_late_frees_those_before_it() -> None:
    costs = Candidates(("large", "one", "two"), (8.0, 1.0, 1.0))
    assert fill(costs, ("one", "two", "large"), 0.75) == ("large",)
    assert fill(costs, ("one", "large", "two"), 0.9) == ("large", "one")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Rotating(1.5),
        lambda: Static(-0.1),
        lambda: DpQuant(math.nan),
        lambda: DpQuant(0.5, beta=-1.0),
        lambda: Ramp(0.5, start=2.0),
        lambda: Candidates((), ()),
        lambda: Candidates(("a", "a"), (1.0, 1.0)),
        lambda: Candidates(("a",), (0.0,)),
        lambda: Candidates(("a",), (math.inf,)),
        lambda: parse_schedule("dynamic", 0.5),
    ],
)
def test_mistakes_are_named(make: object) -> None:
    with pytest.raises(ConfigError, match="To mend it"):
        make()  # type: ignore[operator]


def released(*values: float) -> Released:
    return Released({RELEASED: torch.tensor(values, dtype=torch.float64)}, saturated=0)


def test_the_average_takes_the_first_whole_and_then_a_part_of_each() -> None:
    first = Impacts.none_yet(("a", "b")).after(released(4.0, 8.0), 0.5, 3.0, 0.25)
    assert (first.values, first.noise, first.probes) == ((2.0, 4.0), 3.0, 1)
    second = first.after(released(8.0, 0.0), 0.5, 3.0, 0.25)
    assert second.values == (2.5, 3.0)
    assert second.noise == pytest.approx(3.0 * math.hypot(0.25, 0.75))
    assert second.probes == 2
    assert Impacts.from_json(second.to_json()) == second


def test_the_average_refuses_numbers_that_nobody_released() -> None:
    with pytest.raises(ConfigError, match="let out, charged"):
        Impacts.none_yet(("a",)).after({RELEASED: torch.ones(1)}, 1.0, 1.0, 0.5)


def test_scores_are_shrunk_by_the_share_that_noise_alone_would_spread() -> None:
    values = (1.0, 2.0, 3.0, 4.0, 5.0)
    plain = impacts(values).scores()
    assert sum(plain) == pytest.approx(0.0)
    assert sum(score**2 for score in plain) == pytest.approx(4.0)
    noisy = impacts(values, noise=math.sqrt(2.5 / 2.0)).scores()  # half of the variance
    assert noisy == pytest.approx(tuple(0.5 * score for score in plain))
    assert impacts(values, noise=2.0).scores() == (0.0,) * 5
