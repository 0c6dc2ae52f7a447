"""Linear layers and matrix products with a parameter (Goodfellow 1510.01799; Bu 2210.00038)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dither.clipping.capture import Call, Capture, Maker, Target
from dither.clipping.forms import Form, over_time
from dither.clipping.layout import Layout, find_layout
from dither.clipping.rules.common import over_steps, steps, summed
from dither.clipping.rules.generic import by_vmap
from dither.clipping.rules.registry import register_expander, register_rule

_MATMUL = (
    torch.matmul,
    torch.mm,
    torch.Tensor.matmul,
    torch.Tensor.mm,
    torch.Tensor.__matmul__,
)


@register_rule(F.linear)
def linear(capture: Capture, call: Call) -> Tensor:
    """Record y = x Wᵀ + β: the gradient of W is Σ_t b_t x_tᵀ, that of β is Σ_t b_t."""
    given = call.named("input weight bias")
    x, weight, bias = given["input"], given["weight"], given["bias"]
    if capture.target(x) is not None or weight.ndim != 2:
        return by_vmap(capture, call)
    output: Tensor = call.function(x, weight, bias)
    layout = find_layout(output.shape[:-1], capture.rows)
    makers = [
        (capture.target(weight), lambda b: _product(capture, layout, b, x)),
        (capture.target(bias), summed),
    ]
    return capture.tap(call, output, layout, makers, inputs=[x])


@register_expander(F.linear)
def constant_inputs(capture: Capture, call: Call) -> Tensor | None:
    """Record a layer on the same constants for each example, as initial states often are."""
    repeated = repeats_constants(capture, call.named("input weight bias")["input"])
    return linear(capture, call) if repeated else None


def repeats_constants(capture: Capture, x: Tensor) -> bool:
    """Return whether an input that no example touched is there once for each of them."""
    if capture.target(x) is not None or x.ndim < 2:
        return False
    return x.shape[0] == capture.rows and capture.rows > 1


@register_rule(*_MATMUL)
def matmul(capture: Capture, call: Call) -> Tensor:
    """Record y = x W; a transposed parameter is treated as a linear layer's."""
    args = call.args
    if call.kwargs or len(args) != 2 or capture.target(args[0]) or args[1].ndim != 2:
        return by_vmap(capture, call)
    return _tap_product(capture, call, args[0], args[1], None)


@register_rule(torch.addmm, torch.Tensor.addmm)
def addmm(capture: Capture, call: Call) -> Tensor:
    """Record y = β + x W, as GPT-2's Conv1D has it."""
    args = call.args
    if call.kwargs or len(args) != 3 or capture.target(args[1]) or args[0].ndim != 1:
        return by_vmap(capture, call)
    return _tap_product(capture, call, args[1], args[2], args[0])


def _tap_product(
    capture: Capture,
    call: Call,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    output: Tensor = call.run()
    layout = find_layout(output.shape[:-1], capture.rows)
    target = capture.target(weight)
    if target is not None and target.transposed is not None:
        turned = Target(target.tensor, (target.transposed,), True)
        makers: list[tuple[Target | None, Maker]] = [
            (turned, lambda b: _product(capture, layout, b, x))
        ]
    else:
        makers = [(target, lambda b: over_time(over_steps(layout, x), steps(b), capture.room))]
    if bias is not None:
        makers.append((capture.target(bias), summed))
    return capture.tap(call, output, layout, makers, inputs=[x])


def _product(capture: Capture, layout: Layout, gradient: Tensor, x: Tensor) -> Form:
    return over_time(steps(gradient), over_steps(layout, x), capture.room)
