"""Normalisation within an example: its scale and shift."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dither.clipping.arithmetic import as_float
from dither.clipping.capture import Call, Capture
from dither.clipping.forms import Dense, Form
from dither.clipping.layout import Layout, Place, find_layout
from dither.clipping.rules.generic import by_vmap
from dither.clipping.rules.registry import register_guard, register_rule
from dither.errors import ModelError


@register_rule(F.layer_norm)
def layer_norm(capture: Capture, call: Call) -> Tensor:
    """The gradient of the scale is Σ_t b_t ⊙ x̂_t, that of the shift is Σ_t b_t."""
    given = call.bound()
    shape, eps = given["normalized_shape"], given["eps"]
    normalise = lambda x: F.layer_norm(x, shape, eps=eps)  # noqa: E731
    return _trailing(capture, call, given, normalise)


@register_rule(F.rms_norm, torch.rms_norm)
def rms_norm(capture: Capture, call: Call) -> Tensor:
    """As `layer_norm`, without shift."""
    given = call.named("input normalized_shape weight eps bias")
    shape, eps = given["normalized_shape"], given["eps"]
    normalise = lambda x: F.rms_norm(x, shape, eps=eps)  # noqa: E731
    return _trailing(capture, call, given, normalise)


def _trailing(
    capture: Capture,
    call: Call,
    given: dict[str, Any],
    normalise: Callable[[Tensor], Tensor],
) -> Tensor:
    x, shape = given["input"], given["normalized_shape"]
    if capture.target(x) is not None or x.ndim == len(shape):
        return by_vmap(capture, call)
    output: Tensor = call.run()
    layout = find_layout(output.shape[: -len(shape)], capture.rows)

    def scale(gradient: Tensor) -> Form:
        return _time_sum(gradient * layout.by_example(normalise(as_float(x))), len(shape))

    makers = [
        (capture.target(given["weight"]), scale),
        (capture.target(given["bias"]), lambda b: _time_sum(b, len(shape))),
    ]
    return capture.tap(call, output, layout, makers, inputs=[x])


def _time_sum(gradient: Tensor, features: int) -> Form:
    flat = gradient.flatten(-features) if features > 1 else gradient
    return Dense(flat if flat.ndim == 2 else flat.flatten(1, -2).sum(1))


@register_rule(F.group_norm)
def group_norm(capture: Capture, call: Call) -> Tensor:
    """Statistics come with the output; Σ_s b_s x̂_s = (Σ_s b_s x_s − μ Σ_s b_s) / σ."""
    given = call.bound()
    x, groups = given["input"], given["num_groups"]
    weight, bias = given["weight"], given["bias"]
    if capture.target(x) is not None:
        return by_vmap(capture, call)
    layout = find_layout(x.shape[:1], capture.rows)
    by_library = weight is not None and bias is not None and x.ndim > 2 and x.is_contiguous()
    if not by_library or layout.place is not Place.FIRST or x.dtype != weight.dtype:
        return _channels(capture, call, given, lambda t: F.group_norm(t, groups, eps=given["eps"]))
    space = x[0, 0].numel()
    output, mean, scale = torch.native_group_norm(
        x, weight, bias, x.shape[0], x.shape[1], space, groups, given["eps"]
    )

    def weight_form(gradient: Tensor) -> Form:
        flat = gradient.flatten(2)
        products = torch.linalg.vecdot(flat, as_float(x).flatten(2))
        shape = (flat.shape[0], groups, -1)
        centred = products.view(shape) - mean[..., None] * flat.sum(2).view(shape)
        return Dense((centred * scale[..., None]).flatten(1))

    makers = [
        (capture.target(weight), weight_form),
        (capture.target(bias), lambda b: Dense(b.flatten(2).sum(2))),
    ]
    return capture.tap(call, output, layout, makers, inputs=[x])


@register_rule(F.instance_norm)
def instance_norm(capture: Capture, call: Call) -> Tensor:
    """As `group_norm`, one group a channel; running statistics are refused."""
    given = call.bound()
    plain = {**given, "weight": None, "bias": None}
    return _channels(capture, call, given, lambda x: F.instance_norm(**{**plain, "input": x}))


@register_rule(F.batch_norm)
def batch_norm(capture: Capture, call: Call) -> Tensor:
    """Allowed with fixed statistics, when it is no more than a scale and a shift."""
    given = call.bound()
    mean, variance, eps = given["running_mean"], given["running_var"], given["eps"]
    return _channels(
        capture,
        call,
        given,
        lambda x: F.batch_norm(x, mean, variance, training=False, eps=eps),
    )


def _channels(
    capture: Capture,
    call: Call,
    given: dict[str, Any],
    normalise: Callable[[Tensor], Tensor],
) -> Tensor:
    """Record a normalisation whose features are on axis 1."""
    x = given["input"]
    if capture.target(x) is not None:
        return by_vmap(capture, call)
    output: Tensor = call.run()
    layout = find_layout(output.shape[:1], capture.rows)

    def scale(gradient: Tensor) -> Form:
        return _channel_sum(layout, gradient * layout.by_example(normalise(as_float(x))))

    makers = [
        (capture.target(given["weight"]), scale),
        (capture.target(given["bias"]), lambda b: _channel_sum(layout, b)),
    ]
    return capture.tap(call, output, layout, makers, inputs=[x])


def _channel_sum(layout: Layout, gradient: Tensor) -> Form:
    channel = 1 if layout.place is Place.FIRST else 2
    last = gradient.movedim(channel, -1)
    return Dense(last if last.ndim == 2 else last.flatten(1, -2).sum(1))


@register_guard(F.batch_norm)
def no_batch_statistics(call: Call) -> None:
    """Refuse normalisation over the batch, with or without parameters of its own."""
    given = call.bound()
    if given["training"] or given["running_mean"] is None:
        raise ModelError(
            expected="layers that treat every example by itself",
            got="batch_norm in training mode, which normalises over the batch",
            fix="use nn.GroupNorm, or put a pre-trained one in eval() mode",
        )


@register_guard(F.instance_norm)
def no_running_statistics(call: Call) -> None:
    """Refuse statistics that records update."""
    given = call.bound()
    if given["use_input_stats"] and given["running_mean"] is not None:
        raise ModelError(
            expected="no buffers that records update",
            got="instance_norm with running statistics",
            fix="set track_running_stats=False",
        )
