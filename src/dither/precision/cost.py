"""What low precision buys in time: measured layer by layer here, projected for other hardware.

A layer of a private step makes three products: forward, the gradient of its input, and the weighted
sum over examples. Low precision takes the first two; the third stays in float32 (its rounding is
part of the privacy guarantee).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dither.errors import ConfigError
from dither.precision.kernels import described, kernels_of, product, product_back
from dither.precision.recipe import Recipe

# Rates of products over bf16's that hardware with these formats promises.
PROJECTED_RATES = {"fp8": 2.0, "fp4": 4.0}
PUBLISHED_SPEEDUP = 2.21  # DPQuant (Gao et al., ICLR'26): theoretical throughput, their own model


@dataclass(frozen=True)
class Shape:
    """The products of one layer in a step.

    Attributes:
        name: Of the layer.
        rows: Rows of its input in a batch: examples, times tokens or places.
        inputs: Numbers summed over.
        outputs: Numbers made.
        input_gradient: Whether the backward pass needs its input's gradient; a first layer's not.
    """

    name: str
    rows: int
    inputs: int
    outputs: int
    input_gradient: bool = True

    @property
    def operations(self) -> float:
        """Additions and multiplications of one product."""
        return 2.0 * self.rows * self.inputs * self.outputs


def shapes_of(
    weights: Mapping[str, Sequence[int]],
    flops: Mapping[str, float],
    batch_size: int,
    *,
    without_gradient: Collection[str] = (),
) -> tuple[Shape, ...]:
    """Return the products of a model's layers, those that compute nothing left out.

    Args:
        weights: Shape of each layer's weight, outputs first. A convolution counts as the product of
            its unfolded input.
        flops: Of each layer's forward pass, an example.
        batch_size: Examples a step.
        without_gradient: Layers whose input needs no gradient.
    """
    found = []
    for name, (outputs, *rest) in weights.items():
        inputs = math.prod(rest)
        rows = round(flops[name] * batch_size / (2.0 * outputs * inputs))
        if rows:
            found.append(Shape(name, rows, inputs, outputs, name not in without_gradient))
    return tuple(found)


@dataclass(frozen=True)
class LayerTime:
    """What the products of one layer take here, in seconds.

    Attributes:
        shape: The layer.
        forward: In float32.
        back: The input's gradient in float32; 0 where none is needed.
        weighted: The weighted sum over examples, in float32 in any case.
        low_forward: Under the recipe, rounding of activations and weight included, and what the
            weighted sum needs of them in float32.
        low_back: Likewise, of the output's gradient and weight.
    """

    shape: Shape
    forward: float
    back: float
    weighted: float
    low_forward: float
    low_back: float

    @property
    def full(self) -> float:
        """All three products in float32."""
        return self.forward + self.back + self.weighted

    @property
    def low(self) -> float:
        """The three under the recipe."""
        return self.low_forward + self.low_back + self.weighted


def measure_layer(shape: Shape, recipe: Recipe, *, repeats: int = 5) -> LayerTime:
    """Return what a linear layer's products take here, as medians."""
    x, weight, gradient = operands(shape.rows, shape.inputs, shape.outputs)

    def timed(work: Callable[[], object]) -> float:
        return median_seconds(work, repeats=repeats)

    def low_forward() -> None:
        rounded = recipe.activation(x)
        product(rounded, recipe.weight(weight))
        rounded.values()

    def low_back() -> None:
        rounded = recipe.gradient(gradient)
        if needed:
            product_back(rounded, recipe.weight(weight, axis=0))
        rounded.values()

    needed = shape.input_gradient
    return LayerTime(
        shape,
        forward=timed(lambda: F.linear(x, weight)),
        back=timed(lambda: gradient @ weight) if needed else 0.0,
        weighted=timed(lambda: gradient.t() @ x),
        low_forward=timed(low_forward),
        low_back=timed(low_back),
    )


def gaining(layers: Sequence[LayerTime]) -> tuple[str, ...]:
    """Return the names of layers that are faster under the recipe; small ones are not."""
    return tuple(layer.shape.name for layer in layers if layer.low < layer.full)


def speedup(layers: Sequence[LayerTime], chosen: Collection[str], *, step: float) -> float:
    """Return how much shorter a step gets when some of its layers run in low precision.

    That is T / (T - Σ (full_l - low_l)) over the chosen layers l: what is not a product (norms,
    activations, noise, the optimiser) stays.

    Args:
        layers: Measured.
        chosen: Names of layers in low precision.
        step: T, the time of a whole float32 private step in seconds.

    Raises:
        ConfigError: A name that no layer has, or a step shorter than what it saves.
    """
    unknown = {*chosen} - {layer.shape.name for layer in layers}
    saved = sum(layer.full - layer.low for layer in layers if layer.shape.name in chosen)
    if unknown or not step > 0.0 or saved >= step:
        raise ConfigError(
            expected="measured layers, and a step longer than what its layers save",
            got=", ".join(sorted(unknown)) or f"{saved:.4g} s saved of {step:.4g} s",
            fix="measure layers and step on the same machine and batch",
        )
    return step / (step - saved)


def share_of(shapes: Sequence[Shape], chosen: Collection[str]) -> float:
    """Return the share of a forward pass's operations that is in some layers."""
    total = sum(shape.operations for shape in shapes)
    return sum(shape.operations for shape in shapes if shape.name in chosen) / total


def projected_speedup(
    *,
    fraction: float,
    rate: float,
    forward: float = 1.0,
    back: float = 1.0,
    weighted: float = 1.0,
    other: float = 0.0,
    low_weighted: bool = False,
) -> float:
    """Return the speed-up over bf16 that hardware with a faster format would give: a projection.

    It is (F + G + W + O) / ((F + G)·(1 - f + f/r) + W + O): forward and input-gradient products of
    a share f of compute run r times as fast as bf16 ones. With ``low_weighted`` W is scaled as F
    and G are: what counts every product as quantised, which ours are not.

    Args:
        fraction: f, share of compute in low precision, in [0, 1].
        rate: r, rate of the format over bf16: `PROJECTED_RATES`.
        forward: F, time of forward products at the bf16 rate, in any unit.
        back: G, of input gradients.
        weighted: W, of weighted sums over examples.
        other: O, of everything else.
        low_weighted: Whether W runs in low precision too.

    Raises:
        ConfigError: A fraction or rate out of range.
    """
    if not 0.0 <= fraction <= 1.0 or not rate >= 1.0:
        raise ConfigError(
            expected="a fraction in [0, 1] and a rate of at least 1",
            got=f"{fraction} and {rate}",
            fix="give for instance fraction=0.9, rate=4.0",
        )
    scale = 1.0 - fraction + fraction / rate
    low = forward + back + (weighted if low_weighted else 0.0)
    kept = other + (0.0 if low_weighted else weighted)
    return (low + kept) / (low * scale + kept)


@dataclass(frozen=True)
class Rate:
    """What one product costs here in a recipe.

    Attributes:
        recipe: Its name.
        kernel: What forward and backward products run on, "emulated" where on float32.
        seconds: Of a forward product of rounded operands.
        rounding: Of rounding its activations.
        float32: Seconds of the product in float32.
        operations: Of the product.
    """

    recipe: str
    kernel: str
    seconds: float
    rounding: float
    float32: float
    operations: float

    @property
    def ratio(self) -> float:
        """Rounding and product over the float32 product: below 1 is faster."""
        return (self.seconds + self.rounding) / self.float32


def measure_rates(
    recipes: Sequence[Recipe],
    *,
    rows: int = 4096,
    inputs: int = 512,
    outputs: int = 512,
    device: str = "cpu",
    repeats: int = 7,
) -> tuple[Rate, ...]:
    """Return what one linear layer's forward product costs in each recipe.

    Args:
        recipes: Which.
        rows: Of activations.
        inputs: Summed over.
        outputs: Made.
        device: Where.
        repeats: The figure is their median.
    """
    x, weight, _ = operands(rows, inputs, outputs, device)

    def rate(recipe: Recipe) -> Rate:
        one, other = recipe.activation(x), recipe.weight(weight)
        return Rate(
            recipe.name,
            described(recipe, device),
            median_seconds(lambda: product(one, other), repeats=repeats),
            median_seconds(lambda: recipe.activation(x), repeats=repeats),
            median_seconds(lambda: F.linear(x, weight), repeats=repeats),
            2.0 * rows * inputs * outputs,
        )

    return tuple(map(rate, recipes))


def runs_for_real(recipe: Recipe, device: str = "cpu") -> bool:
    """Return whether both of a linear layer's low-precision products have kernels here."""
    return all(kernel.real for kernel in kernels_of(recipe, device))


def median_seconds(work: Callable[[], object], *, repeats: int) -> float:
    """Return the median time of a call after one that is not counted."""
    times = []
    for index in range(repeats + 1):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if index:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def operands(
    rows: int, inputs: int, outputs: int, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return activations, weight and output gradient of a linear layer to measure with."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = ((rows, inputs), (outputs, inputs), (rows, outputs))
    x, weight, gradient = (torch.randn(s, generator=generator, device=device) for s in shapes)
    return x, weight, gradient
