"""Rounds what goes into a layer's products."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dither.clipping.randomness import draws_are_held
from dither.precision.blocks import Per, magnitude
from dither.precision.formats import FLOAT32, Quantized
from dither.precision.products import Product, rows_of_table
from dither.precision.recipe import Operand, Recipe


@dataclass(frozen=True)
class Rounder:
    """Rounds operands by a recipe; or bends them smoothly while examples are compared.

    Another batch shape rounds the last bit of a product otherwise, a quantiser makes a whole step
    of it, and the next layer many: an example alone and the same in a batch would differ though
    nothing is wrong. So while `clipping.check` compares them, a·tanh(x/a) stands for rounding, a
    being the largest magnitude of what shares a scale: it mixes what a scale mixes, has no jumps
    and no draws, and is far enough from x that a rule which took x itself would be found out. That
    formats themselves keep examples apart is `isolation`'s to show.

    Attributes:
        recipe: Formats.
        smooth: Whether to bend.
    """

    recipe: Recipe
    smooth: bool

    @classmethod
    def of(cls, recipe: Recipe) -> Rounder:
        """Return what rounds now; it goes on so in the backward pass, wherever that runs."""
        return cls(recipe, draws_are_held())

    def input(self, x: Tensor, product: Product) -> Quantized:
        """Return a layer's input rounded: the very numbers that its weight's gradient is made of.

        Args:
            x: The input.
            product: What it goes into.
        """
        per = product.per(self.recipe.activations)
        if self.smooth:
            return _bent(x, self.recipe.activations, per, product.axis)
        return _settled(self.recipe.activation(x, axis=product.axis, per=per))

    def weight(self, weight: Tensor, product: Product, *, forward: bool) -> Quantized:
        """Return a weight rounded for one of the two products.

        Args:
            weight: The weight.
            product: What it goes into.
            forward: Whether that is the forward one.
        """
        laid_out = product.laid_out(weight.detach())
        if self.smooth:
            return _bent(laid_out, self.recipe.weights, Per.TENSOR, 0)
        return _settled(self.recipe.weight(laid_out, axis=product.summed_axis(forward=forward)))

    def gradient(self, gradient: Tensor, product: Product) -> Quantized:
        """Return the gradient of an output rounded.

        Args:
            gradient: The gradient.
            product: What the output came out of.
        """
        per = product.per(self.recipe.gradients)
        if self.smooth:
            return _bent(gradient, self.recipe.gradients, per, product.axis)
        return self.recipe.gradient(gradient, axis=product.axis, per=per)

    def rows(self, rows: Tensor) -> Tensor:
        """Return rows of a table rounded as weights, each by itself."""
        operand = rows_of_table(self.recipe.weights)
        if self.smooth:
            return _bent(rows, operand, Per.ROW, -1).values()
        return rows if operand is None else operand.encode(rows, axis=-1).values()


def _settled(found: Quantized) -> Quantized:
    """Return formats that are emulated in float32 with their scales multiplied out, once."""
    if found.scale is None or found.codes.dtype != torch.float32:
        return found
    return FLOAT32.encode(found.values())


def _bent(x: Tensor, operand: Operand | None, per: Per | None, axis: int) -> Quantized:
    wide = FLOAT32.encode(x)
    if operand is None or not x.numel():
        return wide
    shared = per or operand.per
    largest = magnitude(wide.codes, Per.ROW if shared is Per.BLOCK else shared, axis)
    scale = largest.clamp_min(1e-30)
    return replace(wide, codes=torch.tanh(wide.codes / scale) * scale)
