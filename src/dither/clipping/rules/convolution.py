"""Convolutions, plain and transposed, in one to three dimensions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dither.clipping.arithmetic import as_float
from dither.clipping.capture import Call, Capture
from dither.clipping.forms import Dense, Form
from dither.clipping.layout import Layout, Place, find_layout
from dither.clipping.rules.generic import by_vmap
from dither.clipping.rules.registry import register_rule
from dither.clipping.unsupported import UnsupportedError

_PLAIN = (torch.conv1d, torch.conv2d, torch.conv3d)
_TURNED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)


@dataclass(frozen=True)
class _Geometry:
    shape: tuple[int, ...]  # of the weight
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int


@register_rule(*_PLAIN)
def convolution(capture: Capture, call: Call) -> Tensor:
    """One grouped convolution gives all per-example weight gradients.

    With examples side by side as groups, the library's own backward by weights returns one
    gradient a group (Rochette et al. 1912.06015), at about the cost of the plain one.
    """
    given = call.named("input weight bias stride padding dilation groups")
    x, weight, bias = given["input"], given["weight"], given["bias"]
    dims = weight.ndim - 2
    if capture.target(x) is not None or x.ndim != weight.ndim:
        return by_vmap(capture, call)
    stride, dilation = _tuple(given["stride"], dims, 1), _tuple(given["dilation"], dims, 1)
    padding = given["padding"]
    if isinstance(padding, str):
        x, padding = _padded(x, weight, dilation, padding)
    geometry = _Geometry(
        shape=tuple(weight.shape),
        stride=stride,
        padding=_tuple(padding, dims, 0),
        dilation=dilation,
        transposed=False,
        output_padding=[0] * dims,
        groups=given["groups"] or 1,
    )
    output: Tensor = call.function(
        x, weight, bias, stride, geometry.padding, dilation, geometry.groups
    )
    return _tap(capture, call, output, {**given, "input": x}, geometry)


@register_rule(*_TURNED)
def transposed_convolution(capture: Capture, call: Call) -> Tensor:
    """As `convolution`, for transposed ones."""
    given = call.named("input weight bias stride padding output_padding groups dilation")
    x, weight = given["input"], given["weight"]
    dims = weight.ndim - 2
    if capture.target(x) is not None or x.ndim != weight.ndim:
        return by_vmap(capture, call)
    geometry = _Geometry(
        shape=tuple(weight.shape),
        stride=_tuple(given["stride"], dims, 1),
        padding=_tuple(given["padding"], dims, 0),
        dilation=_tuple(given["dilation"], dims, 1),
        transposed=True,
        output_padding=_tuple(given["output_padding"], dims, 0),
        groups=given["groups"] or 1,
    )
    output: Tensor = call.run()
    return _tap(capture, call, output, {**given, "input": x}, geometry)


def _tap(
    capture: Capture,
    call: Call,
    output: Tensor,
    given: dict[str, Any],
    geometry: _Geometry,
) -> Tensor:
    x, weight, bias = given["input"], given["weight"], given["bias"]
    layout = find_layout(output.shape[:1], capture.rows)
    if layout.place is Place.SECOND:
        raise UnsupportedError("a convolution whose second axis counts the examples")
    makers = [
        (capture.target(weight), lambda b: _weight(layout, b, x, geometry)),
        (capture.target(bias), lambda b: Dense(_channels_last(b, geometry).sum(1))),
    ]
    return capture.tap(call, output, layout, makers, inputs=[x])


def _weight(layout: Layout, gradient: Tensor, x: Tensor, geometry: _Geometry) -> Form:
    data = as_float(layout.by_example(x.detach()))
    if layout.place is not Place.FIRST:  # several images an example: their gradients add up
        parts = zip(data.unbind(1), gradient.unbind(1), strict=True)
        return Dense(sum(_grouped(image, b, geometry) for image, b in parts))  # type: ignore[arg-type]
    if _is_pointwise(geometry):
        product = torch.bmm(gradient.flatten(2), data.flatten(2).transpose(1, 2))
        return Dense(product.flatten(1))
    return Dense(_grouped(data, gradient, geometry))


def _grouped(data: Tensor, gradient: Tensor, geometry: _Geometry) -> Tensor:
    """Return weight gradients ``[rows, size]``: examples are groups of one image."""
    rows = data.shape[0]
    if rows == 0:
        return data.new_zeros(0, torch.Size(geometry.shape).numel())
    shape = (rows * geometry.shape[0], *geometry.shape[1:])
    spread = data.new_empty(1).expand(shape)  # only its shape is read
    _, found, _ = torch.ops.aten.convolution_backward(
        gradient.reshape(1, -1, *gradient.shape[2:]),
        data.reshape(1, -1, *data.shape[2:]),
        spread,
        None,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        geometry.transposed,
        geometry.output_padding,
        rows * geometry.groups,
        [False, True, False],
    )
    weights: Tensor = found
    return weights.reshape(rows, -1)


def _is_pointwise(geometry: _Geometry) -> bool:
    plain = replace(geometry, shape=(), transposed=False)
    ones = [1] * len(geometry.stride)
    zeros = [0] * len(geometry.stride)
    return (
        set(geometry.shape[2:]) == {1}
        and not geometry.transposed
        and plain == _Geometry((), ones, zeros, geometry.dilation, False, zeros, 1)
    )


def _channels_last(gradient: Tensor, geometry: _Geometry) -> Tensor:
    """Return ``[rows, everything else, channels]``."""
    channel = gradient.ndim - len(geometry.stride) - 1
    return gradient.movedim(channel, -1).flatten(1, -2)


def _tuple(value: Any, dims: int, default: int) -> list[int]:
    if value is None:
        return [default] * dims
    if isinstance(value, int):
        return [value] * dims
    listed = list(value)
    return listed * dims if len(listed) == 1 else listed


def _padded(x: Tensor, weight: Tensor, dilation: list[int], padding: str) -> tuple[Tensor, int]:
    """Return the input padded by hand where padding is named."""
    if padding == "valid":
        return x, 0
    sides: list[int] = []
    for size, spread in zip(reversed(weight.shape[2:]), reversed(dilation), strict=True):
        both = spread * (size - 1)
        sides += [both // 2, both - both // 2]
    return F.pad(x, sides), 0
