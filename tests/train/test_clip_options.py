"""What can be said about clipping at the door, and what it may change."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.test_door import BATCH, RECORDS, make, make_loader, make_plan
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from dither.clipping.loss import ModelLoss
from dither.clipping.styles import Automatic, Flat, PerLayer, Squares, Style
from dither.errors import ConfigError
from dither.privacy.events import SamplerKind

SPEED: list[dict[str, Any]] = [
    {"noise_pool": True},
    {"microbatch_size": 7},
    {"memory_limit": 1 << 12},
    {"lease": 3},
]


@pytest.mark.parametrize("option", SPEED, ids=str)
def test_no_speed_option_alters_the_event(tmp_path: Path, option: dict[str, Any]) -> None:
    step, loader = make(tmp_path, plan=make_plan(3), **option)
    plain, _ = make(tmp_path, plan=make_plan(3))
    assert step.plan == plain.plan
    assert step.plan.event == plain.plan.event
    for batch in [*loader][:3]:
        step(batch)
    charged = step.account.ledger.events(step.account.run)
    assert {event for event, _ in charged} == {plain.plan.event}
    assert sum(count for _, count in charged) == 3
    step.close()


class Seen(nn.Linear):
    """Notes how many rows come through at a time."""

    rows: list[int]

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(x.shape[0])
        return super().forward(x)


@pytest.mark.parametrize("option", [{"microbatch_size": 16}, {"memory_limit": 4096}], ids=str)
def test_speed_options_reach_the_engine_and_keep_the_sum(
    tmp_path: Path, option: dict[str, Any]
) -> None:
    """All records, nearly no noise: the updates agree to 0.03/400 of noise, 1e-3 is 13 sd."""
    updates, rows = [], []
    for index, chosen in enumerate(({}, option)):
        model = Seen(5, 2)
        model.rows = []
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        plan = make_plan(2, sampling_rate=1.0, sampler=SamplerKind.FULL, noise_multiplier=0.03)
        step, loader = make(
            tmp_path,
            model,
            plan=plan,
            ledger=tmp_path / f"{index}.sqlite",
            optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
            **chosen,
        )
        step(next(iter(loader)))
        updates.append(model.weight.detach().clone())
        rows.append(model.rows)
    assert torch.allclose(updates[0], updates[1], atol=1e-3)
    assert float(updates[0].norm()) > 0.05
    assert max(rows[0]) == RECORDS
    assert max(rows[1]) <= 64


@pytest.mark.parametrize(
    "style",
    [None, Flat(), Flat(0.5), Automatic(), PerLayer(), PerLayer({"weight": "w", "bias": "b"})],
    ids=str,
)
def test_every_style_learns_at_the_same_price(tmp_path: Path, style: Style | None) -> None:
    model = nn.Linear(5, 2)
    step, loader = make(tmp_path, model, plan=make_plan(60), clipping=style)
    for _ in range(6):
        for batch in loader:
            step(batch)
    x, y = make_loader(batch_size=RECORDS).dataset.tensors  # type: ignore[attr-defined]
    assert (model(x).argmax(1) == y).float().mean() > 0.85
    assert step.epsilon() == pytest.approx(make_plan(60).epsilon())


def test_automatic_clipping_evens_out_lengths(tmp_path: Path) -> None:
    """Gradients of length 1000 and 0.1 count alike; clipped at 1 they would count 10 to 1."""
    sizes = {}
    for name, style in (("flat", Flat()), ("automatic", Automatic())):
        model = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(model.weight)
        x = torch.tensor([[1000.0, 0.0], [0.0, 0.1]]).repeat(RECORDS // 2, 1)
        plan = make_plan(1, sampling_rate=1.0, sampler=SamplerKind.FULL, noise_multiplier=0.03)
        step, loader = make(
            tmp_path,
            model,
            loader=DataLoader(TensorDataset(x, torch.zeros(RECORDS)), batch_size=BATCH),
            loss_fn=lambda output, _: output[:, 0],
            plan=plan,
            clipping=style,
            ledger=tmp_path / f"{name}.sqlite",
            optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        )
        step(next(iter(loader)))
        sizes[name] = (model.weight[0, 0] / model.weight[0, 1]).item()
    assert sizes["flat"] == pytest.approx(10.0, rel=0.05)
    assert sizes["automatic"] == pytest.approx(1.1, rel=0.05)  # γ = 0.01 beside 0.1


def test_a_loss_that_calls_the_model(tmp_path: Path) -> None:
    """Dictionaries, several calls, several losses."""
    model = nn.Linear(5, 2)
    x, y = make_loader().dataset.tensors  # type: ignore[attr-defined]

    def losses(given: nn.Module, batch: Any) -> Any:
        first = F.cross_entropy(given(batch["x"]), batch["y"], reduction="none")
        return {"first": first, "second": 0.01 * given(batch["x"]).square()}

    def collate(items: list[Any]) -> Any:
        xs, ys = zip(*items, strict=True)
        return {"x": torch.stack(xs), "y": torch.stack(ys)}

    step, loader = make(
        tmp_path,
        model,
        loader=make_loader(collate_fn=collate),
        plan=make_plan(60),
        loss_fn=ModelLoss(losses),
    )
    for _ in range(6):
        for batch in loader:
            step(batch)
    assert (model(x).argmax(1) == y).float().mean() > 0.85


class Twice:
    """Forgets the bound."""

    def factors(self, squares: Squares, l2_clip: float) -> Squares:
        return {name: torch.full_like(s, 2.0) for name, s in squares.items()}


class Relative:
    """Divides by the longest gradient of the batch."""

    def factors(self, squares: Squares, l2_clip: float) -> Squares:
        total = torch.stack(list(squares.values())).sum(0)
        return dict.fromkeys(squares, l2_clip / total.max().sqrt().expand_as(total))


class Broken:
    """Divides by zero."""

    def factors(self, squares: Squares, l2_clip: float) -> Squares:
        return {name: s * math.nan for name, s in squares.items()}


@pytest.mark.parametrize(
    ("style", "words"),
    [
        (Twice(), "norms of at most 1"),
        (Relative(), "one example alone"),
        (Broken(), "norms of at most 1"),
        (PerLayer({"weight": "all"}), "'bias'"),
        (PerLayer(None, {"elsewhere": 1.0}), "positive weight"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_style_that_breaks_its_promise_is_refused(
    tmp_path: Path, style: Style, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make(tmp_path, clipping=style)


@pytest.mark.parametrize("name", ["microbatch_size", "memory_limit"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_below_one_are_refused(tmp_path: Path, name: str, value: int) -> None:
    option: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=name):
        make(tmp_path, **option)
