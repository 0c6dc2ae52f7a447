"""LSTM, GRU and Elman layers, and their cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dither.clipping.arithmetic import as_float
from dither.clipping.capture import Call, Capture, Maker
from dither.clipping.forms import Dense, Form, over_time
from dither.clipping.layout import Layout, Place, find_layout
from dither.clipping.recurrence import Projection, gru, lstm, rnn, states_before
from dither.clipping.rules.common import over_steps, steps, summed
from dither.clipping.rules.registry import register_rule
from dither.clipping.unsupported import UnsupportedError


@dataclass(frozen=True)
class _Weights:
    """One direction of one layer."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    w_hr: Tensor | None


@dataclass(frozen=True)
class _Run:
    """What every direction of every layer shares.

    Attributes:
        capture: Where uses of parameters are recorded.
        call: What was called.
        layout: Where the examples are in tensors with the batch first.
    """

    capture: Capture
    call: Call
    layout: Layout


@register_rule(torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
def recurrent(capture: Capture, call: Call) -> tuple[Tensor, ...]:
    """Record loops over time: w_hh's gradient is Σ_t b_t h_{t−1}ᵀ, b_t that of the gates."""
    args = call.args
    if call.kwargs or len(args) != 9 or not isinstance(args[3], bool):
        raise UnsupportedError(
            "packed sequences stack examples by length; pass padded ones and a mask"
        )
    x, hx, flat, biases, layers, dropout, training, bidirectional, batch_first = args
    if not batch_first:
        x = x.transpose(0, 1)
    run = _Run(capture, call, find_layout(x.shape[:1], capture.rows))
    initial = [_initial(run, state) for state in (hx if call.function is torch.lstm else [hx])]
    weights = _weights(flat, layers * (2 if bidirectional else 1), biases)
    last: list[tuple[Tensor, ...]] = []
    for layer in range(layers):
        if layer and dropout and training:
            x = F.dropout(x, dropout)
        outputs = []
        for reverse in (False, True) if bidirectional else (False,):
            first = [state[len(last)] for state in initial]
            states, *ends = _direction(run, x, first, next(weights), reverse=reverse)
            outputs.append(states)
            last.append(tuple(ends))
        x = torch.cat(outputs, -1) if bidirectional else outputs[0]
    output = x if batch_first else x.transpose(0, 1)
    return output, *(torch.stack(ends) for ends in zip(*last, strict=True))


def _weights(flat: list[Tensor], count: int, biases: bool) -> Iterator[_Weights]:
    each = len(flat) // count
    for start in range(0, len(flat), each):
        w_ih, w_hh, *others = flat[start : start + each]
        b_ih, b_hh = (others[0], others[1]) if biases else (None, None)
        yield _Weights(w_ih, w_hh, b_ih, b_hh, others[-1] if each in {3, 5} else None)


def _initial(run: _Run, state: Tensor) -> Tensor:
    """Record initial states that are made of parameters, ``[layers, rows, units]``."""
    target = run.capture.target(state)
    if target is None:
        return state
    if state.shape[1] != run.capture.rows:
        raise UnsupportedError("initial states that are parameters, but not one for each example")
    known = state.detach().requires_grad_(torch.is_grad_enabled())

    def make(gradient: Tensor) -> Form:
        own = torch.diag_embed(gradient.permute(1, 2, 0))  # no example touches another's state
        return Dense(own.permute(2, 0, 3, 1).flatten(1))

    layout = Layout(Place.SECOND, run.capture.rows)
    return run.capture.tap(run.call, known, layout, [(target, make)])


def _direction(
    run: _Run, x: Tensor, initial: list[Tensor], weights: _Weights, *, reverse: bool
) -> tuple[Tensor, ...]:
    """Run one direction of one layer: states ``[rows, time, units]``, last state, last cell."""
    is_gru = run.call.function is torch.gru
    bias = weights.b_ih
    if bias is not None and weights.b_hh is not None and not is_gru:
        bias = bias + weights.b_hh
    # Time first in memory, as the loop wants it.
    gates = F.linear(x.transpose(0, 1).contiguous(), weights.w_ih, bias)
    dtype = gates.dtype
    known = as_float(gates.transpose(0, 1))
    if not known.requires_grad:  # only what comes after the input may be trainable
        known = known.detach().requires_grad_(torch.is_grad_enabled())
    h0, *c0 = (state.to(known.dtype) for state in initial)
    w_hh = weights.w_hh.detach().to(known.dtype)
    ends: list[Tensor] = []
    hidden = known
    if run.call.function is torch.lstm:
        projection = _projection(weights, known)
        states, cell, wide = lstm(known, w_hh, h0, c0[0], reverse=reverse, projection=projection)
        ends = [cell.to(dtype)]
        if projection is not None and wide is not None:
            makers = [(run.capture.target(weights.w_hr), _products(run, wide))]
            run.capture.tap(run.call, projection.base, run.layout, makers, inputs=[wide])
    elif is_gru:
        dtype = torch.promote_types(dtype, initial[0].dtype)  # as torch's own under autocast
        hidden = _hidden_gates(weights, known)
        states = gru(known, hidden, w_hh, h0, reverse=reverse)
    else:
        kind = "tanh" if run.call.function is torch.rnn_tanh else "relu"
        states = rnn(known, w_hh, h0, kind, reverse=reverse)
    _tap(run, weights, (known, hidden), (x, states, h0), reverse=reverse)
    return states.to(dtype), states[:, 0 if reverse else -1].to(dtype), *ends


def _tap(
    run: _Run,
    weights: _Weights,
    gates: tuple[Tensor, Tensor],
    states: tuple[Tensor, Tensor, Tensor],
    *,
    reverse: bool,
) -> None:
    """Ask for the gates' gradients, which are one but in a GRU."""
    from_x, from_h = gates
    x, after, h0 = states
    capture = run.capture

    def recurrent_product(gradient: Tensor) -> Form:
        before = states_before(after, h0, reverse=reverse)
        return over_time(steps(gradient), over_steps(run.layout, before), run.capture.room)

    from_input = [
        (capture.target(weights.w_ih), _products(run, x)),
        (capture.target(weights.b_ih), summed),
    ]
    from_state = [
        (capture.target(weights.w_hh), recurrent_product),
        (capture.target(weights.b_hh), summed),
    ]
    if from_h is from_x:
        makers = from_input + from_state
        capture.tap(run.call, from_x, run.layout, makers, inputs=[x, after, h0])
        return
    capture.tap(run.call, from_x, run.layout, from_input, inputs=[x])
    capture.tap(run.call, from_h, run.layout, from_state, inputs=[after, h0])


def _products(run: _Run, right: Tensor) -> Maker:
    return lambda gradient: over_time(
        steps(gradient), over_steps(run.layout, right), run.capture.room
    )


def _projection(weights: _Weights, gates: Tensor) -> Projection | None:
    if weights.w_hr is None:
        return None
    zeros = gates.new_zeros(()).expand(*gates.shape[:2], weights.w_hr.shape[0])
    base = zeros.requires_grad_(torch.is_grad_enabled())
    return Projection(weights.w_hr.detach().to(gates.dtype), base)


def _hidden_gates(weights: _Weights, gates: Tensor) -> Tensor:
    bias = gates.new_zeros(()) if weights.b_hh is None else weights.b_hh.detach().to(gates.dtype)
    return bias.expand(gates.shape).requires_grad_(torch.is_grad_enabled())


@register_rule(torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell)
def one_step(capture: Capture, call: Call) -> Tensor | tuple[Tensor, Tensor]:
    """Say one step again with linear layers."""
    given = call.named("input hx w_ih w_hh b_ih b_hh")
    found: Tensor | tuple[Tensor, Tensor] = capture.record(_STEPS[call.function], given)
    return found


def _cell_gates(given: dict[str, Any], hidden: Tensor) -> tuple[Tensor, Tensor]:
    return (
        F.linear(given["input"], given["w_ih"], given["b_ih"]),
        F.linear(hidden, given["w_hh"], given["b_hh"]),
    )


def _lstm_step(given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    hidden, cell = given["hx"]
    from_x, from_h = _cell_gates(given, hidden)
    i, f, g, o = (from_x + from_h).chunk(4, 1)
    cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


def _gru_step(given: dict[str, Any]) -> Tensor:
    from_x, from_h = _cell_gates(given, given["hx"])
    (x_r, x_z, x_n), (h_r, h_z, h_n) = from_x.chunk(3, 1), from_h.chunk(3, 1)
    new = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    output: Tensor = new + torch.sigmoid(x_z + h_z) * (given["hx"] - new)
    return output


def _tanh_step(given: dict[str, Any]) -> Tensor:
    from_x, from_h = _cell_gates(given, given["hx"])
    return torch.tanh(from_x + from_h)


def _relu_step(given: dict[str, Any]) -> Tensor:
    from_x, from_h = _cell_gates(given, given["hx"])
    return torch.relu(from_x + from_h)


_STEPS: dict[Callable[..., Any], Callable[[dict[str, Any]], Any]] = {
    torch.lstm_cell: _lstm_step,
    torch.gru_cell: _gru_step,
    torch.rnn_tanh_cell: _tanh_step,
    torch.rnn_relu_cell: _relu_step,
}
