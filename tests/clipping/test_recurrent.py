"""Rules for recurrent layers against each example alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dither.clipping import bookkeeping
from dither.clipping.gradients import Chunk, Gradients, Inventory, Loss
from dither.clipping.loss import ModelLoss
from dither.clipping.rules import recurrent  # noqa: F401 - registers itself
from dither.clipping.unsupported import UnsupportedError

ROWS, STEPS, INPUTS, UNITS = 3, 5, 4, 6
Made = Callable[..., nn.RNNBase]


def differentiate(model: nn.Module, loss_fn: Loss, chunk: Chunk) -> Gradients:
    return bookkeeping.differentiate(model, loss_fn, chunk, Inventory.of(model))


def relu(*args: Any, **kwargs: Any) -> nn.RNN:
    return nn.RNN(*args, nonlinearity="relu", **kwargs)


LAYERS: dict[str, Made] = {"lstm": nn.LSTM, "gru": nn.GRU, "tanh": nn.RNN, "relu": relu}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deep": {"num_layers": 2, "bidirectional": True},
    "no_bias": {"bias": False},
    "batch_first": {"batch_first": True, "bidirectional": True},
}


def flat(outputs: Any, rows: int, *, batch_first: bool) -> Tensor:
    """Weigh all that a layer gives, one number an example."""
    states, last = outputs
    first = states if batch_first else states.transpose(0, 1)
    ends = torch.cat(list(last) if isinstance(last, tuple) else [last], 2).transpose(0, 1)
    weights = torch.linspace(0.5, 2.0, first.shape[1], dtype=first.dtype)[:, None]
    weighed: Tensor = (first * weights).flatten(1).sum(1) + ends.square().flatten(1).sum(1)
    return weighed


def check(model: nn.Module, run: ModelLoss, x: Tensor, tolerance: float = 1e-9) -> Gradients:
    """Compare every example's gradient with that of a batch of one."""
    found = differentiate(model, run, Chunk((x,), len(x), len(x)))
    assert found.slow == ()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for row in range(len(x)):
        loss = run.function(model, (x[row : row + 1],)).sum()
        grads = torch.autograd.grad(loss, list(parameters.values()))
        for name, truth in zip(parameters, grads, strict=True):
            form = found.forms[name].dense()[row].view_as(truth)
            torch.testing.assert_close(
                form, truth.to(form.dtype), rtol=tolerance, atol=tolerance, msg=name
            )
    return found


def whole(layer: nn.RNNBase) -> ModelLoss:
    def function(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        (x,) = batch
        given = x if layer.batch_first else x.transpose(0, 1)
        return flat(layer(given), len(x), batch_first=layer.batch_first)

    return ModelLoss(function)


def examples(rows: int = ROWS) -> Tensor:
    return torch.randn(rows, STEPS, INPUTS, dtype=torch.float64)


@pytest.mark.parametrize("rows", [ROWS, 1])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", LAYERS)
def test_layers(kind: str, options: str, rows: int) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind](INPUTS, UNITS, **OPTIONS[options]).double()
    check(layer, whole(layer), examples(rows))


@pytest.mark.parametrize("layers", [1, 2])
def test_projections(layers: int) -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(INPUTS, UNITS, num_layers=layers, proj_size=2, bidirectional=True).double()
    check(layer, whole(layer), examples())


@pytest.mark.parametrize("trained", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0"])
@pytest.mark.parametrize("kind", LAYERS)
def test_frozen_parts(kind: str, trained: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind](INPUTS, UNITS).double()
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name == trained)
    assert set(check(layer, whole(layer), examples()).forms) == {trained}


class Learned(nn.Module):
    """Initial states that are parameters, and a layer used twice."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = LAYERS[kind](UNITS, UNITS, batch_first=True)
        self.h0 = nn.Parameter(torch.randn(1, 1, UNITS))

    def forward(self, x: Tensor) -> Tensor:
        h0 = self.h0.expand(-1, len(x), -1)
        hx = (h0, torch.zeros_like(h0)) if isinstance(self.layer, nn.LSTM) else h0
        states, last = self.layer(x, hx)
        return flat(self.layer(states, last), len(x), batch_first=True)


@pytest.mark.parametrize("rows", [ROWS, 1])
@pytest.mark.parametrize("kind", LAYERS)
def test_learned_initial_states_and_a_layer_used_twice(kind: str, rows: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(rows, STEPS, UNITS, dtype=torch.float64)
    model = Learned(kind).double()
    check(model, ModelLoss(lambda model, batch: model(*batch)), x)


class Cells(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        zeros = x.new_zeros(len(x), UNITS)
        state: Any = (zeros, zeros) if isinstance(self.cell, nn.LSTMCell) else zeros
        for time in range(x.shape[1]):
            state = self.cell(x[:, time], state)
        return torch.cat(list(state) if isinstance(state, tuple) else [state], 1).sum(1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(kind: type[nn.RNNCellBase], bias: bool) -> None:
    torch.manual_seed(0)
    model = Cells(kind(INPUTS, UNITS, bias=bias)).double()  # type: ignore[call-arg]
    check(model, ModelLoss(lambda model, batch: model(*batch)), examples())


def test_relu_cells() -> None:
    torch.manual_seed(0)
    model = Cells(nn.RNNCell(INPUTS, UNITS, nonlinearity="relu")).double()
    check(model, ModelLoss(lambda model, batch: model(*batch)), examples())


@pytest.mark.parametrize("kind", LAYERS)
def test_autocast_keeps_pytorchs_types_and_measures_in_float32(kind: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind](INPUTS, UNITS, batch_first=True)
    x = examples().float()
    seen: list[Any] = []

    def function(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        outputs = layer(*batch)
        seen.append(outputs)
        return flat(outputs, len(batch[0]), batch_first=True).float()

    with torch.autocast("cpu", torch.bfloat16):
        found = check(layer, ModelLoss(function), x, tolerance=0.1)
    assert {form.dense().dtype for form in found.forms.values()} == {torch.float32}
    ours, plain = seen[0], seen[1]
    assert ours[0].dtype == plain[0].dtype
    assert ours[0].shape[1:] == plain[0].shape[1:]


def test_dropout_between_layers() -> None:
    torch.manual_seed(0)
    layer = nn.GRU(INPUTS, UNITS, num_layers=2, dropout=0.5, batch_first=True).double()
    x = examples()
    chunk = Chunk((x,), len(x), len(x))
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(differentiate(layer, whole(layer), chunk).forms["weight_ih_l1"])
    assert torch.equal(found[0].dense(), found[1].dense())
    assert not torch.equal(found[0].dense(), found[2].dense())
    layer.eval()
    check(layer, whole(layer), x)


def test_packed_sequences_are_refused_with_a_reason() -> None:
    layer = nn.LSTM(INPUTS, UNITS, batch_first=True).double()

    def function(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(batch[0], [STEPS] * ROWS, batch_first=True)
        _, (last, _) = layer(packed)
        summed: Tensor = last[0].sum(1)
        return summed

    with pytest.raises(UnsupportedError, match="packed sequences"):
        differentiate(layer, ModelLoss(function), Chunk((examples(),), ROWS, ROWS))
