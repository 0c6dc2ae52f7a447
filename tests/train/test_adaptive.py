"""Adaptive clipping: samples, sensitivity, noise and charges of its own; a bound that converges."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
import torch
from dp_accounting import pld
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from dither.clipping.engine import ClippingEngine
from dither.errors import BudgetExhaustedError, ConfigError, SamplingError
from dither.noise.entropy import OsEntropy
from dither.privacy.account import Account
from dither.privacy.events import Relation, SamplerKind
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.privacy.ticket import SampleTicket
from dither.release.release import release_sum
from dither.sampling.loader import PoissonBatch
from dither.train.adaptive import AdaptiveBound, AdaptiveClip, quantile_samples, within
from dither.train.door import make_private
from dither.train.step import PrivateStep

RECORDS, BATCH = 2000, 400


def make_plan(steps: int = 10, **changes: Any) -> Plan:
    options: dict[str, Any] = {
        "records": RECORDS,
        "sampling_rate": BATCH / RECORDS,
        "steps": steps,
        "l2_clip": 1.0,
        "noise_multiplier": 1.0,
        "delta": 1e-5,
    }
    return Plan(**{**options, **changes})


def full_plan(steps: int, **changes: Any) -> Plan:
    return make_plan(steps, sampling_rate=1.0, sampler=SamplerKind.FULL, **changes)


def weights(width: int = 3) -> nn.Linear:
    """A gradient of an example is the example itself: norms are what the data say."""
    model = nn.Linear(width, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


def directions(norms: Tensor, width: int = 3) -> TensorDataset:
    x = torch.randn(norms.numel(), width, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x / x.norm(dim=1, keepdim=True) * norms[:, None], norms)


UNIFORM = directions(torch.linspace(1.0, 3.0, RECORDS))


def make(
    tmp_path: Path,
    clip: AdaptiveClip,
    data: Dataset[Any] = UNIFORM,
    model: nn.Module | None = None,
    **options: Any,
) -> Any:
    chosen = model or weights()
    optimizer = torch.optim.SGD(chosen.parameters(), lr=options.pop("lr", 0.0))
    given: dict[str, Any] = {
        "loss_fn": lambda output, _: output[:, 0],
        "ledger": tmp_path / "ledger.sqlite",
        "plan": make_plan(),
        "clipping": clip,
    }
    loader = DataLoader(data, batch_size=BATCH)
    return make_private(chosen, optimizer, loader, **{**given, **options})


def ticket(plan: Plan) -> SampleTicket:
    return SampleTicket(plan.sampler, plan.sampling_rate, secret=True)


NORMS = st.lists(st.floats(0.0, 1e6) | st.sampled_from([math.inf, math.nan]), max_size=8)


@settings(deadline=None)
@given(NORMS, st.floats(1e-3, 1e3), st.floats(0.0, 1e6))
def test_one_record_moves_the_count_by_its_sensitivity_and_no_more(
    norms: list[float], bound: float, other: float
) -> None:
    def total(values: list[float]) -> float:
        found = within(torch.tensor(values, dtype=torch.float64), bound, ticket(make_plan()))
        (chunk,) = found.chunks
        return float(chunk["within"])

    charged = within(torch.zeros(1, dtype=torch.float64), bound, ticket(make_plan()))
    whole = total(norms)
    for index in range(len(norms)):
        rest = norms[:index] + norms[index + 1 :]
        assert abs(whole - total(rest)) == charged.sensitivity(Relation.ZERO_OUT)
        swapped = abs(whole - total([*rest, other]))
        assert swapped <= charged.sensitivity(Relation.REPLACE_ONE)
    # The bound is reached: a smaller charge would be too small.
    replaced = abs(total([bound]) - total([bound * 2.0]))
    assert replaced == charged.sensitivity(Relation.REPLACE_ONE)


def test_what_is_not_finite_counts_as_above() -> None:
    norms = torch.tensor([0.5, math.inf, math.nan], dtype=torch.float64)
    (chunk,) = within(norms, 1.0, ticket(make_plan())).chunks
    assert float(chunk["within"]) == -0.5


def quantile_account(tmp_path: Path, plan: Plan, clip: AdaptiveClip) -> Account:
    ledger = Ledger.create(tmp_path / "ledger.sqlite", store="x")
    return Account(ledger, "run/quantile", clip.plan(plan))


@pytest.mark.parametrize("wrong", [0.25, 1.0])
def test_a_wrong_sensitivity_is_refused_and_costs_nothing(tmp_path: Path, wrong: float) -> None:
    plan = make_plan()
    account = quantile_account(tmp_path, plan, AdaptiveClip())
    total = within(torch.ones(3, dtype=torch.float64), 1.0, ticket(plan))
    with pytest.raises(ConfigError, match="clipped to the plan's bound"):
        release_sum(dataclasses.replace(total, l2_clip=wrong), account)
    assert account.steps_charged == 0


def test_the_noise_of_the_count_is_that_of_its_plan(tmp_path: Path) -> None:
    """400 draws: their deviation errs by 3.5 % (1 sd); 20 % is 5.6 sd, 2/3 and 3/2 far outside."""
    plan = make_plan(400)
    account = quantile_account(tmp_path, plan, AdaptiveClip(every=1, noise_multiplier=6.0))
    norms = torch.ones(10, dtype=torch.float64)
    found = [
        float(release_sum(within(norms, 2.0, ticket(plan)), account).tensors["within"])
        for _ in range(400)
    ]
    assert statistics.stdev(found) == pytest.approx(6.0 * 0.5, rel=0.2)
    assert statistics.mean(found) == pytest.approx(5.0, abs=5.5 * 3.0 / 20.0)


@pytest.mark.parametrize("start", [0.1, 20.0])
@pytest.mark.parametrize(("quantile", "expected"), [(0.5, 2.0), (0.8, 2.6)])
def test_the_bound_converges_to_the_quantile(
    tmp_path: Path, start: float, quantile: float, expected: float
) -> None:
    """Norms are even in [1, 3]. A share errs by 0.055, so B by 0.04 (1 sd); 0.25 is above 6 sd."""
    clip = AdaptiveClip(quantile, every=1, bound=start)
    step, loader = make(tmp_path, clip, plan=make_plan(80))
    for _ in range(16):
        for batch in loader:
            metrics = step(batch)
    assert metrics.bound == pytest.approx(expected, abs=0.25)
    share = metrics.operator.diagnostics.clipped / metrics.operator.diagnostics.batch_size
    assert share == pytest.approx(1.0 - quantile, abs=0.25)


def test_the_budget_covers_steps_and_quantiles(tmp_path: Path) -> None:
    clip = AdaptiveClip(every=2, noise_multiplier=3.0)
    step, loader = make(tmp_path, clip, plan=None, epsilon=2.0, delta=1e-5, epochs=2, run="mine")
    for _ in range(2):
        for batch in loader:
            step(batch)
    ledger = step.account.ledger
    assert ledger.charged("mine") == 10
    assert ledger.charged("mine/quantile") == 5
    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    for z, count in ((step.plan.noise_multiplier, 10), (3.0, 5)):
        gaussian = dp_accounting.GaussianDpEvent(z)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(0.2, gaussian), count)
    spent = float(accountant.get_epsilon(1e-5))
    assert ledger.epsilon(1e-5) == pytest.approx(spent, rel=1e-9)
    assert step.epsilon() == ledger.epsilon(1e-5) <= 2.0
    assert step.epsilon() == pytest.approx(2.0, rel=1e-3)
    assert step.plan.epsilon() < 1.95  # the quantiles' part is worth having


def test_shares_are_released_at_their_turn(tmp_path: Path) -> None:
    step, loader = make(tmp_path, AdaptiveClip(every=3), run="mine")
    charged, bounds = [], []
    for _ in range(2):
        for batch in loader:
            bounds.append(step(batch).bound)
            charged.append(step.account.ledger.charged("mine/quantile"))
    assert charged == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4]
    assert len(set(bounds)) == 4


class Noting(Dataset[Any]):
    """Notes which rows were asked for together."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def __len__(self) -> int:
        return RECORDS

    def __getitem__(self, index: int) -> Any:
        return UNIFORM[index]

    def __getitems__(self, indices: list[int]) -> Any:
        self.asked.append(tuple(indices))
        return [UNIFORM[index] for index in indices]


def test_a_share_has_a_sample_and_a_ticket_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PRIVACY-REVIEW A2: 100 quantiles on the gradients' samples would cost 2.53, not 1.07."""
    spent: list[tuple[SampleTicket, float]] = []
    spend = SampleTicket.spend

    def noted(self: SampleTicket, plan: Plan) -> None:
        spent.append((self, plan.l2_clip))
        spend(self, plan)

    monkeypatch.setattr(SampleTicket, "spend", noted)
    measured: list[Tensor] = []
    of_gradients = ClippingEngine.norms

    def measuring(self: ClippingEngine, rows: Any) -> Tensor:
        measured.append(rows[0].clone())
        return of_gradients(self, rows)

    monkeypatch.setattr(ClippingEngine, "norms", measuring)
    data = Noting()
    step, loader = make(tmp_path, AdaptiveClip(every=1), data)
    batch = next(iter(loader))
    step(batch)
    assert [clip for _, clip in spent] == [0.5, 1.0]
    assert spent[0][0] is not spent[1][0] is batch.ticket
    assert len(data.asked) == 2  # a sample for each
    gradients, quantile = data.asked  # equal by chance: P < 1e-800
    assert gradients != quantile
    # It is not enough to draw one: the norms that are counted are of that sample's records.
    (counted,) = measured
    assert torch.equal(counted, torch.stack([UNIFORM[index][0] for index in quantile]))
    again = Account(step.account.ledger, "again", AdaptiveClip().plan(step.plan))
    with pytest.raises(SamplingError, match="released before"):
        release_sum(within(torch.ones(1).double(), 1.0, batch.ticket), again)


def test_gradients_are_clipped_at_the_bound_and_keep_its_size(tmp_path: Path) -> None:
    """Without much noise, the update is the mean of gradients cut at B, whatever C is."""
    model, clip = weights(), AdaptiveClip(learning_rate=1e-9, bound=2.0)
    plan = full_plan(1, noise_multiplier=0.05, l2_clip=0.1)
    step, loader = make(tmp_path, clip, model=model, lr=1.0, plan=plan)
    step(next(iter(loader)))
    x = UNIFORM.tensors[0]
    expected = (x * (2.0 / x.norm(dim=1)).clamp(max=1.0)[:, None]).mean(0)
    # Noise of 0.05·2/2000 a coordinate; 1e-3 is 20 sd.
    assert torch.allclose(-model.weight.detach()[0], expected, atol=1e-3)
    assert float(expected.norm()) > 0.01


def test_noise_follows_the_bound(tmp_path: Path) -> None:
    """20000 draws: their deviation errs by 0.5 % (1 sd); the window is 8 sd."""
    model = weights(20_000)
    data = TensorDataset(torch.zeros(RECORDS, 20_000), torch.zeros(RECORDS))
    clip = AdaptiveClip(learning_rate=1e-9, bound=4.0)
    step, loader = make(tmp_path, clip, data, model, lr=1.0, plan=make_plan(noise_multiplier=2.0))
    step(next(iter(loader)))
    found = float(model.weight.detach().double().std())
    assert found == pytest.approx(2.0 * 4.0 / BATCH * 1.0025, rel=0.04)


def bound_of(tmp_path: Path, clip: AdaptiveClip, plan: Plan) -> tuple[AdaptiveBound, Account]:
    ledger = Ledger.create(tmp_path / "ledger.sqlite", store="x")
    account = Account(ledger, "run", plan)
    draw = quantile_samples(UNIFORM, plan.sampling_rate, OsEntropy())
    return AdaptiveBound(clip, account, draw, OsEntropy()), account


def long(data: Any) -> Tensor:
    return torch.full((len(data[0]),), math.inf, dtype=torch.float64)


def test_the_bound_stays_when_its_releases_are_used_up(tmp_path: Path) -> None:
    bound, _ = bound_of(tmp_path, AdaptiveClip(every=1), make_plan(2))
    seen = []
    for _ in range(4):
        bound.before_step(long)
        seen.append(bound.bound)
    assert 1.0 < seen[0] < seen[1] == seen[2] == seen[3]
    assert bound.releases == bound.account.steps_charged == 2


def test_nothing_is_released_once_the_run_has_no_step_left(tmp_path: Path) -> None:
    plan = make_plan(1)
    bound, account = bound_of(tmp_path, AdaptiveClip(every=1), plan)
    account.charge(plan.event)
    bound.before_step(long)
    assert bound.bound == 1.0
    assert bound.account.steps_charged == 0


def test_the_bound_stays_within_its_range(tmp_path: Path) -> None:
    clip = AdaptiveClip(every=1, learning_rate=10.0, noise_multiplier=0.1)
    bound, _ = bound_of(tmp_path, clip, make_plan(5))
    for _ in range(5):
        bound.before_step(long)
    assert bound.bound == 1e6


def test_a_checkpointed_bound_goes_on_with_its_turns(tmp_path: Path) -> None:
    bound, _ = bound_of(tmp_path, AdaptiveClip(every=5), make_plan(20))
    bound.resume(3.0, step=8)
    for _ in range(2):
        bound.before_step(long)
    assert bound.bound == 3.0
    bound.before_step(long)
    assert bound.bound > 3.0


def test_a_named_run_goes_on_with_its_quantiles(tmp_path: Path) -> None:
    step, loader = make(tmp_path, AdaptiveClip(every=1), run="mine", plan=make_plan(3))
    batches = iter(loader)
    last = step(next(batches)).bound
    clip = AdaptiveClip(every=1, bound=last)
    again, _ = make(tmp_path, clip, run="mine", plan=make_plan(3))
    for _ in range(2):
        again(next(batches))
    assert again.account.ledger.charged("mine/quantile") == 3
    with pytest.raises(BudgetExhaustedError):
        again(next(batches))
    assert again.account.ledger.charged("mine/quantile") == 3


def test_add_remove_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rounding"):
        make(tmp_path, AdaptiveClip(), plan=make_plan(relation=Relation.ADD_REMOVE))


def test_a_style_beside_it_is_refused(tmp_path: Path) -> None:
    from dither.clipping.styles import Automatic

    bound, account = bound_of(tmp_path, AdaptiveClip(), make_plan())
    model = weights()
    with pytest.raises(ConfigError, match="Automatic and adaptive"):
        PrivateStep(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            loss_fn=lambda output, _: output[:, 0],
            account=account,
            entropy=OsEntropy(),
            style=Automatic(),
            adaptive=bound,
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quantile": 0.0}, "quantile"),
        ({"quantile": 1.0}, "quantile"),
        ({"quantile": math.nan}, "quantile"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": math.inf}, "learning_rate"),
        ({"every": 0}, "every"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"noise_multiplier": math.inf}, "noise_multiplier"),
        ({"bound": 0.0}, "l2_clip"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        AdaptiveClip(**options)


@pytest.mark.parametrize(("size", "noise"), [(4096, 409.6), (10, 2.0)])
def test_the_default_noise_is_that_of_the_paper(size: int, noise: float) -> None:
    """1905.03871 §2.2: a deviation of a twentieth of the batch on a count whose parts are ±1/2."""
    clip = AdaptiveClip()
    ((event, count),) = clip.beside(records=50_000, batch_size=size, steps=95)
    plan = clip.plan(make_plan(95, records=50_000, sampling_rate=size / 50_000))
    assert plan.event == event
    assert plan.steps == count == 10
    assert plan.noise_multiplier == pytest.approx(noise)
    assert plan.l2_clip == 0.5


def test_samples_come_empty_too() -> None:
    draw: Callable[[], PoissonBatch] = quantile_samples(UNIFORM, 1e-6, OsEntropy())
    batch = draw()  # not empty: P = 0.002
    assert batch.size == batch.data[0].shape[0]
