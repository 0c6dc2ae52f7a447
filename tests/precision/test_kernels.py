"""Kernels give what their emulation gives, row by row, whatever the shape."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dither.precision import integers
from dither.precision.blocks import Per
from dither.precision.capability import processor
from dither.precision.formats import Quantized
from dither.precision.kernels import (
    Convolution,
    Kernel,
    convolution,
    convolution_back,
    described,
    exact_products,
    kernel_of,
    kernels_of,
    product,
    product_back,
)
from dither.precision.recipe import RECIPES, parse_recipe

needs_int8 = pytest.mark.skipif(not processor().int8, reason="no 8-bit integer units here")
needs_bf16 = pytest.mark.skipif(not processor().bf16, reason="no bfloat16 units here")
SHAPES = [((33, 70), 24), ((5, 4, 64), 33), ((70,), 9), ((1, 8), 1), ((300, 2000), 7), ((0, 8), 3)]
CONVOLUTIONS = [
    ((4, 6, 9, 9), (8, 3, 3, 3), Convolution((2, 2), (1, 1), (1, 1), 2)),
    ((4, 6, 9, 9), (8, 6, 3, 3), Convolution((1, 1), (1, 1), (1, 1))),
    ((4, 6, 9, 9), (8, 6, 2, 3), Convolution((1, 1), (0, 2), (2, 1))),
    ((4, 6, 9, 9), (8, 6, 1, 1), Convolution((1, 1), (1, 1), (1, 1))),  # padding beyond the kernel
    ((3, 160, 5, 5), (4, 160, 3, 3), Convolution((1, 1), (1, 1), (1, 1))),  # sums beyond 2^24
    ((3, 6, 11), (4, 6, 5), Convolution((1,), (2,), (1,))),
    ((2, 3, 4, 5, 6), (2, 3, 2, 2, 2), Convolution((1, 2, 1), (0, 0, 0), (1, 1, 1))),
]


@contextmanager
def no_kernels() -> Iterator[None]:
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = True  # type: ignore[assignment]


def matrices(name: str, shape: tuple[int, ...], outputs: int) -> list[Quantized]:
    recipe = parse_recipe(name)
    x, weight = torch.randn(shape), torch.randn(outputs, shape[-1])
    gradient = torch.randn(*shape[:-1], outputs)
    return [
        recipe.activation(x),
        recipe.weight(weight),
        recipe.gradient(gradient),
        recipe.weight(weight, axis=0),
    ]


def images(
    name: str, shape: tuple[int, ...], weight_shape: tuple[int, ...], how: Convolution
) -> list[Quantized]:
    recipe = parse_recipe(name)
    x, weight = torch.randn(shape), torch.randn(weight_shape)
    gradient = torch.randn_like(integers.forward(x, weight, how))
    per = None if "mx" in name else Per.EXAMPLE
    return [
        recipe.activation(x, axis=1, per=per),
        recipe.weight(weight),
        recipe.gradient(gradient, axis=1, per=per),
        recipe.weight(weight, axis=0),
    ]


def exactly(one: Quantized, other: Quantized, axis: int) -> Tensor:
    x, weight = one.values().double(), other.values().double()
    return F.linear(x, weight if axis == 1 else weight.t())


@needs_int8
@pytest.mark.parametrize("name", ["int8", "int8-tensor", "int8:stochastic", "int4"])
@pytest.mark.parametrize(("shape", "outputs"), SHAPES)
def test_int8_matrices_equal_their_emulation_to_the_bit(
    name: str, shape: tuple[int, ...], outputs: int
) -> None:
    x, weight, gradient, back = matrices(name, shape, outputs)
    real = product(x, weight), product_back(gradient, back)
    expected = Kernel.EMULATED if name == "int4" or not x.codes.numel() else Kernel.INT8
    assert {kernel_of(x, weight), kernel_of(gradient, back, axis=0)} == {expected}
    with no_kernels():
        assert kernel_of(x, weight) is Kernel.EMULATED
        emulated = product(x, weight), product_back(gradient, back)
    for found, other in zip(real, emulated, strict=True):
        assert torch.equal(found, other)
    assert (real[0].shape, real[1].shape) == (gradient.shape, x.shape)


@needs_int8
@pytest.mark.parametrize(("shape", "weight", "how"), CONVOLUTIONS)
def test_int8_convolutions_equal_their_emulation_to_the_bit(
    shape: tuple[int, ...], weight: tuple[int, ...], how: Convolution
) -> None:
    x, w, gradient, back = images("int8", shape, weight, how)
    real = convolution(x, w, how), convolution_back(gradient, back, how, x.shape)
    assert (kernel_of(x, w) is Kernel.INT8) == (len(shape) == 4)
    with no_kernels():
        emulated = convolution(x, w, how), convolution_back(gradient, back, how, x.shape)
    for found, other in zip(real, emulated, strict=True):
        assert torch.equal(found, other)


@needs_int8
def test_whole_numbers_add_up_exactly_even_beyond_float32() -> None:
    """4096 products of 127 by 127 are 66 million, more than float32 counts to one by one."""
    x = torch.full((2, 4096), 127, dtype=torch.int8)
    weight = x.clone()
    weight[0, 0] = 126
    expected = torch.tensor([[127 * 127 * 4096 - 127, 127 * 127 * 4096]] * 2, dtype=torch.int64)
    assert integers.multiplies(x, weight)
    real = integers.multiply(x, weight)
    with no_kernels():
        assert torch.equal(integers.multiply(x, weight), real)
    assert torch.equal(real, expected.float())


@pytest.mark.parametrize("inputs", [66_000, 140_000])
def test_sums_that_32_bits_do_not_hold_go_elsewhere(inputs: int) -> None:
    """140,000 products of 127 by 127 are more than 2^31: an 8-bit kernel would turn their sign."""
    x, weight = torch.full((2, inputs), 127, dtype=torch.int8), torch.full((3, inputs), 127)
    weight = weight.to(torch.int8)
    expected = torch.full((2, 3), float(127 * 127 * inputs))
    assert torch.equal(integers.multiply(x, weight), expected)
    assert integers.multiplies(x, weight) == (processor().int8 and inputs < 100_000)
    images, kernel = x.view(2, -1, 1, 1), weight.view(3, -1, 1, 1)
    how = Convolution((1, 1), (0, 0), (1, 1))
    turned = kernel.transpose(0, 1).contiguous()  # of an input's gradient
    back = integers.convolve_back(images, turned, how, (2, 3, 1, 1))
    for found in (integers.convolve(images, kernel, how), back):
        assert ((found.view(2, 3) - expected).abs() <= 2.0**-23 * 255 * 127 * inputs).all()


@needs_int8
@pytest.mark.parametrize("terms", [518, 519, 4608, 66_000])
def test_a_convolution_s_kernel_rounds_its_sums_as_float32_does(terms: int) -> None:
    """It adds activations without their sign, up to 255·127 each, and puts that right in float32.

    So up to 518 products every sum is exact; beyond them it is within two roundings.
    """
    x = torch.full((2, terms, 1, 1), 127, dtype=torch.int8)
    weight = torch.full((3, terms, 1, 1), 127, dtype=torch.int8)
    weight[0, 0], weight[1, ::2], x[1, 1::2] = 126, -127, 11
    assert integers.convolves(x, weight)
    found = integers.convolve(x, weight, Convolution((1, 1), (0, 0), (1, 1))).view(2, 3)
    exact = x.view(2, -1).double() @ weight.view(3, -1).double().t()
    allowed = 0.0 if terms <= 518 else 2.0**-23 * 255 * 127 * terms
    assert ((found.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("name", list(RECIPES))
@pytest.mark.parametrize(("shape", "outputs"), SHAPES[:3])
def test_products_are_those_of_the_rounded_values(
    name: str, shape: tuple[int, ...], outputs: int
) -> None:
    x, weight, gradient, back = matrices(name, shape, outputs)
    own = 2.0**-8 if name == "bf16" else 0.0  # a bfloat16 product is rounded to bfloat16
    for found, exact, left, right in (
        (product(x, weight), exactly(x, weight, 1), x, weight.values()),
        (product_back(gradient, back), exactly(gradient, back, 0), gradient, back.values().t()),
    ):
        size = F.linear(left.values().double().abs(), right.double().abs())
        assert ((found - exact).abs() <= own * exact.abs() + 1e-5 * size).all()


@pytest.mark.parametrize("name", list(RECIPES))
@pytest.mark.parametrize(("shape", "weight", "how"), CONVOLUTIONS[:3])
def test_convolutions_are_those_of_the_rounded_values(
    name: str, shape: tuple[int, ...], weight: tuple[int, ...], how: Convolution
) -> None:
    x, w, gradient, back = images(name, shape, weight, how)
    own = 2.0**-8 if name == "bf16" else 0.0
    wide = [operand.values().double() for operand in (x, w, gradient, back)]
    forward = integers.forward(wide[0], wide[1], how)
    start = torch.zeros_like(wide[0], requires_grad=True)
    (input_gradient,) = torch.autograd.grad(integers.forward(start, wide[3], how), start, wide[2])
    for found, exact in (
        (convolution(x, w, how), forward),
        (convolution_back(gradient, back, how, x.shape), input_gradient),
    ):
        assert found.dtype == torch.float32
        assert (found - exact).abs().max() <= own * exact.abs().max() + 1e-5 * exact.abs().max()


@needs_bf16
@pytest.mark.parametrize(("shape", "outputs"), SHAPES[:5])
def test_bf16_equals_its_emulation_to_one_step(shape: tuple[int, ...], outputs: int) -> None:
    x, weight, gradient, back = matrices("bf16", shape, outputs)
    assert kernel_of(x, weight) is Kernel.BF16
    real = product(x, weight), product_back(gradient, back)
    with no_kernels():
        emulated = product(x, weight), product_back(gradient, back)
    for found, other, exact in zip(
        real, emulated, (exactly(x, weight, 1), exactly(gradient, back, 0)), strict=True
    ):
        assert torch.equal(found, found.bfloat16().float())
        near = (found - other).abs() <= 2.0**-7 * exact.abs() + 1e-4
        assert near.all()
        assert (found != other).double().mean() < 0.02 or found.numel() < 50


@pytest.mark.parametrize("name", ["bf16", "int8", "mxfp4", "luq-fp4", "fp8"])
@pytest.mark.parametrize("kind", ["matrices", "images"])
def test_rows_are_multiplied_each_by_itself(name: str, kind: str) -> None:
    """Exchange all rows but one: its product stays to the last bit, on whatever it runs."""
    found = []
    for others in (1.0, 0.0, 1e5, float("nan")):
        torch.manual_seed(4)
        recipe = parse_recipe(f"{name}:nearest")
        axis, per = -1, None
        shape: tuple[int, ...] = (64, 40)
        size: tuple[int, ...] = (16, 40)
        how = Convolution((1, 1), (1, 1), (1, 1))
        if kind == "images":
            axis, shape, size = 1, (64, 40, 5, 5), (16, 40, 3, 3)
            per = None if "mx" in name else Per.EXAMPLE
        x, weight = torch.randn(shape), recipe.weight(torch.randn(size))
        keep = x[37].clone()
        x *= others
        x[37] = keep
        operand = recipe.activation(x, axis=axis, per=per)
        y = product(operand, weight) if axis == -1 else convolution(operand, weight, how)
        found.append(y[37])
    for other in found[1:]:
        assert torch.equal(found[0], other)


def test_exact_products_use_no_kernel_and_no_batch() -> None:
    x, weight, *_ = matrices("bf16", (300, 70), 24)
    one = Quantized(x.codes[7:8], None, x.format, x.per, x.axis)
    with exact_products():
        assert kernel_of(x, weight) is Kernel.EMULATED
        assert torch.equal(product(x, weight)[7:8], product(one, weight))
    assert (kernel_of(x, weight) is Kernel.BF16) == processor().bf16


@pytest.mark.parametrize("name", ["bf16", "int8", "luq-fp4"])
def test_under_vmap_products_are_emulated(name: str) -> None:
    recipe = parse_recipe(f"{name}:nearest")
    x, weight = torch.randn(6, 3, 64), torch.randn(8, 64)
    together = torch.func.vmap(lambda v: product(recipe.activation(v), recipe.weight(weight)))(x)
    apart = product(recipe.activation(x), recipe.weight(weight))
    assert torch.allclose(together, apart, rtol=2.0**-7, atol=1e-4)


def test_every_recipe_says_whether_it_is_real() -> None:
    for name, recipe in RECIPES.items():
        real = (name == "bf16" and processor().bf16) or (
            name.startswith("int8") and processor().int8
        )
        assert described(recipe) == (f"real ({name.split('-')[0]})" if real else "emulated")
        assert all(kernel.real == real for kernel in kernels_of(recipe))
    mixed = parse_recipe("weights=bf16,activations=bf16")
    words = "forward real (bf16), backward emulated" if processor().bf16 else "emulated"
    assert described(mixed) == words
