"""Rounding to whole numbers and grids, where draws come from, and how a recipe is read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dither.clipping.randomness import NoRandomness, secret_generators
from dither.errors import ConfigError
from dither.precision.blocks import Per
from dither.precision.formats import INT8, LUQ_FP4
from dither.precision.recipe import RECIPES, Operand, Recipe, parse_recipe
from dither.precision.rounding import Grid, Rounding, to_bfloat16, to_grid, to_whole

E2M1 = Grid(1, 0, 6.0)


def test_the_grid_of_e2m1_is_the_table_of_ocp_mx() -> None:
    """OCP MX v1.0, table 5."""
    assert E2M1.numbers() == (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def test_ties_go_to_even() -> None:
    assert to_whole(torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5]), Rounding.NEAREST).tolist() == [
        0.0,
        2.0,
        2.0,
        0.0,
        -2.0,
    ]
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -5.0])
    assert to_grid(ties, E2M1, Rounding.NEAREST).tolist() == [0, 1, 1, 2, 2, 4, 4, -4]


def test_beyond_the_largest_saturates() -> None:
    far = torch.tensor([6.1, 7.9, 1e30, -1e30])
    for rounding in Rounding:
        assert to_grid(far, E2M1, rounding).tolist() == [6, 6, 6, -6]


def test_a_draw_decides_up_or_down() -> None:
    x = torch.tensor([2.25, 2.25, -2.25, -2.25])
    u = torch.tensor([0.74, 0.76, 0.24, 0.26])
    assert to_whole(x, Rounding.STOCHASTIC, u).tolist() == [2, 3, -3, -2]


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0x7F800001, 0x7FC00000, -1, -0x400000])
def test_no_payload_of_nan_becomes_a_number(bits: int) -> None:
    x = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
    assert torch.isnan(x).all()
    for rounding in Rounding:
        assert torch.isnan(to_bfloat16(x, rounding, torch.full((1,), 0.999))).all()
        assert torch.isnan(to_grid(x, E2M1, rounding)).all()


class _Rounded(torch.autograd.Function):
    """Rounds forward and backward, as quantised layers do."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return LUQ_FP4.quantize(x, rounding=Rounding.STOCHASTIC)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return LUQ_FP4.quantize(gradient, rounding=Rounding.STOCHASTIC)


def _both_ways(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y: Tensor = _Rounded.apply(x)  # type: ignore[no-untyped-call]
    (gradient,) = torch.autograd.grad(y, x, x.detach().flip(0))
    return y.detach(), gradient


def test_draws_stand_still_where_the_engine_checks() -> None:
    x = torch.randn(50, 64)
    with NoRandomness(0.3):
        first, second = _both_ways(x)[0], _both_ways(x)[0]
        draws = torch.rand_like(x)  # what a backward pass shall use has to be drawn forward:
    assert torch.equal(first, second)  # torch calls it without the modes around it
    at = torch.full_like(x, 0.3)
    assert torch.equal(draws, at)
    expected = LUQ_FP4.quantize(x, rounding=Rounding.STOCHASTIC, uniform=at)
    assert torch.equal(first, expected)
    assert not torch.equal(_both_ways(x)[0], _both_ways(x)[0])


def test_draws_follow_the_engines_secret_and_no_public_seed() -> None:
    x = torch.randn(50, 64)
    device = torch.device("cpu")
    found = []
    for public, secret in ((0, 7), (1, 7), (0, 8)):
        torch.manual_seed(public)
        with secret_generators(device, secret):
            found.append(_both_ways(x))
    for way in (0, 1):
        assert torch.equal(found[0][way], found[1][way])
        assert not torch.equal(found[0][way], found[2][way])


@pytest.mark.parametrize("name", [*RECIPES, "luq-fp4:nearest", "bf16:stochastic"])
def test_a_recipe_by_name_and_its_json(name: str) -> None:
    recipe = parse_recipe(name)
    assert recipe.name == name
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert hash(recipe) == hash(parse_recipe(name))
    assert recipe.draws == ("stochastic" in str(recipe.to_json()))


def test_a_recipe_written_out() -> None:
    recipe = parse_recipe("weights=int8:tensor,gradients=luq-fp4:stochastic:row")
    assert recipe.weights == Operand(INT8, Rounding.NEAREST, Per.TENSOR)
    assert recipe.activations is None
    assert recipe.gradients == Operand(LUQ_FP4, Rounding.STOCHASTIC, Per.ROW)
    assert recipe.bits == 32
    assert Recipe.from_json(recipe.to_json()) == recipe
    x = torch.randn(3, 40)
    assert torch.equal(recipe.activation(x).values(), x)  # switched off
    assert not torch.equal(recipe.gradient(x).values(), x)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("int3", "luq-fp4"),
        ("int8:up", ":nearest"),
        ("weights=int8:diagonal", "tensor"),
        ("weights=int9", "int8"),
        ("weigths=int8", "weights="),
        ("weights=none", "rounds none"),
        ("activations=int8:tensor", "row, example, block"),
        ("gradients=int8:channel", "row, example, block"),
        ("weights=int8:example", "tensor, channel"),
        ("", "bf16"),
    ],
)
def test_what_is_no_recipe(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_recipe(text)


NOTHING: dict[str, object] = {"name": "x", "weights": None, "activations": None, "gradients": None}


@pytest.mark.parametrize("value", [{}, {"name": "x"}, NOTHING])
def test_what_is_no_json_of_a_recipe(value: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Recipe.from_json(value)


def test_a_weight_is_rounded_for_the_axis_that_is_summed_over() -> None:
    weight = torch.randn(6, 40, 3, 3)
    for name, forward, back in (
        ("int8", (6, 1, 1, 1), (1, 40, 1, 1)),
        ("int8-tensor", (1, 1, 1, 1), (1, 1, 1, 1)),
    ):
        recipe = parse_recipe(name)
        scales = [recipe.weight(weight, axis=axis).scale for axis in (1, 0)]
        assert [tuple(s.shape) for s in scales if s is not None] == [forward, back]
    mx = parse_recipe("mxfp4")
    for axis in (0, 1):  # blocks of 32 along the axis itself: 40 channels are two blocks
        along = weight.movedim(axis, -1)
        block = mx.weights.format.quantize(along[..., :32], per=Per.BLOCK)  # type: ignore[union-attr]
        found = mx.weight(weight, axis=axis).values().movedim(axis, -1)[..., :32]
        assert torch.equal(found, block)
    assert [parse_recipe(n).weight_serves_both for n in ("bf16", "int8", "int8-tensor")] == [
        True,
        False,
        True,
    ]
