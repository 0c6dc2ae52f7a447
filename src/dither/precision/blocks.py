"""Which numbers share a scale, and what that scale is.

A scale is made from weights, or from one example alone: from all of it, from one of its rows, or
from a block of features inside a row; never along the batch, and never from an earlier step. What
is not finite makes the scales of its own numbers NaN, and no others.
"""

from __future__ import annotations

import math
from enum import StrEnum

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional as F

BLOCK = 32  # numbers that share a scale in all formats of OCP MX v1.0
_MANTISSA = 0x7FFFFF
_MANTISSA_BITS = 23
_BIAS = 127
LEAST_EXPONENT = -127  # of E8M0, OCP MX v1.0, section 5.4.1
LARGEST_EXPONENT = 127
SMALLEST = 2.0**-126  # scales are normal numbers: their reciprocals are finite


class Per(StrEnum):
    """What has a scale of its own.

    Attributes:
        TENSOR: The whole tensor. Weights only: it would tie examples together.
        CHANNEL: Each index of one axis, all other axes together. Weights.
        EXAMPLE: Each index of the first axis, all others together. Activations and gradients whose
            first axis counts examples.
        ROW: Each row along an axis, such as the features of a token.
        BLOCK: Each 32 consecutive numbers along an axis, with a power of two as their scale (MX).
    """

    TENSOR = "tensor"
    CHANNEL = "channel"
    EXAMPLE = "example"
    ROW = "row"
    BLOCK = "block"

    @property
    def isolates(self) -> bool:
        """Whether no scale is shared by two examples, whichever axis counts them but `axis`."""
        return self in {Per.ROW, Per.BLOCK}


def magnitude(
    x: Float32[Tensor, "*shape"], per: Per, axis: int = -1
) -> Float32[Tensor, "*reduced"]:
    """Return the largest magnitude of what shares a scale; NaN where a number is not finite.

    Args:
        x: Values; for `Per.BLOCK` what `split` returns. None of its axes is empty.
        per: What shares one.
        axis: CHANNEL: the axis of channels. ROW: the axis along which a row lies.

    Returns:
        A tensor that broadcasts against ``x``.
    """
    if per is Per.BLOCK or x.ndim == 0:
        axes = [-1] if x.ndim else []
    elif per is Per.ROW:
        axes = [axis]
    else:
        kept = {Per.TENSOR: None, Per.EXAMPLE: 0, Per.CHANNEL: axis % x.ndim}[per]
        axes = [place for place in range(x.ndim) if place != kept]
    largest = x.abs()
    if axes:
        largest = torch.amax(largest, dim=axes, keepdim=True)
    return largest + largest * 0.0  # infinity becomes NaN


def split(x: Float32[Tensor, "*shape"], axis: int) -> Float32[Tensor, "*rest blocks 32"]:
    """Return blocks of an axis, which comes last; zeros fill up the last block."""
    moved = x.movedim(axis, -1)
    size = moved.shape[-1]
    padded = F.pad(moved, (0, -size % BLOCK)) if size % BLOCK else moved
    return padded.reshape(*moved.shape[:-1], -1, BLOCK)


def join(
    blocks: Float32[Tensor, "*rest blocks 32"], axis: int, size: int
) -> Float32[Tensor, "*shape"]:
    """Undo `split` of an axis of so many numbers."""
    return blocks.flatten(-2)[..., :size].movedim(-1, axis)


def power_within(largest: Float32[Tensor, "*shape"], bound: float) -> Float32[Tensor, "*shape"]:
    """Return the least power of two 2^k with ``largest ≤ bound·2^k``, exactly.

    Args:
        largest: Not negative; NaN stays NaN.
        bound: Largest magnitude of the format.
    """
    mantissa, exponent = math.frexp(bound)
    fraction = int((mantissa * 2.0 - 1.0) * (1 << _MANTISSA_BITS))
    bits = largest.view(torch.int32)
    carry = (bits & _MANTISSA) > fraction
    return _power((bits >> _MANTISSA_BITS) - _BIAS - (exponent - 1) + carry, largest)


def shared_power(
    largest: Float32[Tensor, "*shape"], element_exponent: int
) -> Float32[Tensor, "*shape"]:
    """Return X = 2^(⌊log₂ largest⌋ - element_exponent), as OCP MX v1.0, section 6.3, has it.

    Args:
        largest: Of each block; NaN stays NaN.
        element_exponent: Exponent of the element format's largest normal number (emax).
    """
    bits = largest.view(torch.int32)
    return _power((bits >> _MANTISSA_BITS) - _BIAS - element_exponent, largest)


def _power(exponents: Tensor, largest: Tensor) -> Tensor:
    held = exponents.clamp(LEAST_EXPONENT, LARGEST_EXPONENT)
    powers = torch.ldexp(torch.ones_like(largest), held)
    return powers + largest * 0.0  # NaN stays NaN


def fraction_of(largest: Float32[Tensor, "*shape"], bound: float) -> Float32[Tensor, "*shape"]:
    """Return ``largest / bound``, a normal number at least; NaN stays NaN."""
    return (largest / bound).clamp_min(SMALLEST)
