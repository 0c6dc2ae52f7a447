"""Products and look-ups of rounded operands, straight through the rounding backwards.

With Q_w, Q_a, Q_g of the recipe, a layer computes ``y = Q_a(x)·Q_w(w) + b``; backwards,
``ĝ = Q_g(g)``, the gradient of x is ``ĝ·Q_w(w)`` and that of w is, example by example,
``ĝᵢ·Q_a(xᵢ)``: derivatives of rounding count as one (Bengio et al. 1308.3432). The weight's and the
bias's gradients are float32 products of the very operands that are measured, never of fewer bits.

Functions here are `overridable`, so that clipping sees them (`dither.precision.rules`).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dither.clipping.arithmetic import as_float
from dither.clipping.capture import Call
from dither.clipping.rules.registry import overridable
from dither.precision import kernels
from dither.precision.blocks import Per
from dither.precision.formats import BF16, FLOAT32, Format, Quantized
from dither.precision.operands import Rounder
from dither.precision.products import Matrix, Product
from dither.precision.recipe import Recipe

_ROWS = Matrix()  # gradients of what is looked up have a scale a row


@dataclass(frozen=True)
class _Kind:
    """What a `Quantized` is beside its tensors: those go through autograd by themselves."""

    format: Format
    per: Per
    axis: int

    @classmethod
    def of(cls, found: Quantized) -> _Kind:
        return cls(found.format, found.per, found.axis)

    def join(self, codes: Tensor, scale: Tensor | None) -> Quantized:
        return Quantized(codes, scale, self.format, self.per, self.axis)


@dataclass
class Link:
    """Carries a rounded gradient's codes from where it was rounded to the product after it."""

    gradient: Quantized | None = None

    def take(self, values: Tensor, rounder: Rounder) -> Quantized:
        """Return the codes that were left here, once; else codes for values that are rounded."""
        found, self.gradient = self.gradient, None
        if found is not None:
            return found
        operand = None if rounder.smooth else rounder.recipe.gradients
        exact = BF16 if operand is not None and operand.format is BF16 else FLOAT32
        return exact.encode(values)


@dataclass(frozen=True)
class _Plan:
    """How a product is made.

    Attributes:
        product: Of what kind.
        rounder: Of operands.
        x: What the rounded input is.
        weight: What the rounded weight is.
        shape: Of the input.
        link: To where the output's gradient is rounded.
    """

    product: Product
    rounder: Rounder
    x: _Kind
    weight: _Kind
    shape: torch.Size
    link: Link


class _Multiplied(torch.autograd.Function):
    """The product of rounded operands; its output's gradient comes rounded."""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd's own way
        x: Tensor,
        weight: Tensor,  # noqa: ARG004 - has a gradient
        bias: Tensor | None,
        anchor: Tensor | None,  # noqa: ARG004 - makes the output differentiable
        x_codes: Tensor,
        x_scale: Tensor | None,
        w_codes: Tensor,
        w_scale: Tensor | None,
        plan: _Plan,
    ) -> Tensor:
        given, by = plan.x.join(x_codes, x_scale), plan.weight.join(w_codes, w_scale)
        with _products(x):
            output = plan.product.forward(given, by)
        found = plan.product.with_bias(output.to(x.dtype), bias)
        # As torch's own: a model may look at it with `view`, however the operand was laid out.
        return found.contiguous() if x.is_contiguous() else found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        _, weight, _, _, x_codes, x_scale, w_codes, w_scale, plan = inputs
        ctx.plan = plan
        back, own = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        same = plan.rounder.recipe.weight_serves_both
        ctx.save_for_backward(
            weight if own or (back and not same) else None,
            *((x_codes, x_scale) if own else (None, None)),
            *((w_codes, w_scale) if back and same else (None, None)),
        )

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        weight, x_codes, x_scale, w_codes, w_scale = ctx.saved_tensors
        rounded = plan.link.take(gradient, plan.rounder)
        found: list[Tensor | None] = [None] * 9
        if ctx.needs_input_grad[0]:
            by = _weight_back(plan, weight, w_codes, w_scale)
            with _products(gradient):
                back = plan.product.back(rounded, by, plan.shape)
            found[0] = back.to(gradient.dtype)
        if ctx.needs_input_grad[1]:
            x = plan.x.join(x_codes, x_scale).values().to(gradient.dtype)
            found[1] = plan.product.of_weight(gradient, x, weight)
        if ctx.needs_input_grad[2]:
            found[2] = plan.product.of_bias(gradient)
        return tuple(found)


def _weight_back(
    plan: _Plan, weight: Tensor | None, codes: Tensor | None, scale: Tensor | None
) -> Quantized:
    if codes is not None:
        return plan.weight.join(codes, scale)
    assert weight is not None  # noqa: S101 - one of the two was kept
    return plan.rounder.weight(weight, plan.product, forward=False)


def _products(like: Tensor) -> Any:
    """Multiply in float64 for models in float64."""
    return kernels.exact_products() if like.dtype == torch.float64 else nullcontext()


class _GradientRounded(torch.autograd.Function):
    """The identity; its gradient is rounded."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, product: Product, rounder: Rounder, link: Link) -> Tensor:  # noqa: ARG004
        return x.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        _, *ctx.how = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        product, rounder, link = ctx.how
        found = rounder.gradient(gradient, product)
        if found.codes.dtype != torch.float32 and _is_real(gradient):
            link.gradient = found
        return found.values().to(gradient.dtype), None, None, None


class _RowsRounded(torch.autograd.Function):
    """Rows of a table, rounded each by itself."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, rounder: Rounder) -> Tensor:
        return rounder.rows(x).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None: ...

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ARG004
        return gradient, None


def _is_real(tensor: Tensor) -> bool:
    """Return whether this is a tensor of numbers, not one that `torch.func` looks through."""
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # noqa: SLF001
    return not wrapped


def multiply(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    product: Product,
    rounder: Rounder,
    *,
    rounded: Quantized,
    link: Link,
    anchor: Tensor | None = None,
) -> Tensor:
    """Return the product of rounded operands, with gradients through to those not rounded.

    Args:
        x: The input, which gets a gradient.
        weight: The weight, rounded here.
        bias: Is added in full precision.
        product: How.
        rounder: Of the weight.
        rounded: The input rounded, by `Rounder.input`.
        link: That `gradient_rounded` is given as well.
        anchor: Something that requires a gradient, so that the output does.
    """
    by = rounder.weight(weight, product, forward=True)
    plan = _Plan(product, rounder, _Kind.of(rounded), _Kind.of(by), x.shape, link)
    output: Tensor = _Multiplied.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, anchor, rounded.codes, rounded.scale, by.codes, by.scale, plan
    )
    return output


def gradient_rounded(output: Tensor, product: Product, rounder: Rounder, link: Link) -> Tensor:
    """Return an output whose gradient will be rounded before anything is made of it.

    Args:
        output: Of a product, or of a look-up.
        product: How it came about.
        rounder: Of the gradient.
        link: To the product.
    """
    if rounder.recipe.gradients is None:
        return output
    found: Tensor = _GradientRounded.apply(output, product, rounder, link)  # type: ignore[no-untyped-call]
    return found


@overridable
def quantized_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, product: Product, recipe: Recipe
) -> Tensor:
    """Return what a layer gives in low precision; see the top of this file.

    Args:
        x: Its input.
        weight: Its weight, which stays as it is.
        bias: Its bias, not rounded.
        product: What the layer does.
        recipe: Formats.
    """
    wide, link, rounder = as_float(x), Link(), Rounder.of(recipe)
    rounded = rounder.input(wide, product)
    output = multiply(wide, weight, bias, product, rounder, rounded=rounded, link=link)
    return gradient_rounded(output, product, rounder, link)


@overridable
def quantized_table(tokens: Tensor, weight: Tensor, call: Call, recipe: Recipe) -> Tensor:  # noqa: ARG001
    """Return rows of a table in low precision: only those that are looked up are rounded.

    Args:
        tokens: Indices.
        weight: The table.
        call: Of `torch.nn.functional.embedding` with both.
        recipe: Formats of weights and gradients.
    """
    return rows_rounded(call.run(), recipe)


def rows_rounded(rows: Tensor, recipe: Recipe) -> Tensor:
    """Return rows of a table rounded, and their gradient as well."""
    rounder = Rounder.of(recipe)
    found: Tensor = _RowsRounded.apply(rows, rounder)  # type: ignore[no-untyped-call]
    return gradient_rounded(found, _ROWS, rounder, Link())


@overridable
def quantized_bag(tokens: Tensor, weight: Tensor, call: Call, recipe: Recipe) -> Tensor:  # noqa: ARG001
    """Return sums or means of rounded rows of a table.

    Args:
        tokens: Indices, ``[bags, entries]``.
        weight: The table.
        call: Of `torch.nn.functional.embedding_bag` with both.
        recipe: Formats of weights and gradients.
    """
    return sums_rounded(bag(call, recipe).run(), recipe)


def bag(call: Call, recipe: Recipe) -> Call:
    """Return a call of an embedding bag with its table rounded, all of it."""
    rounder = Rounder.of(recipe)

    @wraps(F.embedding_bag)
    def quantized(tokens: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        table = _RowsRounded.apply(weight, rounder)  # type: ignore[no-untyped-call]
        found: Tensor = F.embedding_bag(tokens, table, *args, **kwargs)
        return found

    return Call(quantized, call.args, call.kwargs)


def sums_rounded(sums: Tensor, recipe: Recipe) -> Tensor:
    """Return sums of rows whose gradient will be rounded."""
    return gradient_rounded(sums, _ROWS, Rounder.of(recipe), Link())
