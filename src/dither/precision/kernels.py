"""Products of quantised operands: on the processor's own kernels, or emulated in float32.

What a product gives is defined by its emulation. Whole numbers are multiplied and added up exactly
and then scaled: kernel and emulation agree to the bit, but for sums of more than 518 products in
convolutions, which their kernel rounds as float32 does. Products of two bfloat16 operands are
rounded to bfloat16, as kernels do it: the order in which float32 adds up may move one of them by a
bfloat16 step. All other formats are multiplied as float32 values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum

import torch
from jaxtyping import Float32
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import functional as F

from dither.precision import integers
from dither.precision.capability import processor
from dither.precision.formats import INT8, Floating, Quantized
from dither.precision.integers import Convolution
from dither.precision.recipe import Recipe

__all__ = [
    "Convolution",
    "Kernel",
    "convolution",
    "convolution_back",
    "described",
    "exact_products",
    "kernel_of",
    "kernels_of",
    "product",
    "product_back",
]

_EXACT: ContextVar[bool] = ContextVar("exact", default=False)


class Kernel(StrEnum):
    """What a product runs on.

    Attributes:
        BF16: bfloat16 units.
        INT8: 8-bit integer units that add up in 32 bits.
        FP8: 8-bit floating-point units that add up in float32.
        EMULATED: float32 units, or those of another format, on numbers of this one.
    """

    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"
    EMULATED = "emulated"

    @property
    def real(self) -> bool:
        """Whether the processor multiplies the format itself."""
        return self is not Kernel.EMULATED


@contextmanager
def exact_products() -> Iterator[None]:
    """Emulate products in float64 for a while: other batch shapes then round them alike."""
    token = _EXACT.set(True)
    try:
        yield
    finally:
        _EXACT.reset(token)


def product(x: Quantized, weight: Quantized) -> Float32[Tensor, "*rows outputs"]:
    """Return ``x · weightᵀ`` in float32, as a layer's forward pass has it.

    Args:
        x: ``[*rows, inputs]``.
        weight: ``[outputs, inputs]``, from ``Recipe.weight(w, axis=1)``.
    """
    return _product(x, weight, weight.codes, 1)


def product_back(gradient: Quantized, weight: Quantized) -> Float32[Tensor, "*rows inputs"]:
    """Return ``gradient · weight`` in float32, the gradient of a layer's input.

    Args:
        gradient: ``[*rows, outputs]``.
        weight: ``[outputs, inputs]``, from ``Recipe.weight(w, axis=0)``.
    """
    return _product(gradient, weight, weight.codes.t(), 0)


def _product(x: Quantized, weight: Quantized, codes: Tensor, axis: int) -> Tensor:
    """Return ``x · codesᵀ``, with the weight's scales, which are constant along an axis."""
    if _whole(x, weight, axis, (-1,)):
        return _scaled(integers.multiply(x.codes, codes), x, _over_outputs(weight, axis))
    kernel = kernel_of(x, weight, axis=axis)
    if kernel is Kernel.BF16:
        return _bf16(x.codes, codes)
    if kernel is Kernel.FP8:
        return _scaled(_fp8(x, weight, codes), x, _over_outputs(weight, axis))
    wide = _wide(weight)
    found = F.linear(_wide(x), wide if axis == 1 else wide.t())
    return _narrow(found, x, weight)


def _bf16(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply rows of even lengths: oneDNN's kernels read past odd ones (`clipping.half`)."""
    odd = x.shape[-1] % 2
    if odd:
        x, weight = F.pad(x, (0, 1)), F.pad(weight, (0, 1))
    return F.linear(x, weight).float()


def convolution(x: Quantized, weight: Quantized, how: Convolution) -> Tensor:
    """Return a convolution in float32, without a bias.

    Args:
        x: ``[examples, channels, *places]``.
        weight: ``[outputs, channels / groups, *kernel]``, from ``Recipe.weight(w, axis=1)``.
        how: How.
    """
    if _whole(x, weight, 1, tuple(range(1, len(x.shape)))):
        found = integers.convolve(x.codes, weight.codes, how)
        return _scaled(found, x, _over_channels(weight, 1, how.groups))
    kernel = kernel_of(x, weight)
    found = integers.forward(*_operands(x, weight, kernel), how)
    return found.float() if kernel.real else _narrow(found, x, weight)


def convolution_back(
    gradient: Quantized, weight: Quantized, how: Convolution, shape: torch.Size
) -> Tensor:
    """Return the gradient of a convolution's input in float32.

    Args:
        gradient: Of its output.
        weight: As for `convolution`, but from ``Recipe.weight(w, axis=0)``.
        how: How.
        shape: Of the input.
    """
    if _whole(gradient, weight, 0, tuple(range(1, len(gradient.shape)))):
        found = integers.convolve_back(gradient.codes, weight.codes, how, shape)
        return _scaled(found, gradient, _over_channels(weight, 0, how.groups))
    kernel = kernel_of(gradient, weight, axis=0)
    found = integers.back(*_operands(gradient, weight, kernel), how, shape)
    return found.float() if kernel.real else _narrow(found, gradient, weight)


def kernel_of(x: Quantized, weight: Quantized, *, axis: int = 1) -> Kernel:
    """Return what the product of two operands runs on here.

    Args:
        x: Activations or gradients; with more than two axes and a weight of as many, of a
            convolution.
        weight: The weight.
        axis: The weight's axis that is summed over: 1 forward, 0 backward.
    """
    convolves = weight.codes.ndim > 2
    if _EXACT.get() or is_functorch_wrapped_tensor(x.codes):
        return Kernel.EMULATED
    if not torch.backends.mkldnn.enabled and not x.codes.is_cuda:
        return Kernel.EMULATED
    there = processor(x.codes.device.type)
    if _both_bf16(x, weight):
        return Kernel.BF16 if there.bf16 else Kernel.EMULATED
    places = tuple(range(1, x.codes.ndim)) if convolves else (-1,)
    if x.format is INT8 and weight.format is INT8 and _whole(x, weight, axis, places):
        ask = integers.convolves if convolves else integers.multiplies
        codes = weight.codes if convolves or axis == 1 else weight.codes.t()
        return Kernel.INT8 if ask(x.codes, codes) else Kernel.EMULATED
    if there.fp8 and not convolves and _fits_fp8(x, weight, axis):
        return Kernel.FP8
    return Kernel.EMULATED


def kernels_of(recipe: Recipe, device: str = "cpu") -> tuple[Kernel, Kernel]:
    """Return what linear layers under a recipe run on: forward, and the gradient of inputs."""
    x = torch.ones(32, 32, device=device)
    forward = kernel_of(recipe.activation(x), recipe.weight(x))
    return forward, kernel_of(recipe.gradient(x), recipe.weight(x, axis=0), axis=0)


def described(recipe: Recipe, device: str = "cpu") -> str:
    """Return "real (int8)", "emulated", or what forward and backward products each run on."""
    forward, back = kernels_of(recipe, device)
    if forward is back:
        return f"real ({forward})" if forward.real else "emulated"
    names = (f"real ({kernel})" if kernel.real else "emulated" for kernel in (forward, back))
    return "forward {}, backward {}".format(*names)


def _whole(x: Quantized, weight: Quantized, axis: int, places: tuple[int, ...]) -> bool:
    """Return whether both are whole numbers with scales constant over what is summed over.

    Args:
        x: Activations or gradients.
        weight: The weight.
        axis: The weight's axis that is summed over, kernel places besides.
        places: Axes of ``x`` that are summed over.
    """
    if x.codes.dtype is not torch.int8 or weight.codes.dtype is not torch.int8:
        return False
    return _constant(x, places) and _constant(weight, (axis, *range(2, weight.codes.ndim)))


def _constant(operand: Quantized, axes: tuple[int, ...]) -> bool:
    scale = operand.scale
    if scale is None or not scale.ndim:
        return scale is not None
    return all(scale.shape[axis] == 1 for axis in axes)


def _over_outputs(weight: Quantized, axis: int) -> Tensor:
    """Return the weight's scales as ``[1, outputs of the product]``."""
    scale = weight.scale
    assert scale is not None  # noqa: S101 - asked before
    return scale.t() if axis == 1 else scale


def _over_channels(weight: Quantized, axis: int, groups: int) -> Tensor:
    """Return the weight's scales as ``[1, channels of the result, 1, ...]``."""
    scale = weight.scale
    assert scale is not None  # noqa: S101 - asked before
    if axis == 1:
        return scale.transpose(0, 1)
    return scale.repeat(1, groups, *[1] * (scale.ndim - 2)) if scale.shape[1] > 1 else scale


def _scaled(found: Tensor, x: Quantized, scales: Tensor) -> Tensor:
    assert x.scale is not None  # noqa: S101 - asked before
    return found.mul_(x.scale).mul_(scales if found.ndim > 1 else scales.flatten())


def _operands(x: Quantized, weight: Quantized, kernel: Kernel) -> tuple[Tensor, Tensor]:
    return (x.codes, weight.codes) if kernel.real else (_wide(x), _wide(weight))


def _wide(operand: Quantized) -> Tensor:
    return operand.values().double() if _EXACT.get() else operand.values()


def _narrow(found: Tensor, x: Quantized, weight: Quantized) -> Tensor:
    """Round an emulated product as its kernel would."""
    if _both_bf16(x, weight):
        return found.bfloat16().float()
    return found.float()


def _both_bf16(x: Quantized, weight: Quantized) -> bool:
    return x.codes.dtype is torch.bfloat16 and weight.codes.dtype is torch.bfloat16


def _fits_fp8(x: Quantized, weight: Quantized, axis: int) -> bool:
    formats = (x.format, weight.format)
    if not all(isinstance(f, Floating) and f.bits == 8 for f in formats):
        return False
    both_wide = all(f.name == "fp8_e5m2" for f in formats)  # no library multiplies these two
    sizes = weight.codes.shape
    fits = sizes[0] % 16 == 0 and sizes[1] % 16 == 0
    return fits and not both_wide and _constant(x, (-1,)) and _constant(weight, (axis,))


def _fp8(x: Quantized, weight: Quantized, codes: Tensor) -> Tensor:
    """Return the product of 8-bit floating-point codes on a graphics card, not yet scaled."""
    one = x.codes.reshape(-1, x.codes.shape[-1]).to(_torch_type(x))
    other = codes.contiguous().to(_torch_type(weight))
    unit = torch.ones((), device=one.device)
    found = torch._scaled_mm(  # noqa: SLF001
        one, other.t(), scale_a=unit, scale_b=unit, out_dtype=torch.float32
    )
    return found.view(*x.codes.shape[:-1], codes.shape[0])


def _torch_type(operand: Quantized) -> torch.dtype:
    narrow = operand.format.name == "fp8_e4m3"
    return torch.float8_e4m3fn if narrow else torch.float8_e5m2
