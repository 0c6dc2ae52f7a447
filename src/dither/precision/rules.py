"""How clipping reads quantised layers: its own rules, given the rounded operands.

A rule of `dither.clipping` makes an output's tap and its forms from an input and a call. Here the
input is the rounded one and the call the quantised product, and between the tapped output and what
the model gets stands the rounding of its gradient: norm and weighted product hence see the very
same rounded operands, and whatever is shown of a rule holds here too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dither.clipping.arithmetic import as_float
from dither.clipping.capture import Call, Capture, Rule
from dither.clipping.rules.convolution import convolution, transposed_convolution
from dither.clipping.rules.embedding import (
    constant_places,
    embedding,
    embedding_bag,
    no_mixing_options,
)
from dither.clipping.rules.linear import addmm, linear, matmul, repeats_constants
from dither.clipping.rules.registry import register_expander, register_guard, register_rule
from dither.clipping.unsupported import UnsupportedError
from dither.precision.formats import Quantized
from dither.precision.functions import (
    Link,
    bag,
    gradient_rounded,
    multiply,
    quantized_bag,
    quantized_product,
    quantized_table,
    rows_rounded,
    sums_rounded,
)
from dither.precision.operands import Rounder
from dither.precision.products import Images, Matrix, Product, TurnedImages


@register_rule(quantized_product)
def product_rule(capture: Capture, call: Call) -> Tensor:
    """Record the product under the rule of the function that it stands for."""
    x, weight, bias, product, recipe = call.args
    if capture.target(x) is not None:
        raise UnsupportedError("a parameter that goes into another one's quantised layer")
    wide, link, rounder = as_float(x), Link(), Rounder.of(recipe)
    rounded = rounder.input(wide, product)
    # Plain autograd would give the weight a gradient summed over examples: nobody wants it here.
    anchor = torch.empty(0, requires_grad=torch.is_grad_enabled())
    fixed = None if bias is None else bias.detach()

    def quantized(*_: Any) -> Tensor:
        return multiply(
            wide,
            weight.detach(),
            fixed,
            product,
            rounder,
            rounded=rounded,
            link=link,
            anchor=anchor,
        )

    rule, given = _as_written(product, _operand(rounded, wide), weight, bias)
    output: Tensor = rule(capture, Call(quantized, given, {}))
    return gradient_rounded(output, product, rounder, link)


def _operand(rounded: Quantized, like: Tensor) -> Tensor:
    """Return the rounded input: bfloat16 as it is, which widens without loss where it is used."""
    if rounded.codes.dtype == torch.bfloat16 and like.dtype == torch.float32:
        return rounded.codes
    return rounded.values().to(like.dtype)


def _as_written(
    product: Product, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Rule, tuple[Any, ...]]:
    """Return the rule of torch's own function, and that function's arguments."""
    if isinstance(product, Matrix):
        if not product.turned:
            return linear, (x, weight, bias)
        return (matmul, (x, weight)) if bias is None else (addmm, (bias, x, weight))
    if isinstance(product, Images):
        how = (product.stride, product.padding, product.dilation, product.groups)
        return convolution, (x, weight, bias, *how)
    assert isinstance(product, TurnedImages)  # noqa: S101 - there are three
    places = (product.stride, product.padding, product.output_padding)
    return transposed_convolution, (x, weight, bias, *places, product.groups, product.dilation)


@register_expander(quantized_product)
def product_of_constants(capture: Capture, call: Call) -> Tensor | None:
    """Record a layer on the same constants for each example, as `linear.constant_inputs` does."""
    x, _, _, product, _ = call.args
    plain = isinstance(product, Matrix) and not product.turned
    repeated = plain and repeats_constants(capture, x)
    return product_rule(capture, call) if repeated else None


@register_rule(quantized_table)
def table_rule(capture: Capture, call: Call) -> Tensor:
    """Record the look-up; rounding is between it and the model."""
    _, _, look_up, recipe = call.args
    return rows_rounded(embedding(capture, look_up), recipe)


@register_expander(quantized_table)
def table_of_constants(capture: Capture, call: Call) -> Tensor | None:
    """Record a look-up of the same places for each example, as positions often are."""
    _, _, look_up, recipe = call.args
    found = constant_places(capture, look_up)
    return None if found is None else rows_rounded(found, recipe)


@register_rule(quantized_bag)
def bag_rule(capture: Capture, call: Call) -> Tensor:
    """Record the sums of rounded rows."""
    _, _, look_up, recipe = call.args
    return sums_rounded(embedding_bag(capture, bag(look_up, recipe)), recipe)


@register_guard(quantized_table, quantized_bag)
def no_mixing_tables(call: Call) -> None:
    """Refuse look-ups that depend on the whole batch, quantised as they are."""
    no_mixing_options(call.args[2])
