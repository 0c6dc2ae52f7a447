"""`make_private`: what PyTorch users get, and what they are told."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

from dither.errors import (
    BudgetExhaustedError,
    ConfigError,
    DitherWarning,
    LedgerError,
    ModelError,
    SamplingError,
)
from dither.privacy.events import Relation, SamplerKind, Unit
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.sampling.loader import PoissonLoader
from dither.train.door import make_private
from dither.train.step import PrivateStep

RECORDS, BATCH = 400, 40


def make_plan(steps: int = 10, **changes: Any) -> Plan:
    settings: dict[str, Any] = {
        "records": RECORDS,
        "sampling_rate": BATCH / RECORDS,
        "steps": steps,
        "l2_clip": 1.0,
        "noise_multiplier": 1.0,
        "delta": 1e-5,
    }
    return Plan(**{**settings, **changes})


def make_loader(**options: Any) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(RECORDS, 5, generator=generator)
    labels = (inputs[:, 0] > 0).long()
    return DataLoader(TensorDataset(inputs, labels), **{"batch_size": BATCH, **options})


def make(tmp_path: Path, model: nn.Module | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    chosen = model or nn.Linear(5, 2)
    optimizer = options.pop("optimizer", None) or torch.optim.SGD(chosen.parameters(), lr=0.5)
    settings: dict[str, Any] = {
        "loss_fn": nn.CrossEntropyLoss(),
        "ledger": tmp_path / "ledger.sqlite",
        "plan": make_plan(),
    }
    loader = options.pop("loader") if "loader" in options else make_loader()
    return make_private(chosen, optimizer, loader, **{**settings, **options})


def test_a_budget_beside_a_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a plan and epsilon"):
        make(tmp_path, plan=make_plan(3), epsilon=1.0)


def test_three_lines_in_an_existing_loop(tmp_path: Path) -> None:
    step, loader = make(tmp_path, plan=None, epsilon=5.0, delta=1e-5, epochs=2)
    assert isinstance(step, PrivateStep)
    assert isinstance(loader, PoissonLoader)
    for _ in range(2):
        for batch in loader:
            metrics = step(batch)
    assert metrics.step == 20
    assert step.epsilon() == pytest.approx(5.0, rel=1e-3)
    assert step.epsilon() <= 5.0
    assert step.account.steps_left == 0


def test_a_noise_pool_changes_speed_and_nothing_else(tmp_path: Path) -> None:
    step, loader = make(tmp_path, plan=make_plan(3), noise_pool=True)
    plain, _ = make(tmp_path, plan=make_plan(3))
    assert step.plan == plain.plan
    assert step.plan.event == plain.plan.event
    for batch in [*loader][:3]:
        step(batch)
    assert step.epsilon() == pytest.approx(step.plan.epsilon(3))
    assert all(p.grad is None for p in step.model.parameters())
    stats = step.pool_stats()
    assert stats.used + stats.dry == 3 * sum(p.numel() for p in step.model.parameters())
    assert plain.pool_stats() is None
    step.close()
    plain.close()


def test_a_seeded_run_cannot_have_a_noise_pool(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="depends on timing"), pytest.warns(DitherWarning):
        make(tmp_path, sensitive=False, insecure_seed=1, noise_pool=True)


def test_a_step_beyond_the_plan_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    model = nn.Linear(5, 2)
    step, loader = make(tmp_path, model)
    for batch in loader:
        step(batch)
    before = model.weight.detach().clone()
    with pytest.raises(BudgetExhaustedError):
        step(next(iter(loader)))
    assert torch.equal(model.weight, before)


def test_the_gradient_is_the_noisy_sum_over_the_expected_batch_size(tmp_path: Path) -> None:
    """Pitfalls 4-6: with a zero-gradient model the update is pure noise of the planned σ/(q·n)."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(20_000))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :2] + 0.0 * self.weight.sum()

    model = Constant()
    plan = make_plan(noise_multiplier=2.0, l2_clip=3.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    step, loader = make(tmp_path, model, optimizer=optimizer, plan=plan)
    step(next(iter(loader)))
    sigma = 2.0 * 3.0 / BATCH
    found = float(model.weight.detach().double().std())
    # The charged sensitivity is at most 0.3 % above C; the estimate errs by 0.5 % (1 sd), so the
    # window of 4 % is 8 sd: false alarms below 1e-15. 2/3 σ and 3/2 σ lie far outside.
    assert found == pytest.approx(sigma * 1.0025, rel=0.04)
    assert model.weight.grad is None


def test_every_parameter_gets_noise_the_unused_and_the_bias_too(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model.register_parameter("unused", nn.Parameter(torch.zeros(6)))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    step, loader = make(tmp_path, model)
    for _, batch in zip(range(4), loader, strict=False):
        step(batch)
    # One draw is zero with P < 0.002, so a parameter of two coordinates stays with P < 1e-21.
    for name, parameter in model.named_parameters():
        assert (parameter != before[name]).any(), name
    assert sum(int((p == before[n]).sum()) for n, p in model.named_parameters()) <= 3


def test_a_private_model_learns(tmp_path: Path) -> None:
    model = nn.Linear(5, 2)
    step, loader = make(tmp_path, model, plan=make_plan(60))
    for _ in range(6):
        for batch in loader:
            step(batch)
    x, y = make_loader(batch_size=RECORDS).dataset.tensors  # type: ignore[attr-defined]
    assert (model(x).argmax(1) == y).float().mean() > 0.9


def test_a_batch_serves_one_step_only(tmp_path: Path) -> None:
    step, loader = make(tmp_path)
    batch = next(iter(loader))
    step(batch)
    with pytest.raises(SamplingError, match="released before"):
        step(batch)
    assert step.steps_made == 1


def test_a_batch_of_an_ordinary_loader_is_refused(tmp_path: Path) -> None:
    step, _ = make(tmp_path)
    with pytest.raises(SamplingError, match="make_private returned"):
        step(next(iter(make_loader())))


def test_a_batch_of_another_rate_is_refused(tmp_path: Path) -> None:
    step, _ = make(tmp_path)
    other = make_plan(sampling_rate=0.2)
    _, loader = make(tmp_path, plan=other)
    with pytest.raises(SamplingError, match="as charged"):
        step(next(iter(loader)))


def test_a_collate_function_that_repeats_records_is_refused(tmp_path: Path) -> None:
    """One record would contribute twice, at the price of once."""

    def twice(items: list[Any]) -> Any:
        return torch.utils.data.default_collate(items + items)

    step, loader = make(tmp_path, loader=make_loader(collate_fn=twice))
    batches = [batch for batch in loader if batch.size]
    with pytest.raises(SamplingError, match="one row"):
        step(batches[0])


def test_augmentation_does_not_follow_the_users_seed(tmp_path: Path) -> None:
    class Noisy(TensorDataset):
        def __getitem__(self, index: Any) -> Any:
            x, y = super().__getitem__(index)  # type: ignore[no-untyped-call]
            return x + torch.randn_like(x) + np.random.rand() + random.random(), y  # noqa: NPY002, S311

    data = Noisy(torch.zeros(400, 5), torch.zeros(400, dtype=torch.int64))
    plan = make_plan(sampling_rate=1.0, sampler=SamplerKind.FULL)
    _, loader = make(tmp_path, loader=DataLoader(data, batch_size=400), plan=plan)
    seen, drawn = [], []
    for _ in range(2):
        torch.manual_seed(7)
        np.random.seed(7)  # noqa: NPY002
        random.seed(7)
        seen.append(next(iter(loader)).data[0])
        drawn.append((torch.rand(1).item(), np.random.rand(), random.random()))  # noqa: NPY002, S311
    assert not torch.equal(*seen)
    assert drawn[0] == drawn[1]  # and the user's own generators are left alone


def test_a_slack_too_small_for_the_batch_is_refused(tmp_path: Path) -> None:
    plan = make_plan(relation=Relation.ADD_REMOVE, numeric_slack=1e-6)
    with pytest.raises(ConfigError, match="numeric_slack"):
        make(tmp_path, plan=plan)


def test_n_does_not_show_in_the_loaders_length_under_add_remove(tmp_path: Path) -> None:
    lengths = set()
    for records in (400, 401, 441):
        data = TensorDataset(torch.zeros(records, 5), torch.zeros(records, dtype=torch.int64))
        plan = make_plan(relation=Relation.ADD_REMOVE)
        _, loader = make(tmp_path, loader=DataLoader(data, batch_size=40), plan=plan)
        lengths.add(len(loader))
    assert lengths == {10}


def test_a_ledger_object_is_checked_like_a_path(tmp_path: Path) -> None:
    open_account = Ledger.create(tmp_path / "open.sqlite", store="x", sensitive=False)
    with pytest.raises(LedgerError, match="sensitive"):
        make(tmp_path, ledger=open_account)


def test_an_unknown_relation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="replace_one"):
        make(tmp_path, plan=None, epsilon=1.0, delta=1e-5, epochs=1, relation="sideways")


def test_runs_on_one_ledger_add_up(tmp_path: Path) -> None:
    for _ in range(2):
        step, loader = make(tmp_path)
        for batch in loader:
            step(batch)
    ledger = Ledger.open(tmp_path / "ledger.sqlite")
    assert sum(count for _, count in ledger.events()) == 20
    assert ledger.epsilon(1e-5) > step.epsilon()


def test_a_named_run_goes_on_with_its_budget(tmp_path: Path) -> None:
    step, loader = make(tmp_path, run="mine")
    step(next(iter(loader)))
    again, _ = make(tmp_path, run="mine")
    assert again.account.steps_left == 9  # a short plan leases one step at a time
    with pytest.raises(LedgerError, match="another plan"):
        make(tmp_path, run="mine", plan=make_plan(noise_multiplier=0.9))


@pytest.mark.filterwarnings("ignore:insecure seed")
def test_a_seeded_run_repeats_and_costs_infinity(tmp_path: Path) -> None:
    weights = []
    for name in "ab":
        model = nn.Linear(5, 2)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        step, loader = make(
            tmp_path, model, insecure_seed=3, sensitive=False, ledger=tmp_path / f"{name}.sqlite"
        )
        for batch in loader:
            step(batch)
        weights.append(model.weight.detach().clone())
        assert step.epsilon() == math.inf
    assert torch.equal(*weights)


def test_a_seeded_run_on_sensitive_records_must_be_forced(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="force"):
        make(tmp_path, insecure_seed=3)
    with pytest.warns(DitherWarning, match="NOT PRIVATE"):
        step, _ = make(tmp_path, insecure_seed=3, force=True)
    assert step.epsilon() == math.inf


class _Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(10))


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (DataLoader(_Stream(), batch_size=2), "random access"),
        (make_loader(sampler=WeightedRandomSampler([1.0] * RECORDS, RECORDS)), "custom sampler"),
        (make_loader(batch_size=None), "batch_size"),
    ],
)
def test_loaders_that_cannot_be_poisson_are_refused(
    tmp_path: Path, loader: DataLoader[Any], words: str
) -> None:
    with pytest.raises(SamplingError, match=words):
        make(tmp_path, loader=loader)
    assert not (tmp_path / "ledger.sqlite").exists()


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_shuffled_loader_becomes_poisson(tmp_path: Path, shuffle: bool) -> None:
    _, loader = make(tmp_path, loader=make_loader(shuffle=shuffle))
    sizes = {batch.size for batch in loader}
    assert len(sizes) > 1  # ten equal Poisson sizes: P < 1e-9


def test_batch_norm_is_refused_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="GroupNorm"):
        make(tmp_path, nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))


def test_an_optimizer_of_another_model_is_refused(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ModelError, match="optimizer"):
        make(tmp_path, optimizer=optimizer)


def test_lbfgs_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(5, 2)
    with pytest.raises(ModelError, match="LBFGS"):
        make(tmp_path, model, optimizer=torch.optim.LBFGS(model.parameters()))


@pytest.mark.parametrize("missing", ["epsilon", "delta", "epochs"])
def test_a_missing_promise_is_asked_for(tmp_path: Path, missing: str) -> None:
    promise: dict[str, Any] = {"epsilon": 1.0, "delta": 1e-5, "epochs": 1}
    promise.pop(missing)
    with pytest.raises(ConfigError, match="or a plan"):
        make(tmp_path, plan=None, **promise)


def test_a_batch_size_above_the_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sampling rate"):
        make(
            tmp_path,
            loader=make_loader(batch_size=RECORDS + 1),
            plan=None,
            epsilon=1.0,
            delta=1e-5,
            epochs=1,
        )


def test_a_plan_for_other_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="400 records"):
        make(tmp_path, plan=make_plan(records=300))


@pytest.mark.parametrize("unit", [Unit.PERSON, Unit.RANK])
def test_a_unit_that_nothing_enforces_is_refused(tmp_path: Path, unit: Unit) -> None:
    with pytest.raises(ConfigError, match="unit record"):
        make(tmp_path, plan=make_plan(unit=unit))


def test_a_declared_size_is_free_under_add_remove(tmp_path: Path) -> None:
    plan = make_plan(records=500, relation=Relation.ADD_REMOVE)
    step, _ = make(tmp_path, plan=plan)
    assert step.plan.expected_batch_size == pytest.approx(50.0)


def test_a_weak_delta_warns(tmp_path: Path) -> None:
    with pytest.warns(DitherWarning, match="1/n"):
        make(tmp_path, plan=None, epsilon=5.0, delta=0.01, epochs=1)


def test_adam_sees_only_the_noisy_gradient(tmp_path: Path) -> None:
    model = nn.Linear(5, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    step, loader = make(tmp_path, model, optimizer=optimizer)
    for batch in loader:
        step(batch)
    moments = optimizer.state[model.weight]["exp_avg_sq"]
    assert (moments > 0).all()


def test_the_model_is_untouched_by_wrappers(tmp_path: Path) -> None:
    model = nn.Linear(5, 2)
    make(tmp_path, model)
    assert set(model.state_dict()) == {"weight", "bias"}
    assert type(model) is nn.Linear
