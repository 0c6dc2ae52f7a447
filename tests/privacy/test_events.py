"""Events as values, and their exact way through JSON."""

from __future__ import annotations

import json
import math

import dp_accounting
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dither.errors import ConfigError, LedgerError
from dither.privacy.events import (
    Event,
    Gaussian,
    NonPrivate,
    Relation,
    SampledGaussian,
    event_from_json,
    event_to_json,
    on_one_sample,
)

POSITIVE = st.floats(min_value=1e-300, max_value=1e300)
RATES = st.floats(min_value=0.0, max_value=1.0, exclude_min=True)
EVENTS = st.one_of(
    st.builds(SampledGaussian, RATES, POSITIVE),
    st.builds(Gaussian, POSITIVE),
    st.builds(NonPrivate, st.text()),
)


@given(EVENTS)
def test_json_round_trip_is_exact(event: Event) -> None:
    back = event_from_json(json.loads(json.dumps(event_to_json(event))))
    assert back == event
    assert type(back) is type(event)
    assert repr(back) == repr(event)  # every bit of every float


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"kind": "laplace", "noise_multiplier": 1.0},
        {"kind": "gaussian"},
        {"kind": "gaussian", "noise_multiplier": 1.0, "rate": 0.5},
        {"kind": "gaussian", "noise_multiplier": 0.0},
        {"kind": "gaussian", "noise_multiplier": -1.0},
        {"kind": "gaussian", "noise_multiplier": math.nan},
        {"kind": "sampled_gaussian", "noise_multiplier": 1.0, "rate": 0.0},
        {"kind": "sampled_gaussian", "noise_multiplier": 1.0, "rate": 1.5},
        {"kind": "sampled_gaussian", "noise_multiplier": math.inf, "rate": 0.5},
    ],
    ids=str,
)
def test_unknown_or_impossible_events_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(LedgerError, match="an event of one of the kinds"):
        event_from_json(values)


@pytest.mark.parametrize("z", [0.0, -1.0, math.inf, math.nan])
def test_bad_noise_multiplier_is_refused(z: float) -> None:
    for build in (Gaussian, lambda value: SampledGaussian(0.1, value), on_one_sample):
        with pytest.raises(ConfigError, match="noise multiplier"):
            build(z)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.0000001, math.nan])
def test_bad_rate_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="sampling rate"):
        SampledGaussian(rate, 1.0)


def test_events_name_themselves_to_dp_accounting() -> None:
    gaussian = dp_accounting.GaussianDpEvent(1.5)
    assert Gaussian(1.5).to_dp_event() == gaussian
    assert SampledGaussian(0.25, 1.5).to_dp_event() == dp_accounting.PoissonSampledDpEvent(
        0.25, gaussian
    )
    assert NonPrivate("x").to_dp_event() == dp_accounting.NonPrivateDpEvent()


def test_relations_name_themselves_to_dp_accounting() -> None:
    theirs = dp_accounting.NeighboringRelation
    assert {relation: relation.to_dp_accounting() for relation in Relation} == {
        Relation.ZERO_OUT: theirs.REPLACE_SPECIAL,
        Relation.ADD_REMOVE: theirs.ADD_OR_REMOVE_ONE,
        Relation.REPLACE_ONE: theirs.REPLACE_ONE,
    }


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=6))
def test_releases_on_one_sample_add_inverse_squares(noise: list[float]) -> None:
    joint = on_one_sample(*noise)
    assert joint**-2 == pytest.approx(sum(z**-2 for z in noise), rel=1e-9)
    assert joint <= min(noise) * (1 + 1e-12)
