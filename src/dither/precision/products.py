"""How a layer multiplies its input by its weight, forward and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from dither.precision import kernels
from dither.precision.blocks import Per
from dither.precision.formats import Quantized
from dither.precision.recipe import Operand

Numbers: TypeAlias = tuple[int, ...]


class Product(ABC):
    """A bilinear map of an input and a weight.

    Operands come rounded; their features lie along `axis`, which the product sums over. Scales are
    made from one row of features alone (`Matrix`), or from one image alone, as kernels of
    convolutions cannot have a scale a place: no scale is shared by two examples, wherever a model
    has its axis of examples.
    """

    axis: ClassVar[int]

    @abstractmethod
    def per(self, operand: Operand | None) -> Per | None:
        """Return what shares a scale in an input or a gradient; None as the recipe has it."""

    @abstractmethod
    def summed_axis(self, *, forward: bool) -> int:
        """Return the axis of `laid_out` that one of the two products sums over."""

    def laid_out(self, weight: Tensor) -> Tensor:
        """Return the weight as kernels take it."""
        return weight

    @abstractmethod
    def forward(self, x: Quantized, weight: Quantized) -> Tensor:
        """Return the output without its bias."""

    @abstractmethod
    def back(self, gradient: Quantized, weight: Quantized, shape: torch.Size) -> Tensor:
        """Return the gradient of an input of this shape."""

    @abstractmethod
    def of_weight(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient of the weight, summed over examples, from rounded operands."""

    def with_bias(self, output: Tensor, bias: Tensor | None) -> Tensor:
        """Return an output with its bias added, in place."""
        if bias is None:
            return output
        return output.add_(self._spread(bias, output))

    def of_bias(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the bias, summed over examples."""
        axis = self.axis % gradient.ndim
        others = [place for place in range(gradient.ndim) if place != axis]
        return gradient.sum(others) if others else gradient

    def _spread(self, bias: Tensor, output: Tensor) -> Tensor:
        return bias.reshape(-1, *[1] * (output.ndim - 1 - self.axis % output.ndim))


@final
@dataclass(frozen=True)
class Matrix(Product):
    """``x wᵀ``, or ``x w`` where the weight is turned.

    Attributes:
        turned: Whether the weight is ``[inputs, outputs]``.
    """

    turned: bool = False
    axis: ClassVar[int] = -1

    def per(self, operand: Operand | None) -> Per | None:
        """Rows have scales of their own: no guess where the examples are is needed."""
        return Per.ROW if operand is not None and operand.per is Per.EXAMPLE else None

    def summed_axis(self, *, forward: bool) -> int:
        """Return the axis of inputs forward, of outputs back."""
        return 1 if forward else 0

    def laid_out(self, weight: Tensor) -> Tensor:
        """Return ``[outputs, inputs]``."""
        return weight.t() if self.turned else weight

    def forward(self, x: Quantized, weight: Quantized) -> Tensor:
        """Return ``[*rows, outputs]``."""
        return kernels.product(x, weight)

    def back(self, gradient: Quantized, weight: Quantized, shape: torch.Size) -> Tensor:  # noqa: ARG002
        """Return ``[*rows, inputs]``."""
        return kernels.product_back(gradient, weight)

    def of_weight(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:  # noqa: ARG002
        """Return Σ g xᵀ, laid out as the weight."""
        one, other = gradient.flatten(0, -2), x.flatten(0, -2)
        if gradient.ndim == 1:
            one, other = gradient[None], x[None]
        return other.t() @ one if self.turned else one.t() @ other


@final
@dataclass(frozen=True)
class Images(Product):
    """A convolution; numbers are one for each of its one to three axes.

    Attributes:
        stride: Step between outputs.
        padding: Zeros on either side.
        dilation: Step between places of the kernel.
        groups: Groups of channels that do not meet.
    """

    stride: Numbers
    padding: Numbers
    dilation: Numbers
    groups: int
    axis: ClassVar[int] = 1

    def per(self, operand: Operand | None) -> Per | None:
        """Images have scales of their own."""
        return _of_images(operand)

    def summed_axis(self, *, forward: bool) -> int:
        """Return the axis of inputs forward, of outputs back."""
        return 1 if forward else 0

    def forward(self, x: Quantized, weight: Quantized) -> Tensor:
        """Return ``[examples, outputs, *places]``."""
        return kernels.convolution(x, weight, self._how)

    def back(self, gradient: Quantized, weight: Quantized, shape: torch.Size) -> Tensor:
        """Return ``[examples, inputs, *places]``."""
        return kernels.convolution_back(gradient, weight, self._how, shape)

    def of_weight(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the library's own gradient."""
        return _weight_gradient(gradient, x, weight, self, None)

    @property
    def _how(self) -> kernels.Convolution:
        return kernels.Convolution(self.stride, self.padding, self.dilation, self.groups)


@final
@dataclass(frozen=True)
class TurnedImages(Product):
    """A transposed convolution: the input's gradient of a convolution with the same weight.

    Attributes:
        stride: Step of that convolution.
        padding: Of that convolution.
        dilation: Of that convolution.
        groups: Groups of channels that do not meet.
        output_padding: Further places at one end of the output.
    """

    stride: Numbers
    padding: Numbers
    dilation: Numbers
    groups: int
    output_padding: Numbers
    axis: ClassVar[int] = 1

    def per(self, operand: Operand | None) -> Per | None:
        """Images have scales of their own."""
        return _of_images(operand)

    def summed_axis(self, *, forward: bool) -> int:
        """Return the axis of inputs forward, of outputs back: ``[inputs, outputs, *kernel]``."""
        return 0 if forward else 1

    def forward(self, x: Quantized, weight: Quantized) -> Tensor:
        """Return ``[examples, outputs, *places]``."""
        return kernels.convolution_back(x, weight, self._how, self._output(x, weight))

    def back(self, gradient: Quantized, weight: Quantized, shape: torch.Size) -> Tensor:  # noqa: ARG002
        """Return ``[examples, inputs, *places]``."""
        return kernels.convolution(gradient, weight, self._how)

    def of_weight(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the library's own gradient."""
        return _weight_gradient(gradient, x, weight, self, self.output_padding)

    @property
    def _how(self) -> kernels.Convolution:
        return kernels.Convolution(self.stride, self.padding, self.dilation, self.groups)

    def _output(self, x: Quantized, weight: Quantized) -> torch.Size:
        places = [
            (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + more + 1
            for size, stride, padding, dilation, kernel, more in zip(
                x.shape[2:],
                self.stride,
                self.padding,
                self.dilation,
                weight.shape[2:],
                self.output_padding,
                strict=True,
            )
        ]
        return torch.Size([x.shape[0], weight.shape[1] * self.groups, *places])


def _of_images(operand: Operand | None) -> Per | None:
    return Per.EXAMPLE if operand is not None and operand.per is Per.ROW else None


def _weight_gradient(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    how: Images | TurnedImages,
    output_padding: Numbers | None,
) -> Tensor:
    found = torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight.detach(),
        None,
        how.stride,
        how.padding,
        how.dilation,
        output_padding is not None,
        output_padding or [0] * len(how.stride),
        how.groups,
        [False, True, False],
    )
    result: Tensor = found[1]
    return result


def padded_by_name(
    x: Float[Tensor, "*shape"], weight: Tensor, dilation: Numbers, padding: str
) -> Tensor:
    """Return an input with zeros around it, where a convolution names its padding.

    Args:
        x: The input.
        weight: Of the convolution.
        dilation: Of the convolution.
        padding: ``same`` or ``valid``.
    """
    if padding == "valid":
        return x
    sides: list[int] = []
    for size, spread in zip(reversed(weight.shape[2:]), reversed(dilation), strict=True):
        both = spread * (size - 1)
        sides += [both // 2, both - both // 2]
    return F.pad(x, sides)


def rows_of_table(operand: Operand | None) -> Operand | None:
    """Return how what is looked up in a table is rounded: each row by itself."""
    if operand is None or operand.per in {Per.ROW, Per.BLOCK}:
        return operand
    return replace(operand, per=Per.ROW)
