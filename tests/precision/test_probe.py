"""The probe: its sensitivity, its noise, its price, and that nothing gets out without paying."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from dither.clipping.loss import per_example
from dither.errors import (
    BudgetExhaustedError,
    ConfigError,
    LedgerError,
    ModelError,
    SamplingError,
)
from dither.noise.entropy import Entropy, InsecureSeed, OsEntropy
from dither.precision.impacts import RELEASED, Impacts
from dither.precision.loss import QuantizedLoss
from dither.precision.probe import Probe, ProbeOptions, clipped_impacts, whole_steps
from dither.precision.recipe import parse_recipe
from dither.privacy.account import Account
from dither.privacy.accountant import epsilon
from dither.privacy.events import Relation, SampledGaussian, SamplerKind
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.privacy.ticket import SampleTicket
from dither.release.bounded_sum import BoundedSum
from dither.release.release import release_sum
from dither.sampling.loader import PoissonBatch, PoissonLoader
from dither.sampling.poisson import PoissonSampler

RECORDS, ROWS, CLIP = 200, 24, 0.01
STEPS = 2.0**40  # of a vector's bound


def make_plan(**changes: Any) -> Plan:
    options: dict[str, Any] = {
        "records": RECORDS,
        "sampling_rate": 0.25,
        "steps": 5,
        "l2_clip": CLIP,
        "noise_multiplier": 4.0,
        "delta": 1e-5,
    }
    return Plan(**{**options, **changes})


def ticket(plan: Plan | None = None) -> SampleTicket:
    found = plan or make_plan()
    return SampleTicket(found.sampler, found.sampling_rate, secret=True)


def make_model() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    )


def make_loss(model: nn.Module, recipe: str = "luq-fp4") -> QuantizedLoss:
    return QuantizedLoss(per_example(nn.CrossEntropyLoss()), model, parse_recipe(recipe))


def make_data(rows: int = RECORDS) -> TensorDataset:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(rows, 6, generator=generator)
    return TensorDataset(x, torch.randint(0, 3, (rows,), generator=generator))


def open_account(tmp_path: Path, plan: Plan | None = None) -> Account:
    ledger = Ledger.create(tmp_path / "ledger.sqlite", store="x")
    return Account(ledger, "run/probe", plan or make_plan())


def sampler(plan: Plan, data: TensorDataset, entropy: Entropy | None = None) -> Callable[[], Any]:
    source = PoissonSampler(len(data), plan.sampling_rate, entropy or OsEntropy())
    loader = PoissonLoader(data, source, 1)
    return lambda: next(iter(loader))


def make_probe(
    tmp_path: Path,
    *,
    plan: Plan | None = None,
    recipe: str = "luq-fp4",
    model: nn.Module | None = None,
    entropy: Entropy | None = None,
    draw: Callable[[], Any] | None = None,
    options: ProbeOptions | None = None,
) -> Probe:
    promise, trained = plan or make_plan(), model or make_model()
    return Probe(
        trained,
        make_loss(trained, recipe),
        open_account(tmp_path, promise),
        draw or sampler(promise, make_data()),
        entropy or OsEntropy(),
        options=options or ProbeOptions(clip=promise.l2_clip),
    )


def batch_of(x: Tensor, y: Tensor, plan: Plan | None = None) -> PoissonBatch:
    return PoissonBatch([x, y], x.shape[0], ticket(plan))


def total(bounded: BoundedSum) -> Tensor:
    (chunk,) = bounded.chunks
    return chunk[RELEASED]


DIFFERENCES = st.lists(
    st.lists(
        st.floats(width=32) | st.sampled_from([math.inf, -math.inf, math.nan, 1e-38, 3e38]),
        min_size=4,
        max_size=4,
    ),
    max_size=6,
)


@settings(deadline=None)
@given(DIFFERENCES, st.floats(1e-6, 1e3))
def test_one_record_moves_the_sum_by_its_bound_and_no_more(
    rows: list[list[float]], clip: float
) -> None:
    def summed(values: list[list[float]]) -> Tensor:
        found = torch.tensor(values, dtype=torch.float64).reshape(-1, 4)
        return total(clipped_impacts(whole_steps(found, clip).sum(0), clip, ticket()))

    whole = summed(rows)
    slack = 1.0 + 1e-9
    for index in range(len(rows)):
        zeroed = [*rows[:index], [0.0] * 4, *rows[index + 1 :]]
        assert float((whole - summed(zeroed)).norm()) <= clip * slack
        swapped = [*rows[:index], [-3e38] * 4, *rows[index + 1 :]]
        assert float((whole - summed(swapped)).norm()) <= 2.0 * clip * slack


def test_the_bound_is_reached() -> None:
    long = torch.tensor([[30.0, 40.0], [0.003, 0.004]], dtype=torch.float64)
    steps = whole_steps(long, CLIP)
    assert steps.double().norm(dim=1) / STEPS == pytest.approx([1.0, 0.5], abs=1e-9)
    reached = clipped_impacts(steps[:1].sum(0) - whole_steps(-long, CLIP)[0], CLIP, ticket())
    assert float(total(reached).norm()) == pytest.approx(
        reached.sensitivity(Relation.REPLACE_ONE), rel=1e-9
    )


def test_what_is_not_finite_counts_as_zero_alone() -> None:
    found = torch.tensor([[math.nan, 0.002], [math.inf, -math.inf]], dtype=torch.float64)
    steps = whole_steps(found, CLIP)
    assert steps[0, 0] == 0
    assert steps[0, 1] == int(0.2 * STEPS)
    assert not steps[1].any()


@pytest.mark.parametrize("recipe", ["luq-fp4", "mxfp4", "int8", "fp8", "bf16"])
@pytest.mark.parametrize("rows", [ROWS, 7])
def test_neighbours_differ_by_one_example_s_bound(tmp_path: Path, recipe: str, rows: int) -> None:
    """Adjacency on the real thing: whole probes of neighbouring samples, same secret draws."""
    x, y = (column[:ROWS] for column in make_data().tensors)
    zeroed, other = x.clone(), x.clone()
    zeroed[7], other[7] = 0.0, 1e4

    def impacts_of(features: Tensor) -> Tensor:
        probe = make_probe(
            tmp_path,
            recipe=recipe,
            entropy=InsecureSeed(9),
            options=ProbeOptions(clip=CLIP, rows=rows),
        )
        return total(probe._bounded(batch_of(features, y)))

    whole = impacts_of(x)
    assert torch.equal(whole, impacts_of(x.clone()))
    # Of the others nothing may move, to the last bit: what moves is example 7's part, in whole.
    assert 0.0 < float((whole - impacts_of(other)).norm()) <= 2.0 * CLIP * (1 + 1e-9)
    assert float((whole - impacts_of(zeroed)).norm()) <= 2.0 * CLIP * (1 + 1e-9)


def test_a_probe_is_what_it_says(tmp_path: Path) -> None:
    """Against losses that are computed here one example at a time."""
    model = make_model().eval()
    x, y = (column[:ROWS] for column in make_data().tensors)
    probe = make_probe(tmp_path, recipe="mxfp4:nearest", model=model)
    found = total(probe._bounded(batch_of(x, y)))
    expected = torch.zeros(3, dtype=torch.float64)
    loss = make_loss(model, "mxfp4:nearest")
    for row in range(ROWS):
        losses = []
        for names in ((), ("0",), ("3",), ("5",)):
            loss.choose(names)
            with torch.no_grad():
                losses.append(loss.function(model, [x[row : row + 1], y[row : row + 1]]).double())
        d = torch.stack([one - losses[0] for one in losses[1:]]).flatten()
        expected += d * (CLIP / max(float(d.norm()), CLIP))  # one has dead units: d is zero
    assert found == pytest.approx(expected, abs=ROWS * 1e-6)
    assert float(found.abs().max()) > 1e-3


def test_dropout_is_off_and_everything_is_put_back(tmp_path: Path) -> None:
    model = make_model().train()
    model[1].eval()
    before = [module.training for module in model.modules()]
    probe = make_probe(tmp_path, recipe="int8", model=model)
    probe.loss.choose(["3"])
    x, y = (column[:ROWS] for column in make_data().tensors)
    state = torch.get_rng_state()
    first, second = (total(probe._bounded(batch_of(x, y))) for _ in range(2))
    assert torch.equal(first, second)
    assert [module.training for module in model.modules()] == before
    assert probe.loss.chosen == {"3"}
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_stochastic_rounding_follows_no_public_seed(tmp_path: Path) -> None:
    probe = make_probe(tmp_path, recipe="luq-fp4")
    x, y = (column[:ROWS] for column in make_data().tensors)
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        found.append(total(probe._bounded(batch_of(x, y))))
    assert not torch.equal(found[0], found[1])


def test_chunks_add_up(tmp_path: Path) -> None:
    x, y = (column[:ROWS] for column in make_data().tensors)
    sums = []
    for rows in (ROWS, 7, 1):
        options = ProbeOptions(clip=CLIP, rows=rows)
        probe = make_probe(tmp_path, recipe="int8", options=options)
        sums.append(total(probe._bounded(batch_of(x, y))))
    assert sums[1] == pytest.approx(sums[0], abs=1e-6)
    assert sums[2] == pytest.approx(sums[0], abs=1e-6)


def centred(output: Tensor, target: Tensor) -> Tensor:
    """A loss of an example that all others are in."""
    losses = nn.functional.cross_entropy(output, target, reduction="none")
    return losses - losses.mean()


@pytest.mark.parametrize("rows", [2, 7, ROWS])
def test_a_loss_that_looks_across_the_sample_is_refused_uncharged(
    tmp_path: Path, rows: int
) -> None:
    """The probe comes before the step's own check of model and loss."""
    model = make_model()
    x, y = (column[:ROWS] for column in make_data().tensors)
    probe = Probe(
        model,
        QuantizedLoss(centred, model, parse_recipe("luq-fp4")),
        open_account(tmp_path),
        lambda: batch_of(x, y),
        OsEntropy(),
        options=ProbeOptions(clip=CLIP, rows=rows),
    )
    with pytest.raises(ModelError, match="looks across the batch"):
        probe.release()
    assert probe.account.steps_charged == 0
    assert probe.impacts.probes == 0


def test_rows_that_are_no_units_are_refused_uncharged(tmp_path: Path) -> None:
    """Two rows a person, one by one: a person would move the sum by 2·C_p."""
    x, y = (column[:ROWS] for column in make_data().tensors)
    probe = make_probe(tmp_path, draw=lambda: PoissonBatch([x, y], ROWS // 2, ticket()))
    with pytest.raises(SamplingError, match="one row for each"):
        probe.release()
    assert probe.account.steps_charged == 0


def test_an_empty_sample_is_a_normal_release(tmp_path: Path) -> None:
    x, y = (column[:0] for column in make_data().tensors)
    probe = make_probe(tmp_path, draw=lambda: batch_of(x, y))
    found = probe.release()
    assert probe.account.steps_charged == 1
    assert any(found.values)  # noise
    assert found.probes == 1


def test_a_release_is_charged_once_and_carries_the_plan_s_noise(tmp_path: Path) -> None:
    """300 draws of 3 sums: their deviation errs by 2.4 % (1 sd); 2/3 and 3/2 lie far outside."""
    plan = make_plan(steps=300, noise_multiplier=6.0)
    x, y = (column[:0] for column in make_data().tensors)
    probe = make_probe(
        tmp_path,
        plan=plan,
        draw=lambda: batch_of(x, y, plan),
        options=ProbeOptions(clip=CLIP, ema=1.0),
    )
    found = [value for _ in range(300) for value in probe.release().values]
    expected = 6.0 * CLIP / plan.expected_batch_size
    assert statistics.stdev(found) == pytest.approx(expected, rel=0.15)
    assert probe.impacts.noise == pytest.approx(expected)
    assert abs(statistics.mean(found)) < 5.5 * expected / 30.0
    assert probe.account.steps_charged == 300 == probe.releases
    events = probe.account.ledger.events("run")
    assert {event for event, _ in events} == {plan.event}
    assert sum(count for _, count in events) == 300
    with pytest.raises(BudgetExhaustedError):
        probe.release()


def test_the_average_is_near_the_truth_where_noise_is_small(tmp_path: Path) -> None:
    plan = make_plan(steps=64, noise_multiplier=0.05, sampling_rate=1.0, sampler=SamplerKind.FULL)
    probe = make_probe(tmp_path, plan=plan, recipe="mxfp4:nearest")
    exact = total(probe._bounded(sampler(plan, make_data())())) / RECORDS
    for _ in range(8):
        found = probe.release()
    assert isinstance(found, Impacts)
    assert found.values == pytest.approx(exact, abs=6.0 * found.noise)
    assert found.noise < 0.1 * float(exact.abs().max())


# A probe that is not charged is impossible.


def test_a_sample_serves_one_release_the_gradient_s_or_the_probe_s(tmp_path: Path) -> None:
    plan = make_plan()
    used = sampler(plan, make_data())()
    used.ticket.spend(plan)  # as the gradient's release does
    probe = make_probe(tmp_path, draw=lambda: used)
    with pytest.raises(SamplingError, match="fresh sample"):
        probe.release()
    assert probe.account.steps_charged == 0
    assert probe.impacts.probes == 0


def test_a_probe_s_sum_cannot_be_released_twice(tmp_path: Path) -> None:
    fresh = sampler(make_plan(), make_data())()
    probe = make_probe(tmp_path, draw=lambda: fresh)
    probe.release()
    with pytest.raises(SamplingError, match="fresh sample"):
        probe.release()
    assert probe.account.steps_charged == 1


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"l2_clip": 2 * CLIP}, "clipped to the plan's bound"), ({"sampling_rate": 0.5}, "0.5")],
)
def test_a_sum_fits_no_other_plan(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    other = open_account(tmp_path, make_plan(**changes))
    bounded = clipped_impacts(torch.ones(3, dtype=torch.int64), CLIP, ticket())
    with pytest.raises((ConfigError, SamplingError), match=match):
        release_sum(bounded, other)
    assert other.steps_charged == 0


def test_a_declared_bound_cannot_be_smaller_than_the_plan_s(tmp_path: Path) -> None:
    account = open_account(tmp_path)
    bounded = clipped_impacts(torch.ones(3, dtype=torch.int64), CLIP, ticket())
    with pytest.raises(ConfigError, match="clipped to the plan's bound"):
        release_sum(dataclasses.replace(bounded, l2_clip=CLIP / 2), account)


def test_a_seeded_probe_is_refused_where_privacy_is_promised(tmp_path: Path) -> None:
    probe = make_probe(tmp_path, entropy=InsecureSeed(1))
    with pytest.raises(Exception, match="operating system's entropy"):
        probe.release()
    assert probe.account.steps_charged == 0


def test_a_full_ledger_or_another_plan_stops_it(tmp_path: Path) -> None:
    probe = make_probe(tmp_path, plan=make_plan(steps=1))
    probe.release()
    before = probe.impacts
    with pytest.raises(BudgetExhaustedError):
        probe.release()
    assert probe.impacts == before
    with pytest.raises(LedgerError, match="plan that run"):
        open_account(tmp_path, make_plan(noise_multiplier=9.0))


def test_nothing_of_a_probe_but_its_average_is_public() -> None:
    """The exact differences live in names that say so."""
    public = {name for name in vars(Probe) if not name.startswith("_")}
    assert public == {"release", "steps_left"}


def test_a_wrong_bound_or_relation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"clipped at 0\.5"):
        make_probe(tmp_path, options=ProbeOptions(clip=0.5))
    other = Ledger.create(tmp_path / "o.sqlite", store="x", relation=Relation.ADD_REMOVE)
    account = Account(other, "run/probe", make_plan(relation=Relation.ADD_REMOVE))
    model = make_model()
    with pytest.raises(ConfigError, match="zero_out or replace_one"):
        Probe(
            model,
            make_loss(model),
            account,
            sampler(make_plan(), make_data()),
            OsEntropy(),
            options=ProbeOptions(clip=CLIP),
        )


# What it costs.


@pytest.mark.parametrize("relation", [Relation.ZERO_OUT, Relation.REPLACE_ONE])
@pytest.mark.parametrize("share", [0.02, pytest.param(0.1, marks=pytest.mark.full)])
def test_all_probes_stay_within_their_share(relation: Relation, share: float) -> None:
    budget, delta, rate, releases = 8.0, 1e-5, 0.02, 6
    z = ProbeOptions(share=share).noise(
        epsilon=budget, delta=delta, rate=rate, releases=releases, relation=relation
    )
    alone = epsilon([(SampledGaussian(rate, z), releases)], delta, relation)
    assert alone <= share * budget
    assert alone == pytest.approx(share * budget, rel=0.02)  # and use it


def test_a_share_that_no_noise_reaches_names_the_option() -> None:
    with pytest.raises(ConfigError, match="--probe-share"):
        ProbeOptions(share=1e-9).noise(
            epsilon=1.0, delta=1e-5, rate=1.0, releases=10**6, relation=Relation.ZERO_OUT
        )


@pytest.mark.parametrize(
    "options",
    [
        {"share": 0.0},
        {"share": 1.0},
        {"share": math.nan},
        {"clip": 0.0},
        {"clip": math.inf},
        {"ema": 0.0},
        {"ema": 1.1},
        {"every": 0},
        {"every": 2.5},
        {"rows": 0},
        {"noise_multiplier": 0.0},
    ],
)
def test_bad_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=r"expected|Type-check"):
        ProbeOptions(**options)


def test_sums_are_exact_in_any_order() -> None:
    generator = np.random.default_rng(1)
    d = torch.from_numpy(
        generator.normal(size=(500, 5)) * 10.0 ** generator.integers(-9, 2, (500, 1))
    )
    steps = whole_steps(d, CLIP)
    assert torch.equal(steps.sum(0), steps.flip(0).sum(0))
    assert torch.equal(steps.sum(0), steps[:250].sum(0) + steps[250:].sum(0))
