"""Rounding to whole numbers and to floating-point grids, to the nearest or by chance.

Everything is computed on float32 values. Chance comes from `torch.rand_like`, torch's own
generators: the engine seeds those from secret entropy each step, and its checks hold them still.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float32
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

_EXPONENT = 0x7F800000
_MANTISSA_BITS = 23
_BIAS = 127
_LOW_HALF = 0xFFFF


class Rounding(StrEnum):
    """How a value between two numbers of a format becomes one of them.

    Attributes:
        NEAREST: The nearer one, the even one from the middle (IEEE 754 roundTiesToEven).
        STOCHASTIC: The upper one with the probability of its nearness, so that E[Q(x)] = x.
    """

    NEAREST = "nearest"
    STOCHASTIC = "stochastic"


@dataclass(frozen=True)
class Grid:
    """The numbers 0 and ±k·2^(e - mantissa_bits) up to the largest, as IEEE 754 places them.

    Attributes:
        mantissa_bits: Stored bits of the significand.
        least_exponent: Below 2^least_exponent numbers are evenly spaced (subnormal).
        largest: Largest magnitude.
    """

    mantissa_bits: int
    least_exponent: int
    largest: float

    def numbers(self) -> tuple[float, ...]:
        """Return all magnitudes on the grid, ascending, zero first."""
        found = {0.0}
        exponent = self.least_exponent
        step = 2.0 ** (exponent - self.mantissa_bits)
        found |= {k * step for k in range(1 << self.mantissa_bits)}
        while 2.0**exponent <= self.largest:
            step = 2.0 ** (exponent - self.mantissa_bits)
            found |= {2.0**exponent + k * step for k in range(1 << self.mantissa_bits)}
            exponent += 1
        return tuple(sorted(number for number in found if number <= self.largest))


def to_whole(
    x: Float32[Tensor, "*shape"],
    rounding: Rounding,
    uniform: Float32[Tensor, "*shape"] | None = None,
) -> Float32[Tensor, "*shape"]:
    """Return whole numbers; what is not finite stays so.

    By chance it is ⌊x + u⌋. As float32 adds them, E[Q(x)] is from x by less than |x|·2⁻²⁴ + 2⁻²⁴:
    2⁻¹⁷ for the codes of int8, 2⁻¹⁹ for those of four bits.

    Args:
        x: Values.
        rounding: How.
        uniform: Draws from [0, 1), for stochastic rounding; drawn here by default.
    """
    if rounding is Rounding.NEAREST:
        return torch.round(x)
    return torch.floor(x + (torch.rand_like(x) if uniform is None else uniform))


def to_grid(
    x: Float32[Tensor, "*shape"],
    grid: Grid,
    rounding: Rounding,
    uniform: Float32[Tensor, "*shape"] | None = None,
) -> Float32[Tensor, "*shape"]:
    """Return numbers of a floating-point grid; beyond its largest they saturate, NaN stays NaN.

    Args:
        x: Values.
        grid: Where to.
        rounding: How.
        uniform: As for `to_whole`.
    """
    exponents = x.view(torch.int32) & _EXPONENT
    exponents = exponents.clamp_min((grid.least_exponent + _BIAS) << _MANTISSA_BITS)
    exponents -= grid.mantissa_bits << _MANTISSA_BITS
    step = exponents.view(torch.float32)
    return within(to_whole(x / step, rounding, uniform).mul_(step), grid.largest)


def within(x: Float32[Tensor, "*shape"], largest: float) -> Float32[Tensor, "*shape"]:
    """Return numbers saturated at a magnitude, NaN as it is; in place where torch can."""
    if is_functorch_wrapped_tensor(x):
        return x.clamp(-largest, largest)
    return x.clamp_(-largest, largest)


def to_bfloat16(
    x: Float32[Tensor, "*shape"],
    rounding: Rounding,
    uniform: Float32[Tensor, "*shape"] | None = None,
) -> Tensor:
    """Return bfloat16 numbers: the upper half of a float32, rounded by the lower one."""
    if rounding is Rounding.NEAREST:
        return x.bfloat16()
    draws = torch.rand_like(x) if uniform is None else uniform
    # The carry of a uniform 16-bit number is the rounding: exact, subnormal numbers included.
    bits = x.view(torch.int32) + (draws * (_LOW_HALF + 1)).to(torch.int32)
    rounded = (bits & ~_LOW_HALF).view(torch.float32)
    return (rounded + x * 0.0).bfloat16()  # NaN and infinity stay out of the carry's way
