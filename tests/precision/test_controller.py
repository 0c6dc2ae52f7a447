"""The controller: periods, probes when due, resuming, and one choice on all ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dither.clipping.loss import per_example
from dither.errors import CheckpointError, ConfigError
from dither.noise.entropy import OsEntropy
from dither.precision.controller import Controller, Period, make_controller
from dither.precision.options import Dynamic
from dither.precision.probe import ProbeOptions
from dither.precision.recipe import parse_recipe
from dither.precision.schedules import DpQuant, Ramp, Rotating, Schedule, Static
from dither.privacy.account import Account
from dither.privacy.accountant import epsilon
from dither.privacy.events import Gaussian, Relation, SampledGaussian, SamplerKind
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.sampling.loader import PoissonBatch, PoissonLoader
from dither.sampling.poisson import PoissonSampler

RECORDS, BATCH = 200, 50
SIZE: dict[str, Any] = {"records": RECORDS, "batch_size": float(BATCH)}
INT8 = parse_recipe("int8")


def make_model(width: int = 8) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 4), nn.Linear(4, 3))


def make_plan(steps: int = 12, **changes: Any) -> Plan:
    options: dict[str, Any] = {
        "records": RECORDS,
        "sampling_rate": BATCH / RECORDS,
        "steps": steps,
        "l2_clip": 1.0,
        "noise_multiplier": 1.0,
        "delta": 1e-5,
    }
    return Plan(**{**options, **changes})


def make_dynamic(schedule: Schedule | None = None, **changes: Any) -> Dynamic:
    options: dict[str, Any] = {
        "by": "layers",
        "rotate_every": 3,
        "seed": 9,
        "probe": ProbeOptions(noise_multiplier=2.0),
    }
    return Dynamic(INT8, schedule or Rotating(0.6), **{**options, **changes})


def fresh(rate: float) -> Callable[[], PoissonBatch]:
    data = TensorDataset(torch.randn(RECORDS, 6), torch.randint(0, 3, (RECORDS,)))
    loader = PoissonLoader(data, PoissonSampler(RECORDS, rate, OsEntropy()), 1)
    return lambda: next(iter(loader))


def make(
    dynamic: Dynamic,
    account: Account | None = None,
    *,
    model: nn.Module | None = None,
    steps: int = 12,
) -> Controller:
    plan = None if account is None else account.plan
    return make_controller(
        dynamic,
        model or make_model(),
        per_example(nn.CrossEntropyLoss()),
        [torch.randn(1, 6), torch.zeros(1, dtype=torch.int64)],
        **SIZE,
        steps=steps,
        account=account,
        probe_plan=None if plan is None else dynamic.probe_plan(plan),
        draw=None if plan is None else fresh(plan.sampling_rate),
        entropy=OsEntropy(),
    )


def open_account(tmp_path: Path, plan: Plan | None = None, run: str = "run") -> Account:
    ledger = Ledger.create(tmp_path / "ledger.sqlite", store="x")
    return Account(ledger, run, plan or make_plan())


def run(controller: Controller, steps: int) -> list[frozenset[str]]:
    found = []
    for _ in range(steps):
        controller.before_step()
        found.append(controller.loss.chosen)
    return found


def test_layers_change_with_the_period_and_only_then() -> None:
    controller = make(make_dynamic())
    assert controller.loss.chosen == frozenset()
    sets = run(controller, 12)
    assert [period.step for period in controller.history] == [0, 3, 6, 9]
    for index, names in enumerate(sets):
        assert names == set(controller.history[index // 3].chosen)
        assert len(names) == 2
    assert len({period.chosen for period in controller.history}) > 1
    assert controller.chosen == controller.history[-1].chosen
    assert controller.probe is None


def test_a_period_is_an_epoch_by_default() -> None:
    controller = make(make_dynamic(rotate_every=None))
    run(controller, 12)
    assert [period.step for period in controller.history] == [0, 4, 8]


@pytest.mark.parametrize("batch", [50.0, 200.0 * (50 / 200), 1e-9 + 50.0, 50.0 - 1e-9])
def test_an_epoch_does_not_hang_on_a_rounding(batch: float) -> None:
    assert make_dynamic(rotate_every=None).period(records=200, batch_size=batch) == 4


def test_compute_counts_multiply_adds() -> None:
    controller = make(make_dynamic(by="compute", schedule=Static(0.5)), model=make_model(64))
    # 6·64, 64·4 and 4·3 multiply-adds: the first layer alone is more than half.
    assert controller.candidates.costs == (2.0 * 384, 2.0 * 256, 2.0 * 12)
    assert controller.shares(("0",))["compute"] == pytest.approx(384 / 652)
    assert controller.shares(("0",))["layers"] == pytest.approx(1 / 3)
    run(controller, 1)
    assert controller.shares(controller.chosen)["compute"] >= 0.5


def test_ramp_knows_how_long_the_run_is() -> None:
    controller = make(make_dynamic(Ramp(1.0)))
    assert [len(names) for names in run(controller, 12)[::3]] == [0, 1, 2, 3]


def test_a_probe_is_made_and_charged_when_it_is_due(tmp_path: Path) -> None:
    account = open_account(tmp_path)
    dynamic = make_dynamic(DpQuant(0.6), probe=ProbeOptions(every=6, noise_multiplier=2.0))
    controller = make(dynamic, account)
    charged = []
    assert controller.probe is not None
    for _ in range(12):
        controller.before_step()
        charged.append(controller.probe.account.steps_charged)
    assert charged == [1] * 6 + [2] * 6
    told = [period.impacts is not None for period in controller.history]
    assert told == [True, False, True, False]
    assert controller.impacts is not None
    assert controller.impacts.values == controller.history[2].impacts
    events = account.ledger.events("run")
    assert events == [(SampledGaussian(0.25, 2.0), 1)] * 2
    paid = {entry.run for entry in account.ledger.entries() if entry.kind == "lease"}
    assert paid == {"run/probe"}


def test_without_probes_left_the_last_average_stays(tmp_path: Path) -> None:
    account = open_account(tmp_path)
    dynamic = make_dynamic(DpQuant(0.6))
    plan = dynamic.probe_plan(account.plan)
    assert plan is not None
    lost = account.part("probe", plan)
    for _ in range(3):
        lost.charge(plan.event)  # of a lineage that a crash lost
    controller = make(dynamic, account)
    run(controller, 12)
    assert [period.impacts is not None for period in controller.history] == [True] + [False] * 3


def test_no_probe_is_made_for_steps_that_cannot_follow(tmp_path: Path) -> None:
    plan = make_plan(steps=1)
    account = open_account(tmp_path, plan)
    controller = make(make_dynamic(DpQuant(0.6)), account)
    account.charge(plan.event)
    controller.before_step()
    assert controller.probe is not None
    assert controller.probe.account.steps_charged == 0


def test_resuming_reproduces_the_schedule() -> None:
    whole = make(make_dynamic(Rotating(0.6), seed=None))
    straight = run(whole, 12)
    for stop in (0, 2, 3, 7, 12):
        first = make(make_dynamic(Rotating(0.6), seed=None))
        first.seed = whole.seed
        before = run(first, stop)
        state = json.loads(json.dumps(first.state()))
        second = make(make_dynamic(Rotating(0.6), seed=None))  # with a seed of its own
        assert second.seed != whole.seed
        second.resume(state)
        assert second.loss.chosen == first.loss.chosen
        assert before + run(second, 12 - stop) == straight
        assert second.history == whole.history


def test_resuming_keeps_the_average_and_charges_nothing(tmp_path: Path) -> None:
    account = open_account(tmp_path)
    first = make(make_dynamic(DpQuant(0.6)), account)
    run(first, 4)
    state = json.loads(json.dumps(first.state()))
    second = make(make_dynamic(DpQuant(0.6)), account)
    second.resume(state)
    assert second.impacts == first.impacts
    assert second.chosen == first.chosen
    run(second, 2)  # the rest of the period
    assert second.probe is not None
    assert second.probe.account.steps_charged == 2
    run(second, 1)
    assert second.probe.account.steps_charged == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"layers": ["a"]},
        {"history": [[0, [7], None]]},
        {"history": "?"},
        {"step": None},
        {"impacts": {"values": [1.0]}},
    ],
)
def test_a_damaged_state_changes_nothing(wrong: dict[str, Any]) -> None:
    controller = make(make_dynamic())
    run(controller, 4)
    before = controller.state()
    with pytest.raises(CheckpointError, match="To mend it"):
        controller.resume({**before, **wrong})
    assert controller.state() == before


def test_a_schedule_that_probes_needs_an_account() -> None:
    with pytest.raises(ConfigError, match="charged probe"):
        make(make_dynamic(DpQuant(0.5)))


def test_the_report_s_values_are_released_or_public(tmp_path: Path) -> None:
    controller = make(make_dynamic(DpQuant(0.6)), open_account(tmp_path))
    run(controller, 4)
    told = json.loads(json.dumps(controller.to_json()))
    assert told["recipe"] == "int8"
    assert told["layers"] == ["0", "2", "3"]
    assert [period["step"] for period in told["periods"]] == [0, 3]
    for period, kept in zip(told["periods"], controller.history, strict=True):
        assert [told["layers"][i] for i in period["chosen"]] == list(kept.chosen)
        assert period["impacts"] == pytest.approx(kept.impacts, rel=1e-5)
        assert period["layers"] == pytest.approx(len(kept.chosen) / 3)
    assert isinstance(controller.history[0], Period)


# What it costs.


def test_a_budget_covers_probes_and_steps_together() -> None:
    dynamic = Dynamic(INT8, DpQuant(0.6), rotate_every=5)
    size: dict[str, Any] = {"records": 100, "batch_size": 100.0, "steps": 20, "delta": 1e-5}
    beside = dynamic.beside(epsilon=4.0, **size)
    ((event, count),) = beside
    assert count == 4
    assert isinstance(event, Gaussian)
    plan = Plan.calibrate(epsilon=4.0, beside=beside, **size)
    probes = dynamic.probe_plan(plan, 4.0)
    assert probes is not None
    assert probes.event == event
    assert (probes.steps, probes.l2_clip) == (4, dynamic.probe.clip)
    spent = epsilon([(plan.event, 20), (probes.event, 4)], 1e-5)
    assert spent <= 4.0
    assert spent == pytest.approx(4.0, rel=1e-3)
    assert 0.0 < probes.epsilon() <= 0.02 * 4.0


def test_schedules_without_a_probe_cost_nothing() -> None:
    dynamic = Dynamic(INT8, Rotating(0.6))
    assert dynamic.beside(epsilon=4.0, delta=1e-5, **SIZE, steps=20) == ()
    assert dynamic.probe_plan(make_plan()) is None


def test_by_default_the_share_is_of_what_the_gradients_take() -> None:
    plan = make_plan(sampling_rate=1.0, sampler=SamplerKind.FULL, noise_multiplier=8.0)
    probes = Dynamic(INT8, DpQuant(0.6), rotate_every=4).probe_plan(plan)
    assert probes is not None
    assert probes.epsilon() <= 0.02 * plan.epsilon()


def test_probes_follow_choices() -> None:
    with pytest.raises(ConfigError, match="whole number of periods of 3 steps"):
        make_dynamic(DpQuant(0.5), probe=ProbeOptions(every=4)).releases(**SIZE, steps=12)


def test_add_remove_is_refused() -> None:
    plan = make_plan(relation=Relation.ADD_REMOVE)
    for act in (
        lambda: make_dynamic(DpQuant(0.5)).probe_plan(plan),
        lambda: make_dynamic().beside(
            epsilon=1.0, delta=1e-5, **SIZE, steps=5, relation=Relation.ADD_REMOVE
        ),
    ):
        with pytest.raises(ConfigError, match="for low precision"):
            act()


def test_options_are_read_in_every_form() -> None:
    assert Dynamic.of("int8") == Dynamic.of(INT8) == Dynamic.of(Dynamic(INT8))
    with pytest.raises(ConfigError, match="name of a recipe"):
        Dynamic.of(8)
    with pytest.raises(ConfigError, match="To mend it"):
        Dynamic.of("int9")


@pytest.mark.parametrize(
    "options", [{"rotate_every": 0}, {"seed": -1}, {"rotate_every": 10, "seed": 2**63}]
)
def test_bad_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="change the option"):
        Dynamic(INT8, **options)
