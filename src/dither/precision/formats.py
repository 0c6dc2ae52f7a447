"""Number formats of low precision: values on a grid, kept as codes with scales.

A format is emulated in float32: `Format.encode` gives codes that are exact in it, and the scale
that they are multiplied by. Kernels take the codes where the processor has such kernels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import repeat
from typing import final

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from dither.errors import ConfigError
from dither.precision.blocks import (
    SMALLEST,
    Per,
    fraction_of,
    join,
    magnitude,
    power_within,
    shared_power,
    split,
)
from dither.precision.rounding import Grid, Rounding, to_bfloat16, to_grid, to_whole, within

_AT_A_TIME = 1 << 19  # numbers


@final
@dataclass(frozen=True)
class Quantized:
    """A tensor in a format.

    Attributes:
        codes: What the format stores: int8, bfloat16, or float32 for formats emulated in it.
        scale: Broadcasts against the codes; None where codes are the values.
        format: The format.
        per: What shares a scale.
        axis: The axis that `per` speaks of.
    """

    codes: Tensor
    scale: Tensor | None
    format: Format
    per: Per
    axis: int

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor."""
        return self.codes.shape

    def values(self) -> Float32[Tensor, "*shape"]:
        """Return the values in float32: the very numbers that a product of this tensor takes."""
        if self.scale is None:
            return self.codes.float()
        return self.codes * self.scale


class Format(ABC):
    """A number format.

    Attributes:
        name: As recipes spell it.
        bits: Bits of a number, its share of a scale left out.
    """

    name: str
    bits: int

    def quantize(
        self,
        x: Float[Tensor, "*shape"],
        *,
        rounding: Rounding = Rounding.NEAREST,
        per: Per = Per.ROW,
        axis: int = -1,
        uniform: Float32[Tensor, "*shape"] | None = None,
    ) -> Float32[Tensor, "*shape"]:
        """Return the values that the format has for ``x``, in float32; see `encode`."""
        return self.encode(x, rounding=rounding, per=per, axis=axis, uniform=uniform).values()

    def encode(
        self,
        x: Float[Tensor, "*shape"],
        *,
        rounding: Rounding = Rounding.NEAREST,
        per: Per = Per.ROW,
        axis: int = -1,
        uniform: Float32[Tensor, "*shape"] | None = None,
    ) -> Quantized:
        """Return ``x`` in this format, without a gradient.

        Under stochastic rounding E[values] = x wherever x is finite, to within the rounding of
        float32 (2⁻¹⁷ steps of the format): scales are chosen so that nothing saturates. To the
        nearest, MX formats saturate as their source says. Where anything that shares a scale is not
        finite all of it becomes NaN.

        Args:
            x: Values; computed in float32.
            rounding: To the nearest, or by chance.
            per: What shares a scale. Formats without scales pass it by.
            axis: CHANNEL: the axis of channels. ROW and BLOCK: the axis along which rows and blocks
                lie, the one that the product sums over.
            uniform: Draws from [0, 1) for stochastic rounding; drawn by `torch.rand_like` if None.
        """
        values = x.detach().float()
        if not values.numel():
            return Quantized(values, None, self, per, axis)
        rows = _rows_at_a_time(values, per, axis)
        if rows == 0:
            return self._encode(values, rounding, per, axis, uniform)
        draws = repeat(None) if uniform is None else torch.split(uniform, rows)
        parts = [
            self._encode(part, rounding, per, axis, draw)
            for part, draw in zip(torch.split(values, rows), draws, strict=False)
        ]
        scales = [part.scale for part in parts if part.scale is not None]
        return Quantized(
            torch.cat([part.codes for part in parts]),
            torch.cat(scales) if scales else None,
            self,
            per,
            axis,
        )

    @abstractmethod
    def _encode(
        self, x: Tensor, rounding: Rounding, per: Per, axis: int, uniform: Tensor | None
    ) -> Quantized: ...


def _rows_at_a_time(x: Tensor, per: Per, axis: int) -> int:
    """Return how many rows to encode at a time; 0 for all.

    Fresh memory of many megabytes costs more than the rounding: a factor of up to ten.
    """
    if x.numel() <= _AT_A_TIME or x.ndim < 2 or is_functorch_wrapped_tensor(x):
        return 0
    crosses = per in {Per.TENSOR, Per.CHANNEL} or (per is not Per.EXAMPLE and axis % x.ndim == 0)
    rows = _AT_A_TIME * x.shape[0] // x.numel()
    return 0 if crosses else max(1, rows)


class _Scaled(Format):
    """A format whose numbers share scales."""

    def _encode(
        self, x: Tensor, rounding: Rounding, per: Per, axis: int, uniform: Tensor | None
    ) -> Quantized:
        if per is not Per.BLOCK or not x.ndim:
            scale = self._normal_scale(magnitude(x, per, axis), per, rounding)
            codes = self._codes(x / scale, rounding, uniform)
            return Quantized(self._store(codes, scale), scale, self, per, axis)
        blocks = split(x, axis)
        draws = None if uniform is None else split(uniform, axis)
        scale = self._normal_scale(magnitude(blocks, per), per, rounding)
        values = self._codes(blocks / scale, rounding, draws).mul_(scale)
        return Quantized(join(values, axis, x.shape[axis]), None, self, per, axis)

    def _normal_scale(self, largest: Tensor, per: Per, rounding: Rounding) -> Tensor:
        """Return scales that are normal numbers: E8M0's least, 2⁻¹²⁷, is none.

        Where a processor was told to flush what is not normal, zeros would be divided by zero.
        """
        return self._scale(largest, per, rounding).clamp_min(SMALLEST)

    @abstractmethod
    def _scale(self, largest: Tensor, per: Per, rounding: Rounding) -> Tensor: ...

    @abstractmethod
    def _codes(self, x: Tensor, rounding: Rounding, uniform: Tensor | None) -> Tensor: ...

    def _store(self, codes: Tensor, scale: Tensor) -> Tensor:  # noqa: ARG002
        return codes


@final
@dataclass(frozen=True)
class Float32Format(Format):
    """Full precision: what a switched-off operand has."""

    name: str = "float32"
    bits: int = 32

    def _encode(
        self,
        x: Tensor,
        rounding: Rounding,  # noqa: ARG002
        per: Per,
        axis: int,
        uniform: Tensor | None,  # noqa: ARG002
    ) -> Quantized:
        return Quantized(x, None, self, per, axis)


@final
@dataclass(frozen=True)
class Bfloat16(Format):
    """bfloat16: float32 with 8 bits of significand. It needs no scale."""

    name: str = "bf16"
    bits: int = 16

    def _encode(
        self, x: Tensor, rounding: Rounding, per: Per, axis: int, uniform: Tensor | None
    ) -> Quantized:
        return Quantized(to_bfloat16(x, rounding, uniform), None, self, per, axis)


@final
@dataclass(frozen=True)
class Integer(_Scaled):
    """Whole numbers from -(2^(bits-1) - 1) to 2^(bits-1) - 1, symmetric, times a float32 scale.

    The scale is the largest magnitude over the largest code. Per block it is a power of two as
    MXINT8 has it (OCP MX v1.0, section 5.3.4): to the nearest, magnitudes beyond the largest code
    saturate.
    """

    name: str
    bits: int

    @property
    def largest(self) -> int:
        """Largest code."""
        return (1 << (self.bits - 1)) - 1

    def _scale(self, largest: Tensor, per: Per, rounding: Rounding) -> Tensor:
        if per is not Per.BLOCK:
            return fraction_of(largest, self.largest)
        if rounding is Rounding.NEAREST:
            return shared_power(largest, self.bits - 2)
        return power_within(largest, self.largest)

    def _codes(self, x: Tensor, rounding: Rounding, uniform: Tensor | None) -> Tensor:
        codes = to_whole(x, rounding, uniform)
        return within(codes, self.largest)

    def _store(self, codes: Tensor, scale: Tensor) -> Tensor:  # noqa: ARG002
        # NaN has no int8; where the scale is NaN the value is, whatever the code.
        return torch.nan_to_num_(codes, nan=0.0).to(torch.int8)


@final
@dataclass(frozen=True)
class Floating(_Scaled):
    """A small floating-point format times a power of two, so that scaling rounds nothing.

    The power is the least one under which nothing saturates. Per block, to the nearest, it is that
    of OCP MX v1.0 (section 6.3): numbers between the largest of the grid and the next power of two
    then saturate; stochastic rounding, of which the source says nothing, keeps the least power, for
    saturation would be a bias.
    """

    name: str
    bits: int
    grid: Grid
    largest_exponent: int

    def _scale(self, largest: Tensor, per: Per, rounding: Rounding) -> Tensor:
        if per is Per.BLOCK and rounding is Rounding.NEAREST:
            return shared_power(largest, self.largest_exponent)
        return power_within(largest, self.grid.largest)

    def _codes(self, x: Tensor, rounding: Rounding, uniform: Tensor | None) -> Tensor:
        return to_grid(x, self.grid, rounding, uniform)


@final
@dataclass(frozen=True)
class Logarithmic(_Scaled):
    """FP4 [1,3,0] of LUQ (Chmiel et al. 2112.10769): 0 and ±α·2^k for k = 0..6.

    α is the largest magnitude over 2⁶. Stochastic rounding is the paper's: below α (underflow) to
    ±α with probability |x|/α, else to 0; above, to the power of two over or under |x| by nearness
    (logarithmic stochastic rounding): E[Q(x)] = x. To the nearest, the boundary between two powers
    lies in their arithmetic middle, as the paper's "round to nearest power" has it.
    """

    name: str = "luq-fp4"
    bits: int = 4

    def _scale(self, largest: Tensor, per: Per, rounding: Rounding) -> Tensor:  # noqa: ARG002
        return fraction_of(largest, _LOGARITHMIC.largest)

    def _codes(self, x: Tensor, rounding: Rounding, uniform: Tensor | None) -> Tensor:
        return to_grid(x, _LOGARITHMIC, rounding, uniform)


_LOGARITHMIC = Grid(mantissa_bits=0, least_exponent=0, largest=64.0)

FLOAT32 = Float32Format()
BF16 = Bfloat16()
INT8 = Integer("int8", 8)
INT4 = Integer("int4", 4)
FP8_E4M3 = Floating("fp8_e4m3", 8, Grid(3, -6, 448.0), 8)
FP8_E5M2 = Floating("fp8_e5m2", 8, Grid(2, -14, 57344.0), 15)
FP4_E2M1 = Floating("fp4_e2m1", 4, Grid(1, 0, 6.0), 2)
LUQ_FP4 = Logarithmic()

FORMATS: dict[str, Format] = {
    found.name: found
    for found in (FLOAT32, BF16, FP8_E4M3, FP8_E5M2, INT8, INT4, FP4_E2M1, LUQ_FP4)
}


def parse_format(name: str) -> Format:
    """Return a format by its name.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in FORMATS:
        raise ConfigError(
            expected=f"a format of {', '.join(FORMATS)}",
            got=repr(name),
            fix="choose one of these",
        )
    return FORMATS[name]
