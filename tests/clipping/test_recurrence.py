"""Recurrent loops against PyTorch's own layers, values and every gradient."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dither.clipping.recurrence import Projection, gru, lstm, rnn, states_before

UNITS, INPUTS = 3, 4
SHAPES = [(2, 5), (1, 1), (1, 4), (3, 1), (0, 2)]
KINDS = ["lstm", "gru", "rnn_tanh", "rnn_relu"]
CASES = list(itertools.product(KINDS, SHAPES, [False, True]))


def layer(kind: str, seed: int = 0) -> nn.RNNBase:
    torch.manual_seed(seed)
    if kind.startswith("rnn"):
        made: nn.RNNBase = nn.RNN(INPUTS, UNITS, nonlinearity=kind[4:], bidirectional=True)
    else:
        made = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](INPUTS, UNITS, bidirectional=True)
    made.batch_first = True
    return made.double()


def ours(
    kind: str, weights: Sequence[Tensor], x: Tensor, initial: list[Tensor], reverse: bool
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Give the outputs, and what the recurrent weight meets: its gates and the states before."""
    w_ih, w_hh, b_ih, b_hh = weights
    if kind == "gru":
        gates_x = F.linear(x, w_ih, b_ih)
        gates_h = b_hh.detach().expand_as(gates_x).requires_grad_()
        states = gru(gates_x, gates_h, w_hh, initial[0], reverse=reverse)
        outputs = [states]
    else:
        gates_x = gates_h = F.linear(x, w_ih, b_ih + b_hh)
        if kind == "lstm":
            states, cell, _ = lstm(gates_x, w_hh, initial[0], initial[1], reverse=reverse)
            outputs = [states, cell]
        else:
            states = rnn(gates_x, w_hh, initial[0], kind[4:], reverse=reverse)
            outputs = [states]
    return outputs, gates_x, gates_h, states_before(states, initial[0], reverse=reverse)


def theirs(made: nn.RNNBase, x: Tensor, initial: list[Tensor], reverse: bool) -> list[Tensor]:
    """Run PyTorch's layer in both directions and keep one."""
    both = [torch.stack([state, state]) for state in initial]
    hx: Any = tuple(both) if len(both) == 2 else both[0]
    states, last = made(x, hx)
    states = states[..., UNITS:] if reverse else states[..., :UNITS]
    return [states, last[1][int(reverse)]] if len(both) == 2 else [states]


def given(kind: str, rows: int, steps: int) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(rows + 7 * steps)
    x = torch.randn(rows, steps, INPUTS, dtype=torch.float64, requires_grad=True)
    count = 2 if kind == "lstm" else 1
    return x, [
        torch.randn(rows, UNITS, dtype=torch.float64, requires_grad=True) for _ in range(count)
    ]


@pytest.mark.parametrize(("kind", "shape", "reverse"), CASES)
def test_values_and_gradients_are_pytorchs(
    kind: str, shape: tuple[int, int], reverse: bool
) -> None:
    made = layer(kind)
    x, initial = given(kind, *shape)
    weights = made.all_weights[int(reverse)]
    found, gates_x, gates_h, before = ours(kind, weights, x, initial, reverse)
    expected = theirs(made, x, initial, reverse)
    torch.testing.assert_close(found, expected)
    torch.manual_seed(1)
    d_outputs = [torch.randn_like(output) for output in expected]
    inputs = [x, *initial]
    d_expected = torch.autograd.grad(expected, [*inputs, *weights], d_outputs)
    d_found = torch.autograd.grad(found, [*inputs, gates_x, gates_h], d_outputs)
    torch.testing.assert_close(d_found[: len(inputs)], d_expected[: len(inputs)])
    d_x, d_h = d_found[-2:]
    by_hand = [
        torch.einsum("rtg,rti->gi", d_x, x),
        torch.einsum("rtg,rth->gh", d_h, before),
        d_x.sum((0, 1)),
        d_h.sum((0, 1)),
    ]
    torch.testing.assert_close(by_hand, list(d_expected[-4:]))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_values(kind: str) -> None:
    torch.manual_seed(0)
    gates = {"lstm": 4, "gru": 3}.get(kind, 1) * UNITS
    _, initial = given(kind, 2, 3)
    w_hh = torch.randn(gates, UNITS, dtype=torch.float64)
    gates_x, gates_h = (
        torch.randn(2, 3, gates, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )

    def run(gates_x: Tensor, gates_h: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        if kind == "gru":
            return (gru(gates_x, gates_h, w_hh, states[0]),)
        if kind == "lstm":
            return lstm(gates_x + gates_h, w_hh, states[0], states[1])[:2]
        return (rnn(gates_x + gates_h, w_hh, states[0], kind[4:]),)

    assert torch.autograd.gradcheck(run, (gates_x, gates_h, *initial))


@pytest.mark.parametrize("reverse", [False, True])
def test_a_projection_shows_the_gradient_of_its_states(reverse: bool) -> None:
    torch.manual_seed(0)
    made = nn.LSTM(INPUTS, UNITS, proj_size=2, bidirectional=True, batch_first=True).double()
    w_ih, w_hh, b_ih, b_hh, w_hr = made.all_weights[int(reverse)]
    x = torch.randn(3, 5, INPUTS, dtype=torch.float64, requires_grad=True)
    h0, c0 = (torch.randn(3, size, dtype=torch.float64, requires_grad=True) for size in (2, UNITS))
    base = torch.zeros((), dtype=torch.float64).expand(3, 5, 2).requires_grad_()
    gates_x = F.linear(x, w_ih, b_ih + b_hh)
    projection = Projection(w_hr.detach(), base)
    states, cell, wide = lstm(gates_x, w_hh, h0, c0, reverse=reverse, projection=projection)
    assert wide is not None
    both, (_, cells) = made(x, (torch.stack([h0, h0]), torch.stack([c0, c0])))
    expected = [both[..., 2:] if reverse else both[..., :2], cells[int(reverse)]]
    torch.testing.assert_close([states, cell], expected)
    d_outputs = [torch.randn_like(output) for output in expected]
    d_expected = torch.autograd.grad(expected, [x, h0, c0, w_hh, w_hr], d_outputs)
    *d_found, d_gates, d_states = torch.autograd.grad(
        [states, cell], [x, h0, c0, gates_x, base], d_outputs
    )
    before = states_before(states, h0, reverse=reverse)
    d_found.append(torch.einsum("rtg,rth->gh", d_gates, before))
    d_found.append(torch.einsum("rtp,rth->ph", d_states, wide))
    torch.testing.assert_close(d_found, list(d_expected))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_meet(kind: str) -> None:
    """A row of NaN leaves the others' values and gradients as they are, to the last bit."""
    made = layer(kind).float()
    found = []
    for spoiled in (0.5, float("nan")):
        x, initial = given(kind, 3, 6)
        x = x.detach().float()
        x[1] = spoiled
        x.requires_grad_()
        states = [state.detach().float() for state in initial]
        outputs, gates_x, gates_h, _ = ours(kind, made.all_weights[0], x, states, reverse=False)
        grads = torch.autograd.grad(outputs[0].sum(), [x, gates_x, gates_h])
        found.append([tensor[[0, 2]] for tensor in (outputs[0], *grads)])
        assert torch.isfinite(outputs[0][1]).all() == (spoiled == 0.5)
    torch.testing.assert_close(found[0], found[1], rtol=0.0, atol=0.0)


def test_a_state_changed_in_place_is_refused_as_autograd_does() -> None:
    made = layer("gru")
    x, initial = given("gru", 2, 3)
    outputs, *_ = ours("gru", made.all_weights[0], x, initial, reverse=False)
    outputs[0].mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(outputs[0].sum(), [x])
