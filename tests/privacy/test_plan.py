"""The promise: frozen, whole, digested, and refused when it cannot be kept."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from dither.errors import ConfigError, DitherWarning
from dither.privacy.accountant import epsilon
from dither.privacy.events import Gaussian, Relation, SampledGaussian, SamplerKind, Unit
from dither.privacy.plan import Plan
from dither.privacy.trust import LOCAL, Trust

# Another legal value for every field; a new field must be named here, or the test below fails.
OTHER: dict[str, Any] = {
    "records": 10_001,
    "sampling_rate": math.nextafter(0.01, 1.0),
    "steps": 31,
    "l2_clip": math.nextafter(1.0, 2.0),
    "noise_multiplier": math.nextafter(1.0, 2.0),
    "delta": math.nextafter(1e-6, 1.0),
    "relation": Relation.ADD_REMOVE,
    "unit": Unit.PERSON,
    "sampler": SamplerKind.FULL,
    "trust": LOCAL,
    "numeric_slack": math.nextafter(2e-3, 1.0),
    "lattice_slack": math.nextafter(1e-3, 1.0),
}


def _changed(plan: Plan, name: str) -> Plan:
    change = {name: OTHER[name]}
    if name == "sampler":
        change["sampling_rate"] = 1.0
    return dataclasses.replace(plan, **change)


def test_every_field_is_frozen(plan: Plan) -> None:
    for field in dataclasses.fields(plan):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(plan, field.name, OTHER[field.name])


def test_digest_changes_with_every_field_by_as_little_as_one_bit(plan: Plan) -> None:
    assert set(OTHER) == {field.name for field in dataclasses.fields(Plan)}
    digests = {name: _changed(plan, name).digest() for name in OTHER}
    assert len({*digests.values(), plan.digest()}) == len(OTHER) + 1
    assert dataclasses.replace(plan).digest() == plan.digest()


@pytest.mark.parametrize("name", [None, *OTHER])
def test_json_round_trip_is_exact(plan: Plan, name: str | None) -> None:
    plan = plan if name is None else _changed(plan, name)
    back = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert back == plan
    assert back.digest() == plan.digest()


@pytest.mark.parametrize("name", list(OTHER))
def test_json_without_a_field_is_refused(plan: Plan, name: str) -> None:
    values = plan.to_json()
    del values[name]
    with pytest.raises(ConfigError, match="the fields of a plan"):
        Plan.from_json(values)


@pytest.mark.parametrize(
    "change",
    [
        {"colour": 1},
        {"relation": "sideways"},
        {"unit": "planet"},
        {"sampler": "shuffle"},
        {"trust": "nobody"},
        {"steps": 0},
    ],
    ids=str,
)
def test_json_with_a_wrong_field_is_refused(plan: Plan, change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="the fields of a plan"):
        Plan.from_json({**plan.to_json(), **change})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"records": 0}, "records"),
        ({"steps": 0}, "steps"),
        ({"steps": -3}, "steps"),
        ({"sampling_rate": 0.0}, "sampling rate"),
        ({"sampling_rate": -0.5}, "sampling rate"),
        ({"sampling_rate": 1.5}, "sampling rate"),
        ({"sampling_rate": math.nan}, "sampling rate"),
        ({"sampling_rate": 1.0}, "sampler full exactly"),
        ({"sampler": SamplerKind.FULL}, "sampler full exactly"),
        ({"l2_clip": 0.0}, "l2_clip"),
        ({"l2_clip": math.inf}, "l2_clip"),
        ({"noise_multiplier": 0.0}, "noise multiplier"),
        ({"noise_multiplier": math.nan}, "noise multiplier"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"numeric_slack": 0.0}, "numeric_slack"),
        ({"numeric_slack": -1e-3}, "numeric_slack"),
        ({"lattice_slack": math.nan}, "lattice_slack"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(plan: Plan, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(plan, **change)


def test_counts_from_a_file_must_be_whole_numbers(plan: Plan) -> None:
    for name in ("records", "steps"):
        for value in (math.nan, 10.5, "10"):
            with pytest.raises(ConfigError):  # in the suite beartype may see it first: see below
                _from_file(plan, name, value)


def _from_file(plan: Plan, name: str, value: object) -> Plan:
    try:
        return Plan.from_json({**plan.to_json(), name: value})
    except ConfigError:
        raise
    except Exception as error:
        if type(error).__module__.split(".")[0] in {"beartype", "jaxtyping"}:
            raise ConfigError(expected="", got="", fix="") from error
        raise


def test_delta_of_one_over_n_or_more_warns(plan: Plan) -> None:
    for delta in (1e-4, 1e-3):
        with pytest.warns(DitherWarning, match="not below 1/n"):
            dataclasses.replace(plan, delta=delta)
    dataclasses.replace(plan, delta=math.nextafter(1e-4, 0.0))  # warnings are errors here


def test_event_and_expected_batch_size(plan: Plan) -> None:
    assert plan.event == SampledGaussian(0.01, 1.0)
    assert plan.expected_batch_size == pytest.approx(100.0)
    full = dataclasses.replace(plan, sampling_rate=1.0, sampler=SamplerKind.FULL)
    assert full.event == Gaussian(1.0)
    assert plan.with_noise_multiplier(2.0) == dataclasses.replace(plan, noise_multiplier=2.0)


@pytest.mark.parametrize("name", ["trust", "unit", "l2_clip", "numeric_slack", "lattice_slack"])
def test_only_rate_sampler_and_noise_enter_the_event(plan: Plan, name: str) -> None:
    assert _changed(plan, name).event == plan.event
    assert dataclasses.replace(plan, trust=Trust("distributed", 1)).event == plan.event


def test_epsilon_follows_steps_and_relation(plan: Plan) -> None:
    assert 0.0 < plan.epsilon(5) < plan.epsilon()
    doubled = dataclasses.replace(plan, relation=Relation.REPLACE_ONE, noise_multiplier=2.0)
    assert doubled.epsilon() > 1.01 * dataclasses.replace(plan, noise_multiplier=2.0).epsilon()
    assert doubled.epsilon_rdp() is None
    rdp = plan.epsilon_rdp()
    assert rdp is not None
    assert rdp >= plan.epsilon()


SETTINGS = [
    {"epsilon": 1.0, "records": 10_000, "batch_size": 5_000.0, "steps": 50, "delta": 1e-5},
    {"epsilon": 0.1, "records": 10_000, "batch_size": 500.0, "steps": 20, "delta": 1e-6},
    {"epsilon": 0.5, "records": 50_000, "batch_size": 50_000.0, "steps": 20, "delta": 1e-7},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: f"epsilon {s['epsilon']}")
def test_calibrate_meets_epsilon_from_below(setting: dict[str, Any]) -> None:
    plan = Plan.calibrate(**setting)
    assert setting["epsilon"] * (1 - 1e-3) <= plan.epsilon() <= setting["epsilon"]
    assert (plan.steps, plan.records) == (setting["steps"], setting["records"])
    assert plan.sampling_rate == setting["batch_size"] / setting["records"]


@pytest.mark.full
@pytest.mark.parametrize("relation", list(Relation))
@pytest.mark.parametrize(("target", "delta"), [(0.1, 1e-5), (1.0, 1e-7), (8.0, 1e-6)])
def test_calibrate_meets_epsilon_in_every_relation(
    target: float, delta: float, relation: Relation
) -> None:
    plan = Plan.calibrate(
        epsilon=target, records=60_000, batch_size=600.0, steps=100, delta=delta, relation=relation
    )
    assert target * (1 - 1e-3) <= plan.epsilon() <= target


def test_calibrate_where_sampling_alone_almost_suffices() -> None:
    # ε is 0 at the larger noise multipliers tried: δ covers being sampled at all.
    with pytest.warns(DitherWarning, match="not below 1/n"):
        plan = Plan.calibrate(epsilon=1e-4, records=100_000, batch_size=100.0, steps=1, delta=1e-4)
    assert plan.epsilon() <= 1e-4


def test_calibrate_warns_of_a_large_epsilon() -> None:
    with pytest.warns(DitherWarning, match="above 10"):
        Plan.calibrate(epsilon=30.0, records=100, batch_size=100.0, steps=1, delta=1e-5)


@pytest.mark.full
def test_calibrate_does_not_warn_at_ten() -> None:
    Plan.calibrate(epsilon=10.0, records=100, batch_size=100.0, steps=1, delta=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epsilon": 0.0}, "epsilon above 0"),
        ({"epsilon": -1.0}, "epsilon above 0"),
        ({"epsilon": math.nan}, "epsilon above 0"),
        ({"batch_size": 0.0}, "expected batch size"),
        ({"batch_size": 10_001.0}, "expected batch size"),
        ({"steps": 0}, "steps"),
        ({"records": 0}, "records"),
        ({"delta": 0.0}, "delta"),
        ({"epsilon": 1e-9, "delta": 1e-30, "batch_size": 10_000.0}, "that a noise multiplier"),
    ],
    ids=str,
)
def test_calibrate_refuses(change: dict[str, Any], words: str) -> None:
    good = {"epsilon": 1.0, "records": 10_000, "batch_size": 100.0, "steps": 1, "delta": 1e-5}
    with pytest.raises(ConfigError, match=words):
        Plan.calibrate(**{**good, **change})


def test_a_budget_covers_what_is_beside_the_steps() -> None:
    size: dict[str, Any] = {"records": 10_000, "batch_size": 100, "steps": 20, "delta": 1e-6}
    beside = ((SampledGaussian(0.01, 2.0), 5), (Gaussian(30.0), 1))
    alone = Plan.calibrate(epsilon=0.5, **size)
    plan = Plan.calibrate(epsilon=0.5, beside=beside, **size)
    together = epsilon([(plan.event, 20), *beside], 1e-6)
    assert together <= 0.5
    assert together == pytest.approx(0.5, rel=1e-3)
    assert plan.noise_multiplier > alone.noise_multiplier
    assert epsilon([(alone.event, 20), *beside], 1e-6) > 0.5  # what it is for
    assert set(plan.to_json()) == set(alone.to_json())


def test_releases_beside_the_steps_that_take_all_of_epsilon_are_refused() -> None:
    with pytest.raises(ConfigError, match="that the releases beside the steps take"):
        Plan.calibrate(
            epsilon=0.5,
            records=10_000,
            batch_size=100,
            steps=20,
            delta=1e-6,
            beside=((Gaussian(1.0), 3),),
        )
