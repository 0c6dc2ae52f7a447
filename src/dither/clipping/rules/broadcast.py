"""Bare parameters: scales, shifts, positional embeddings, class tokens."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from dither.clipping.arithmetic import as_float
from dither.clipping.capture import Call, Capture, Maker, Target
from dither.clipping.forms import Dense, Form
from dither.clipping.layout import Layout, Place, find_layout
from dither.clipping.rules.generic import by_vmap
from dither.clipping.rules.registry import register_expander, register_rule
from dither.clipping.unsupported import UnsupportedError

_T = torch.Tensor
_ADD = (torch.add, _T.add, _T.add_, _T.__add__, _T.__radd__, _T.__iadd__)
_SUBTRACT = (torch.sub, torch.subtract, _T.sub, _T.sub_, _T.__sub__, _T.__isub__)
_SUBTRACT_FROM = (_T.__rsub__, torch.rsub)
_MULTIPLY = (torch.mul, torch.multiply, _T.mul, _T.multiply, _T.__mul__, _T.__rmul__)


@register_rule(*_ADD, *_SUBTRACT, *_SUBTRACT_FROM, *_MULTIPLY)
def elementwise(capture: Capture, call: Call) -> Any:
    """Record y = x + p, x − p, x·p with broadcasting, summed over the axes that p lacks."""
    func = call.function
    in_place = func in {_T.add_, _T.sub_, _T.__iadd__, _T.__isub__}
    if not _two_tensors(call) or (in_place and capture.target(call.args[0])):
        return by_vmap(capture, call)
    left, right = call.args
    output: Tensor = call.run()
    trained = [operand for operand in call.args if capture.target(operand) is not None]
    layout = _layout(output.shape, trained, capture.rows)
    multiplies = func in _MULTIPLY
    makers = [
        _maker(
            capture,
            layout,
            output,
            (left, right),
            multiplies=multiplies,
            negated=func in _SUBTRACT_FROM,
        ),
        _maker(
            capture, layout, output, (right, left), multiplies=multiplies, negated=func in _SUBTRACT
        ),
    ]
    inputs = [left, right] if multiplies else []
    return capture.tap(call, output, layout, makers, inputs=inputs)


def _layout(shape: Sequence[int], trained: Iterable[Tensor], rows: int) -> Layout:
    """Return where the examples are: not along an axis of what is trained."""
    free = list(shape)
    for operand in trained:
        for axis, size in enumerate(reversed(operand.shape), start=1):
            if size != 1:
                free[-axis] = 0
    return find_layout(free, rows)


def _maker(
    capture: Capture,
    layout: Layout,
    output: Tensor,
    operands: tuple[Tensor, Tensor],
    *,
    multiplies: bool,
    negated: bool,
) -> tuple[Target | None, Maker]:
    operand, other = operands
    target = capture.target(operand)
    shape = tuple(output.shape)

    def make(gradient: Tensor) -> Form:
        pulled = gradient
        if multiplies:
            pulled = gradient * layout.by_example(as_float(other.detach()).expand(shape))
        summed = unbroadcast(layout, pulled, shape, operand.shape)
        return Dense(-summed if negated else summed)

    return target, make


def unbroadcast(
    layout: Layout, gradient: Tensor, output: tuple[int, ...], operand: torch.Size
) -> Tensor:
    """Return ``[rows, operand.numel()]``: the gradient summed over axes that were broadcast.

    Args:
        layout: Where the examples are in the output.
        gradient: Of the output, examples first.
        output: The output's shape.
        operand: Shape of what was broadcast to it.

    Raises:
        UnsupportedError: The operand has an axis along the examples.
    """
    sizes = [1] * (len(output) - len(operand)) + list(operand)
    if layout.place is Place.ALONE:
        kept = sizes
    else:
        axis = 1 if layout.place is Place.SECOND else 0
        if sizes[axis] != 1:
            raise UnsupportedError("a parameter with an axis along the examples")
        kept = [size for index, size in enumerate(sizes) if index != axis]
        if layout.place is Place.FOLDED:
            kept = [1, *kept]
    lost = [index + 1 for index, size in enumerate(kept) if size == 1]
    summed = gradient.sum(lost) if lost else gradient
    return summed.reshape(gradient.shape[0], -1)


def _two_tensors(call: Call) -> bool:
    return not call.kwargs and len(call.args) == 2 and all(isinstance(a, Tensor) for a in call.args)


@register_rule(torch.div, torch.true_divide, _T.div, _T.__truediv__, _T.__rtruediv__)
def divide(capture: Capture, call: Call) -> Any:
    """Record x / p as x · (1/p): the reciprocal is made of parameters alone."""
    args = call.args[::-1] if call.function is _T.__rtruediv__ else call.args
    if not _two_tensors(call):
        return by_vmap(capture, call)
    inverse = capture.record(torch.reciprocal, args[1])
    return capture.record(operator.mul, args[0], inverse)


def spread(capture: Capture, call: Call, operand: Any, shape: Sequence[int]) -> Any:
    """Return a copy of what is trainable for each example, recorded; anything else as it is.

    Args:
        capture: Where it is recorded.
        call: What it goes into.
        operand: What may be trainable.
        shape: What it is broadcast to.
    """
    target = capture.target(operand)
    if target is None:
        return operand
    layout = _layout(shape, [operand], capture.rows)
    whole = tuple(shape)

    def make(gradient: Tensor) -> Form:
        return Dense(unbroadcast(layout, gradient, whole, operand.shape))

    return capture.tap(call, operand.expand(whole), layout, [(target, make)])


def _broadcast(operands: Iterable[Tensor]) -> torch.Size:
    shape: torch.Size = torch.broadcast_shapes(*(t.shape for t in operands))  # type: ignore[no-untyped-call]
    return shape


@register_rule(torch.where, _T.where, torch.masked_fill, _T.masked_fill)
def choose(capture: Capture, call: Call) -> Any:
    """Record biases that examples' own masks cut, as T5 does with relative positions."""
    fills = call.function in {torch.masked_fill, _T.masked_fill}
    if call.kwargs or len(call.args) != 3 or (fills and capture.target(call.args[2])):
        return by_vmap(capture, call)
    shape = _broadcast(a for a in call.args if isinstance(a, Tensor))
    return call.function(*(spread(capture, call, a, shape) for a in call.args))


@register_expander(_T.expand, _T.expand_as, torch.broadcast_to, _T.broadcast_to)
def expand_shared(capture: Capture, call: Call) -> Tensor | None:
    """Record a parameter that is repeated once for each example, as class tokens are.

    Returns:
        The output, or None where the function does something else.
    """
    operand = call.args[0]
    output: Tensor = call.run()
    if output.ndim == 0 or output.shape[0] != capture.rows:
        return None
    sizes = [1] * (output.ndim - operand.ndim) + list(operand.shape)
    others = zip(sizes[1:], output.shape[1:], strict=True)
    if sizes[0] != 1 or any(size not in {1, whole} for size, whole in others):
        return None
    # Of a single example everything is its own, also what others would share.
    layout = Layout(Place.FIRST if capture.rows > 1 else Place.ALONE, capture.rows)
    shape = tuple(output.shape)

    def make(gradient: Tensor) -> Form:
        return Dense(unbroadcast(layout, gradient, shape, operand.shape))

    return capture.tap(call, output, layout, [(capture.target(operand), make)])


@register_expander(torch.add, _T.add, _T.__add__, _T.__radd__)
def add_shared(capture: Capture, call: Call) -> Tensor | None:
    """Record a bias added to constants that are there once for each example, as masks may be.

    Returns:
        The output, or None where the function does something else.
    """
    trained = [a for a in call.args if capture.target(a) is not None]
    if not _two_tensors(call) or len(trained) != 1:
        return None
    shape = _broadcast(call.args)
    sizes = [1] * (len(shape) - trained[0].ndim) + list(trained[0].shape)
    if not shape or sizes[0] != 1 or shape[0] == 1 or shape[0] % capture.rows:
        return None
    output: Tensor = call.function(*(spread(capture, call, a, shape) for a in call.args))
    return output


@register_expander(_T.repeat, torch.tile, _T.tile)
def repeat_shared(capture: Capture, call: Call) -> Tensor | None:
    """As `expand_shared`, and for what is laid end to end, once for each example."""
    operand = call.args[0]
    output: Tensor = call.run()
    whole = (capture.rows * operand.shape[0], *operand.shape[1:]) if operand.ndim else ()
    if tuple(output.shape) != whole or (operand.shape[0] == 1 and capture.rows > 1):
        found: Tensor | None = expand_shared(capture, call)
        return found
    layout = Layout(Place.FOLDED if capture.rows > 1 else Place.ALONE, capture.rows)
    makers = [(capture.target(operand), lambda gradient: Dense(gradient.flatten(1)))]
    return capture.tap(call, output, layout, makers)
