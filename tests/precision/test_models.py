"""Whole models train private steps in low precision, by book-keeping, as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.clipping import models_zoo as zoo
from tests.clipping import oracle
from tests.clipping.models_zoo import Case
from tests.precision.quantized import all_chosen
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

import dither
from dither.clipping.clipping import Clipping
from dither.clipping.loss import ModelLoss, per_example
from dither.errors import ModelError
from dither.precision.layers import find_layers, measure_flops
from dither.precision.loss import QuantizedLoss
from dither.precision.options import Dynamic
from dither.precision.recipe import parse_recipe
from dither.precision.schedules import Rotating

MODELS: dict[str, Callable[[], Case]] = {
    "resnet18": lambda: zoo.resnet(18, size=16),
    "resnet50": lambda: zoo.resnet(50, size=16),
    "densenet121": lambda: zoo.densenet121(size=32),
    "bert": zoo.bert,
    "gpt2": zoo.gpt2,
}
FORMATS = ("bf16", "int8", "mxfp4", "luq-fp4")
QUICK = {("bert", "int8")}  # all in the full run
RECORDS, BATCH = 12, 4


class Records(Dataset[Any]):
    """Examples of a batch, one by one."""

    def __init__(self, batch: dict[str, Tensor]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return RECORDS

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: leaf[index] for name, leaf in self.batch.items()}


def trained(case: Case, loss: ModelLoss, folder: Path, **options: Any) -> Any:
    """Train an epoch privately; return the step. A way out by torch.func would warn, and fail."""
    before = copy.deepcopy(case.model.state_dict())
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.05)
    step, loader = dither.make_private(
        case.model,
        optimizer,
        DataLoader(Records(case.batch(RECORDS)), batch_size=BATCH),
        loss_fn=loss,
        ledger=folder / "ledger.sqlite",
        epsilon=8.0,
        delta=1e-5,
        epochs=1,
        **options,
    )
    for batch in loader:
        metrics = step(batch)
    assert metrics.step == RECORDS // BATCH
    after = case.model.state_dict()
    assert all(bool(torch.isfinite(t).all()) for t in after.values() if t.is_floating_point())
    trainable = [name for name, p in case.model.named_parameters() if p.requires_grad]
    assert all(not torch.equal(before[name], after[name]) for name in trainable)
    return step


def _cases() -> list[Any]:
    found = []
    for name in MODELS:
        for recipe in FORMATS:
            marks = () if (name, recipe) in QUICK else pytest.mark.full
            found.append(pytest.param(name, recipe, marks=marks, id=f"{name}-{recipe}"))
    return found


@pytest.mark.parametrize(("name", "recipe"), _cases())
def test_models_train_private_steps(name: str, recipe: str, tmp_path: Path) -> None:
    case = MODELS[name]()
    loss = all_chosen(case.loss, case.model, parse_recipe(recipe))
    trained(case, loss, tmp_path)


@pytest.mark.parametrize("name", [pytest.param("resnet18", marks=pytest.mark.full), "bert"])
def test_another_subset_each_period(name: str, tmp_path: Path) -> None:
    """As a run has it: the same model, step by step in another mixture of precisions."""
    case = MODELS[name]()
    dynamic = Dynamic(
        parse_recipe("luq-fp4"), schedule=Rotating(0.5), by="layers", rotate_every=1, seed=3
    )
    trained(case, case.loss, tmp_path, precision=dynamic)


@pytest.mark.full
@pytest.mark.parametrize("recipe", ["bf16", "int8", "luq-fp4"])
def test_clipped_sums_of_a_deep_model_stay_within_the_charge(recipe: str) -> None:
    """Half of the records' losses are not numbers: what is left moves by what they were."""
    case = zoo.resnet(18, size=16)
    batch = case.batch(6)
    weighed = ModelLoss(lambda m, b: case.loss.function(m, b) * b["weight"])
    loss = all_chosen(weighed, case.model, parse_recipe(recipe))
    ones = torch.ones(6)
    found = []
    for weight in (ones, torch.where(torch.arange(6) == 2, torch.nan, ones)):
        engine = oracle.engine(case.model, loss, Clipping(1.0))
        found.append(oracle.as_vector(engine({**batch, "weight": weight}, oracle.ticket())))
        assert engine.method == "bookkeeping"
    assert 0.5 < float((found[0] - found[1]).norm()) <= 1.002


def test_every_layer_of_bert_and_resnet_is_found_and_used() -> None:
    for make, kinds in ((zoo.bert, {"linear", "embedding"}), (MODELS["resnet18"], None)):
        case = make()
        layers = find_layers(case.model)
        assert {layer.kind for layer in layers} == (kinds or {"linear", "convolution"})
        flops = measure_flops(case.model, case.loss, case.batch(2))
        for layer in layers:
            assert (flops[layer.name] > 0.0) == (layer.kind != "embedding")
        multiplied = {p.data_ptr() for p in case.model.parameters() if p.ndim >= 2}
        listed = {case.model.get_parameter(layer.parameter).data_ptr() for layer in layers}
        assert listed == multiplied


def test_gradient_checkpointing_is_refused_with_the_fix() -> None:
    """What is computed again in the backward pass would be computed in full precision."""

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden: Tensor = checkpoint(self.body, x, use_reentrant=False)
            found: Tensor = self.head(hidden)
            return found

    torch.manual_seed(0)
    model = Checkpointed()
    batch = torch.randn(6, 6), torch.randint(0, 3, (6,))
    plain = per_example(nn.CrossEntropyLoss())
    for recipe in FORMATS:
        loss = QuantizedLoss(plain, model, parse_recipe(recipe))
        oracle.engine(model, loss, Clipping(1.0))(batch, oracle.ticket())  # nothing is chosen
        loss.choose(["body.0", "body.2"])
        with pytest.raises(ModelError, match="turn gradient checkpointing off"):
            oracle.engine(model, loss, Clipping(1.0))(batch, oracle.ticket())


@pytest.mark.full
def test_a_long_run_still_learns(tmp_path: Path) -> None:
    """Twenty private steps in int8 fit what twenty in full precision fit."""
    torch.manual_seed(0)
    x = torch.randn(512, 12)
    y = (x[:, 0] + x[:, 1] > 0).long()
    accuracies = []
    for chosen in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 2))
        loss = QuantizedLoss(per_example(nn.CrossEntropyLoss()), model, parse_recipe("int8"))
        loss.choose(["0", "2"] if chosen else [])
        step, loader = dither.make_private(
            model,
            torch.optim.SGD(model.parameters(), lr=1.0),
            DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=128),
            loss_fn=loss,
            ledger=tmp_path / f"{chosen}.sqlite",
            epsilon=8.0,
            delta=1e-5,
            epochs=5,
        )
        for _ in range(5):
            for batch in loader:
                step(batch)
        with torch.no_grad():
            accuracies.append(float((model(x).argmax(1) == y).float().mean()))
    assert accuracies[0] > 0.85
    assert accuracies[1] > 0.85
