"""The cost model: its formulas against sums by hand, its measurements against whole products."""

from __future__ import annotations

import pytest
import torch

from dither.errors import ConfigError
from dither.precision.cost import (
    PROJECTED_RATES,
    LayerTime,
    Shape,
    gaining,
    measure_layer,
    measure_rates,
    median_seconds,
    projected_speedup,
    shapes_of,
    share_of,
    speedup,
)
from dither.precision.kernels import described
from dither.precision.recipe import RECIPES, parse_recipe

LAYERS = (
    LayerTime(Shape("first", 100, 10, 20, input_gradient=False), 1.0, 0.0, 1.0, 0.25, 0.125),
    LayerTime(Shape("second", 100, 20, 40), 2.0, 2.0, 2.0, 0.5, 0.5),
)


def test_a_step_is_shorter_by_what_its_layers_save() -> None:
    assert speedup(LAYERS, [], step=10.0) == 1.0
    assert speedup(LAYERS, ["second"], step=10.0) == pytest.approx(10 / (10 - 3))
    assert speedup(LAYERS, ["first", "second"], step=10.0) == pytest.approx(10 / (10 - 3 - 0.625))


@pytest.mark.parametrize(
    ("chosen", "step"), [(["third"], 10.0), (["second"], 3.0), ([], 0.0), ([], float("nan"))]
)
def test_what_cannot_be_reckoned(chosen: list[str], step: float) -> None:
    with pytest.raises(ConfigError):
        speedup(LAYERS, chosen, step=step)


def test_layers_gain_where_rounding_costs_less_than_it_saves() -> None:
    slow = LayerTime(Shape("slow", 100, 20, 2), 0.1, 0.1, 0.1, 0.3, 0.1)
    assert gaining([*LAYERS, slow]) == ("first", "second")


def test_shares_of_compute() -> None:
    shapes = [layer.shape for layer in LAYERS]
    assert share_of(shapes, ["second"]) == pytest.approx(0.8)
    assert share_of(shapes, []) == 0.0
    assert shapes[1].operations == 2 * 100 * 20 * 40


def test_shapes_follow_from_flops() -> None:
    weights = {"linear": (20, 10), "convolution": (8, 3, 3, 3), "table": (100, 5)}
    flops = {"linear": 2.0 * 20 * 10, "convolution": 2.0 * 8 * 27 * 64, "table": 0.0}
    found = shapes_of(weights, flops, 16, without_gradient=["convolution"])
    assert found == (
        Shape("linear", 16, 10, 20),
        Shape("convolution", 16 * 64, 27, 8, input_gradient=False),
    )


def test_projected_speedups_by_hand() -> None:
    """At 90 % and rate 4: forward and back take 0.325 each of their time, the third all of it."""
    assert PROJECTED_RATES == {"fp8": 2.0, "fp4": 4.0}
    assert projected_speedup(fraction=0.9, rate=4.0) == pytest.approx(3 / (2 * 0.325 + 1))
    assert projected_speedup(fraction=0.9, rate=2.0) == pytest.approx(3 / (2 * 0.55 + 1))
    assert projected_speedup(fraction=0.9, rate=4.0, low_weighted=True) == pytest.approx(1 / 0.325)
    assert projected_speedup(fraction=0.0, rate=4.0) == 1.0
    assert projected_speedup(fraction=1.0, rate=1.0) == 1.0
    with_more = projected_speedup(fraction=0.9, rate=4.0, back=0.5, weighted=2.0, other=1.0)
    assert with_more == pytest.approx(4.5 / (1.5 * 0.325 + 3))


@pytest.mark.parametrize(("fraction", "rate"), [(-0.1, 2.0), (1.1, 2.0), (0.5, 0.5)])
def test_projections_out_of_range(fraction: float, rate: float) -> None:
    with pytest.raises(ConfigError):
        projected_speedup(fraction=fraction, rate=rate)


def test_a_layer_is_measured_product_by_product() -> None:
    found = measure_layer(Shape("layer", 64, 32, 32), parse_recipe("int8"), repeats=2)
    parts = (found.forward, found.back, found.weighted, found.low_forward, found.low_back)
    assert all(seconds > 0 for seconds in parts)
    assert found.full == pytest.approx(sum(parts[:3]))
    assert found.low == pytest.approx(sum(parts[2:]))
    first = measure_layer(
        Shape("layer", 64, 32, 32, input_gradient=False), parse_recipe("bf16"), repeats=2
    )
    assert first.back == 0.0
    assert first.low_back > 0.0  # its output's gradient is rounded all the same


def test_rates_of_every_recipe_say_what_they_ran_on() -> None:
    found = measure_rates([*RECIPES.values()], rows=64, inputs=32, outputs=32, repeats=2)
    assert [rate.recipe for rate in found] == [*RECIPES]
    for rate in found:
        assert rate.kernel == described(RECIPES[rate.recipe])
        assert rate.ratio == pytest.approx((rate.seconds + rate.rounding) / rate.float32)
        assert rate.operations == 2 * 64 * 32 * 32


def test_the_median_leaves_out_the_first_call() -> None:
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        if len(calls) == 1:
            torch.randn(2000, 2000).sum()

    median_seconds(work, repeats=3)
    assert len(calls) == 4
