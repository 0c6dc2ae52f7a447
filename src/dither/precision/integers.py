"""Exact sums of products of small whole numbers, on 8-bit kernels or in floating point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import functional as F

from dither.precision.capability import processor

_WHOLE = 1 << 24  # float32 holds every whole number up to here
_SQUARE = 127 * 127
_LONGEST = (1 << 31) // (255 * 127)  # products that 32 bits hold, activations without a sign
_SIGN = -128  # as int8: flips the highest bit, which adds 128 and drops the sign
_ZERO = 128  # what stands for zero then: oneDNN's convolutions take activations without a sign


@dataclass(frozen=True)
class Convolution:
    """How a convolution goes over places; one number for each of its one to three axes.

    Attributes:
        stride: Step between outputs.
        padding: Zeros on either side.
        dilation: Step between the places of the kernel.
        groups: Groups of channels that do not meet.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def turned(self, weight: Tensor) -> Convolution | None:
        """Return the convolution that gives the gradient of this one's input, None if none does.

        It goes over the output's gradient with the kernel turned round; without strides and groups.
        """
        reach = [d * (k - 1) for d, k in zip(self.dilation, weight.shape[2:], strict=True)]
        around = tuple(r - p for r, p in zip(reach, self.padding, strict=True))
        plain = self.groups == 1 and all(s == 1 for s in self.stride)
        return replace(self, padding=around) if plain and all(a >= 0 for a in around) else None


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """Return ``x · weightᵀ`` of int8 codes in float32, added up without rounding.

    Args:
        x: ``[*rows, inputs]``.
        weight: ``[outputs, inputs]``, of any strides.
    """
    if multiplies(x, weight):
        flat = torch._int_mm(x.reshape(-1, x.shape[-1]), weight.t())  # noqa: SLF001
        return flat.float().view(*x.shape[:-1], weight.shape[0])
    wide = _type_for(x.shape[-1], x)
    return F.linear(x.to(wide), weight.to(wide)).float()


def multiplies(x: Tensor, weight: Tensor) -> bool:
    """Return whether an 8-bit kernel takes this product."""
    if not _plain(x, weight) or not x.ndim or not x.numel() or not weight.numel():
        return False
    rows, inputs, outputs = x.numel() // x.shape[-1], x.shape[-1], weight.shape[0]
    if inputs > _LONGEST:
        return False
    if x.device.type == "cuda":  # what its library asks for
        fits = rows > 16 and inputs % 8 == 0 and outputs % 8 == 0
        return fits and processor("cuda").int8
    return processor().int8 and _matrices_agree()


def convolve(x: Tensor, weight: Tensor, how: Convolution) -> Tensor:
    """Return a convolution of int8 codes in float32, added up without rounding.

    The kernel adds activations without their sign and puts that right in float32: from 519 products
    on, the first that may pass 2²⁴, sums are within two of its roundings.
    """
    if convolves(x, weight):
        return _convolve(x, weight, how)
    wide = _type_for(weight[0].numel(), x)
    return forward(x.to(wide), weight.to(wide), how).float()


def convolve_back(
    gradient: Tensor, weight: Tensor, how: Convolution, shape: Sequence[int]
) -> Tensor:
    """Return the gradient of a convolution's input, of int8 codes, as `convolve` does."""
    turned = how.turned(weight)
    if turned is not None and convolves(gradient, weight):
        places = tuple(range(2, weight.ndim))
        return _convolve(gradient, weight.flip(places).transpose(0, 1).contiguous(), turned)
    wide = _type_for(weight.shape[0] // how.groups * weight[0, 0].numel(), gradient)
    return back(gradient.to(wide), weight.to(wide), how, shape).float()


def forward(x: Tensor, weight: Tensor, how: Convolution) -> Tensor:
    """Return a convolution in the operands' own type."""
    none = [0] * len(how.stride)
    found: Tensor = torch.ops.aten.convolution(
        x, weight, None, how.stride, how.padding, how.dilation, False, none, how.groups
    )
    return found


def back(gradient: Tensor, weight: Tensor, how: Convolution, shape: Sequence[int]) -> Tensor:
    """Return the gradient of a convolution's input, of which only the shape counts."""
    found = torch.ops.aten.convolution_backward(
        gradient,
        gradient.new_empty(1).expand(shape),
        weight,
        None,
        how.stride,
        how.padding,
        how.dilation,
        False,
        [0] * len(how.stride),
        how.groups,
        [True, False, False],
    )
    result: Tensor = found[0]
    return result


def convolves(x: Tensor, weight: Tensor) -> bool:
    """Return whether an 8-bit kernel takes convolutions of these."""
    fits = _plain(x, weight) and x.ndim == 4 and bool(x.numel()) and bool(weight.numel())
    # Of an input's gradient the sum goes over outputs, not over inputs.
    short = fits and max(weight.shape[:2]) * weight[0, 0].numel() <= _LONGEST
    return short and x.device.type == "cpu" and processor().int8 and _convolutions_agree()


def _convolve(x: Tensor, weight: Tensor, how: Convolution) -> Tensor:
    ones = torch.ones(weight.shape[0])
    zeros = torch.zeros(weight.shape[0], dtype=torch.int64)
    places: tuple[Any, ...] = (how.stride, how.padding, how.dilation, how.groups)
    kernels = torch.ops.onednn
    packed = kernels.qconv_prepack(weight, ones, 1.0, _ZERO, *places, x.shape)
    unsigned = torch.bitwise_xor(x, _SIGN).view(torch.uint8)
    given = (unsigned, 1.0, _ZERO, packed, ones, zeros, None, *places, 1.0, 0, torch.float32)
    found: Tensor = kernels.qconv_pointwise(*given, "none", [], "")
    return found


def _plain(*tensors: Tensor) -> bool:
    """Return whether a kernel can read these: no tensors of `torch.func`, oneDNN not off."""
    wrapped = any(is_functorch_wrapped_tensor(tensor) for tensor in tensors)
    return not wrapped and bool(torch.backends.mkldnn.enabled)


def _type_for(terms: int, like: Tensor) -> torch.dtype:
    """Return a type in which so many products add up without rounding.

    Libraries of graphics cards may transform convolutions, which rounds even whole numbers.
    """
    narrow = terms * _SQUARE <= _WHOLE and like.device.type == "cpu"
    return torch.float32 if narrow else torch.float64


@cache
def _matrices_agree() -> bool:
    """Return whether the kernel of this PyTorch gives the integers that it should."""
    x, weight = _codes(5, 70), _codes(9, 70)
    try:
        found = torch._int_mm(x, weight.t())  # noqa: SLF001
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(found.double(), F.linear(x.double(), weight.double()))


@cache
def _convolutions_agree() -> bool:
    x, weight = _codes(2, 6, 7, 5), _codes(4, 3, 3, 3)
    how = Convolution((2, 1), (1, 2), (1, 1), 2)
    try:
        found = _convolve(x, weight, how)
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(found.double(), forward(x.double(), weight.double(), how))


def _codes(*shape: int) -> Tensor:
    """Return all int8 codes but -128, in turn."""
    count = torch.Size(shape).numel()
    return (torch.arange(count) * 89 % 255 - 127).to(torch.int8).view(shape)
