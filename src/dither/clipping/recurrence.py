"""Recurrent layers as loops over time whose gate gradients can be seen.

`torch.lstm` and its siblings sum the gradient of the recurrent weight over the batch inside one
kernel. Here the gradient that reaches the gates of each time step comes out instead, and the
weights get none: the engine forms their per-example gradients from the gates' gradients and the
states before each step (`states_before`).

With s the logistic function, * the product by element, and PyTorch's order of gates:

    LSTM (i, f, g, o):  c' = f * c + i * g,  h' = o * tanh(c')
    GRU  (r, z, n):     n = tanh(x_n + r * h_n),  h' = n + z * (h - n)
    RNN:                h' = tanh(x + h_x) or relu(x + h_x)

Buffers are laid out time first, so that each step works on one piece of memory. The factors of the
gates' gradients that need no gradient yet are formed for several steps at once, which leaves the
loop backwards two to five calls a step. Every example is a row, and no row meets another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from dither.clipping.products import adder

_BLOCK_ELEMENTS = 1 << 18  # of gates formed at a time: 1 MiB of float32 stays in the cache

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_threshold_backward = torch.ops.aten.threshold_backward.grad_input


@dataclass(frozen=True)
class Projection:
    """What turns an LSTM's wide outputs into its states (Sak et al. 1402.1128).

    Attributes:
        weight: `w_hr`, which gets no gradient.
        base: What the projected states start from, zeros expanded: its gradient is that of the
            states, which meets the weight.
    """

    weight: Float[Tensor, "states units"]
    base: Float[Tensor, "rows time states"]


def lstm(
    gates_x: Float[Tensor, "rows time gates"],
    w_hh: Float[Tensor, "gates states"],
    h0: Float[Tensor, "rows states"],
    c0: Float[Tensor, "rows units"],
    *,
    reverse: bool = False,
    projection: Projection | None = None,
) -> tuple[
    Float[Tensor, "rows time states"],
    Float[Tensor, "rows units"],
    Float[Tensor, "rows time units"] | None,
]:
    """Run one direction of one LSTM layer.

    Args:
        gates_x: Inputs times `w_ih` plus both biases. Its gradient is that of the gates.
        w_hh: Recurrent weight; it gets no gradient.
        h0: State before the first step.
        c0: Cell before the first step.
        reverse: Whether to run from the last time to the first.
        projection: Makes states smaller than cells.

    Returns:
        The state at each time, the cell after the last step, and what was projected at each time
        (without gradient; None without a projection).
    """
    w_hr, base = (projection.weight, projection.base) if projection else (None, None)
    first = None if base is None else base.transpose(0, 1)
    states, cell, *wide = _apply(_Lstm, gates_x.transpose(0, 1), first, w_hh, w_hr, h0, c0, reverse)
    return states.transpose(0, 1), cell, wide[0].transpose(0, 1) if wide else None


def gru(
    gates_x: Float[Tensor, "rows time gates"],
    gates_h: Float[Tensor, "rows time gates"],
    w_hh: Float[Tensor, "gates units"],
    h0: Float[Tensor, "rows units"],
    *,
    reverse: bool = False,
) -> Float[Tensor, "rows time units"]:
    """Run one direction of one GRU layer.

    Args:
        gates_x: Inputs times `w_ih` plus the input's bias.
        gates_h: What the hidden part of the gates starts from: the hidden bias, expanded (it
            takes no memory). A tensor of its own, because in the gate n its gradient differs
            from that of `gates_x`; this is the gradient that meets `w_hh`.
        w_hh: Recurrent weight; it gets no gradient.
        h0: State before the first step.
        reverse: Whether to run from the last time to the first.

    Returns:
        The state at each time.
    """
    arguments = gates_x.transpose(0, 1), gates_h.transpose(0, 1), w_hh, h0, reverse
    (states,) = _apply(_Gru, *arguments)
    return states.transpose(0, 1)


def rnn(
    gates_x: Float[Tensor, "rows time units"],
    w_hh: Float[Tensor, "units units"],
    h0: Float[Tensor, "rows units"],
    nonlinearity: str = "tanh",
    *,
    reverse: bool = False,
) -> Float[Tensor, "rows time units"]:
    """Run one direction of one Elman layer.

    Args:
        gates_x: Inputs times `w_ih` plus both biases.
        w_hh: Recurrent weight; it gets no gradient.
        h0: State before the first step.
        nonlinearity: `tanh` or `relu`.
        reverse: Whether to run from the last time to the first.

    Returns:
        The state at each time.
    """
    relu = {"tanh": False, "relu": True}[nonlinearity]
    (states,) = _apply(_Rnn, gates_x.transpose(0, 1), w_hh, h0, relu, reverse)
    return states.transpose(0, 1)


def states_before(
    states: Float[Tensor, "rows time units"],
    h0: Float[Tensor, "rows units"],
    *,
    reverse: bool = False,
) -> Float[Tensor, "rows time units"]:
    """Give the state before each time step: what met the recurrent weight there.

    Args:
        states: State after each step.
        h0: State before the first step.
        reverse: Whether the layer ran from the last time to the first.

    Returns:
        A detached tensor of its own.
    """
    first = h0.detach().unsqueeze(1)
    states = states.detach()
    parts = [states[:, 1:], first] if reverse else [first, states[:, :-1]]
    return torch.cat(parts, 1)


def _order(steps: int, reverse: bool) -> range:
    return range(steps - 1, -1, -1) if reverse else range(steps)


def _blocks(buffer: Tensor) -> list[slice]:
    """Cut the time of a buffer [time, rows, gates] into pieces that stay in the cache."""
    length = max(1, _BLOCK_ELEMENTS // max(1, buffer.shape[1:].numel()))
    return [slice(start, start + length) for start in range(0, len(buffer), length)]


def _before(states: Tensor, first: Tensor, reverse: bool) -> Tensor:
    """Give the state before each time, of states laid out time first."""
    first = first.unsqueeze(0)
    return torch.cat([states[1:], first] if reverse else [first, states[:-1]])


def _backwards(d_states: Tensor, reverse: bool) -> tuple[Tensor, list[tuple[int, Tensor]]]:
    """Give the last step's gradient, and each step's time with the gradient that joins after it."""
    order = _order(len(d_states), not reverse)
    grads = d_states.unbind(0)
    joining = [grads[t] for t in order]
    zeros = d_states.new_zeros(d_states.shape[1:])
    return joining[0].clone(), list(zip(order, [*joining[1:], zeros], strict=True))


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> tuple[Tensor, ...]:
    found = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return found if isinstance(found, tuple) else (found,)


def _tanh(given: Tensor, out: Tensor) -> Tensor:
    """Take the hyperbolic tangent as 2·s(2x) − 1.

    A third of torch.tanh's time, for an absolute error of two units of rounding.
    """
    return torch.mul(given, 2.0, out=out).sigmoid_().mul_(2.0).sub_(1.0)


class _Lstm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, ...]:
        gates_x, base, w_hh, w_hr, h0, c0, reverse = given
        (steps, rows), units = gates_x.shape[:2], c0.shape[1]
        into = gates_x.new_empty(steps, rows, 2 * units)
        kept = [gates_x.new_empty(steps, rows, units) for _ in range(4)]
        wide = gates_x.new_empty(steps, rows, units)
        narrow = (
            None if base is None else torch.empty_like(base, memory_format=torch.contiguous_format)
        )
        news, opens, cells, squashed, outs = (buffer.unbind(0) for buffer in (*kept, wide))
        i, f = (part.unbind(0) for part in into.chunk(2, 2))
        intos, xs, product = into.unbind(0), gates_x.unbind(0), adder(w_hh)
        sizes = [2 * units, units, units]
        h, c = h0, c0
        for t in _order(steps, reverse):
            gates = torch.split_with_sizes(product(xs[t], h), sizes, 1)
            torch.sigmoid(gates[0], out=intos[t])
            torch.sigmoid(gates[2], out=opens[t])
            c = torch.mul(f[t], c, out=cells[t]).addcmul_(i[t], _tanh(gates[1], news[t]))
            h = torch.mul(opens[t], _tanh(c, squashed[t]), out=outs[t])
            if narrow is not None:
                h = torch.addmm(base[t], h, w_hr.t(), out=narrow[t])
        ctx.save_for_backward(into, *kept, w_hh, w_hr, c0)
        ctx.reverse = reverse
        if narrow is None:
            return wide, c.clone()
        ctx.mark_non_differentiable(wide)
        return narrow, c.clone(), wide

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_states: Tensor, d_cell: Tensor, *_: Tensor) -> tuple[Any, ...]:
        into, *kept, w_hh, w_hr, c0 = ctx.saved_tensors
        d_gates, through = _lstm_factors(into, kept, c0, ctx.reverse)
        units = c0.shape[1]
        by_cell = d_gates.view(*d_gates.shape[:2], 4, units)[:, :, :3].unbind(0)
        by_state = d_gates[..., 3 * units :].unbind(0)
        whole, into_cell = d_gates.unbind(0), through.unbind(0)
        forget = into[..., units:].unbind(0)
        d_base = None if w_hr is None else torch.empty_like(d_states)
        dc, product = d_cell.clone(), adder(w_hh.t().contiguous())
        spread = dc.unsqueeze(1)
        dh, steps = _backwards(d_states, ctx.reverse)
        for t, joining in steps:
            dm = dh if d_base is None else torch.mm(d_base[t].copy_(dh), w_hr)
            dc.addcmul_(dm, into_cell[t])
            by_state[t].mul_(dm)
            by_cell[t].mul_(spread)
            dc.mul_(forget[t])
            dh = product(joining, whole[t])
        return d_gates, d_base, None, None, dh, dc, None


def _lstm_factors(
    into: Tensor, kept: list[Tensor], c0: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Give what turns d h' (o) and d c' (i, f, g) into the gates' gradients, and d h' into d c'."""
    new, opened, cells, squashed = kept
    before = _before(cells, c0, reverse)
    factors = into.new_empty(*into.shape[:2], 4 * c0.shape[1])
    through = torch.empty_like(cells)
    for block in _blocks(factors):
        i, f = into[block].chunk(2, 2)
        to_i, to_f, to_g, to_o = factors[block].chunk(4, 2)
        g, o = new[block], opened[block]
        _sigmoid_backward(g, i, grad_input=to_i)
        _sigmoid_backward(before[block], f, grad_input=to_f)
        _tanh_backward(i, g, grad_input=to_g)
        _sigmoid_backward(squashed[block], o, grad_input=to_o)
        _tanh_backward(o, squashed[block], grad_input=through[block])
    return factors, through


class _Gru(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        gates_x, gates_h, w_hh, h0, reverse = given
        units = h0.shape[1]
        sizes = [2 * units, units]
        into = gates_x.new_empty(*gates_x.shape[:2], 2 * units)
        kept = [gates_x.new_empty(*gates_x.shape[:2], units) for _ in range(3)]
        intos, (hiddens, news, states) = into.unbind(0), (buffer.unbind(0) for buffer in kept)
        r, z = (part.unbind(0) for part in into.chunk(2, 2))
        x_into, x_new = (part.unbind(0) for part in torch.split_with_sizes(gates_x, sizes, 2))
        base, product = gates_h.unbind(0), adder(w_hh)
        h = h0
        for t in _order(len(base), reverse):
            to_into, to_new = torch.split_with_sizes(product(base[t], h), sizes, 1)
            torch.add(to_into, x_into[t], out=intos[t]).sigmoid_()
            new = torch.addcmul(x_new[t], r[t], hiddens[t].copy_(to_new), out=news[t])
            h = torch.lerp(_tanh(new, new), h, z[t], out=states[t])
        ctx.save_for_backward(into, *kept, w_hh, h0)
        ctx.reverse = reverse
        return kept[2]  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_states: Tensor) -> tuple[Tensor | None, ...]:
        into, hiddens, news, states, w_hh, h0 = ctx.saved_tensors
        units = h0.shape[1]
        d_gates = _gru_factors(into, hiddens, news, _before(states, h0, ctx.reverse))
        hidden = d_gates[..., : 3 * units]
        whole, by_hidden = d_gates.view(*d_gates.shape[:2], 4, units).unbind(0), hidden.unbind(0)
        keep = into[..., units:].unbind(0)
        product = adder(torch.cat([w_hh[2 * units :], w_hh[: 2 * units]]).t().contiguous())
        dh, steps = _backwards(d_states, ctx.reverse)
        for t, joining in steps:
            whole[t].mul_(dh.unsqueeze(1))
            dh = product(torch.addcmul(joining, dh, keep[t]), by_hidden[t])
        in_order = torch.cat([hidden[..., units:], hidden[..., :units]], 2)
        return d_gates[..., units:], in_order, None, dh, None


def _gru_factors(into: Tensor, hiddens: Tensor, news: Tensor, before: Tensor) -> Tensor:
    """Give what turns d h' into the gradients of n's hidden part, r, z and n, in this order.

    So the last three are the input's part in PyTorch's order, and the first three the hidden one.
    """
    units = news.shape[2]
    factors = into.new_empty(*into.shape[:2], 4 * units)
    for block in _blocks(factors):
        r, z = into[block].chunk(2, 2)
        to_hidden, to_r, to_z, to_n = factors[block].chunk(4, 2)
        _tanh_backward(1 - z, news[block], grad_input=to_n)
        torch.mul(to_n, r, out=to_hidden)
        _sigmoid_backward(hiddens[block] * to_n, r, grad_input=to_r)
        _sigmoid_backward(before[block] - news[block], z, grad_input=to_z)
    return factors


class _Rnn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        gates_x, w_hh, h0, relu, reverse = given
        states = gates_x.new_empty(gates_x.shape)
        hs, xs, product = states.unbind(0), gates_x.unbind(0), adder(w_hh)
        h = h0
        for t in _order(len(xs), reverse):
            summed = product(xs[t], h)
            h = torch.clamp(summed, min=0.0, out=hs[t]) if relu else _tanh(summed, hs[t])
        ctx.save_for_backward(states, w_hh)
        ctx.relu, ctx.reverse = relu, reverse
        return states  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_states: Tensor) -> tuple[Tensor | None, ...]:
        states, w_hh = ctx.saved_tensors
        d_gates = torch.empty_like(states)
        hs, ds, product = states.unbind(0), d_gates.unbind(0), adder(w_hh.t().contiguous())
        dh, steps = _backwards(d_states, ctx.reverse)
        for t, joining in steps:
            if ctx.relu:
                _threshold_backward(dh, hs[t], 0, grad_input=ds[t])
            else:
                _tanh_backward(dh, hs[t], grad_input=ds[t])
            dh = product(joining, ds[t])
        return d_gates, None, dh, None, None
