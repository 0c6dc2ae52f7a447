"""Clipping under quantised layers: as exact as without, for every kind of layer and format."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.clipping import oracle
from tests.clipping.zoo import CASES
from tests.precision import quantized
from tests.precision.quantized import KINDS, RECIPES, ROWS, Quantized, held, of_zoo, relative
from torch import Tensor, nn
from torch.nn import functional as F

from dither.clipping import check
from dither.clipping.clipping import Clipping
from dither.clipping.engine import ClippingEngine
from dither.clipping.forms import Form, over_time
from dither.clipping.loss import ModelLoss
from dither.clipping.randomness import NoRandomness, draws_are_held, secret_generators
from dither.clipping.styles import Automatic, Flat, PerLayer
from dither.errors import ConfigError, DitherWarning, ModelError
from dither.noise.entropy import InsecureSeed
from dither.precision import functions
from dither.precision.products import Matrix
from dither.precision.recipe import parse_recipe
from dither.privacy.events import Relation

pytestmark = pytest.mark.filterwarnings(  # torch's own, of its own copy
    "ignore:Using padding='same' with even kernel lengths"
)

# The cheapest model of each family, for what is tried with every recipe.
FEW = ("linear_time_first", "matmul", "conv2d_grouped", "embedding_padding", "attention_separate")
# Numbers that are rounded from float64 to float32 may fall to the other side once in a long while.
EXACT = 1e-6
CROSS_ENTROPY = ModelLoss(lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"))


def check_each_example(name: str, recipe: str) -> None:
    """Compare a chunk's gradients with one backward pass an example, and their norms."""
    case = of_zoo(name, recipe)
    wanted = oracle.by_loop(case.model, case.loss, case.batch)
    plain = oracle.by_loop(case.model, CASES[name].loss, case.batch)
    gradients = case.gradients()
    for row, truth in enumerate(wanted):
        found = quantized.rows_of(gradients, row, case.model)
        assert relative(found, truth) < EXACT
        for key, form in gradients.forms.items():
            norm = float(torch.stack([part[row].double() for part in form.lengths()]).prod())
            size = float(truth[key].norm())
            assert abs(norm - size) <= EXACT * (size + 1e-6 * oracle.length(truth))
    # It is the quantised gradient that is compared, and not the plain one.
    assert max(relative(one, other) for one, other in zip(plain, wanted, strict=True)) > 1e-5


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_layer_as_one_backward_an_example(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held(monkeypatch, 0.3)
    check_each_example(name, "luq-fp4")


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe != "luq-fp4"])
@pytest.mark.parametrize("name", FEW)
def test_each_recipe_as_one_backward_an_example(
    name: str, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held(monkeypatch, 0.3)
    if recipe == "activations" and name == "embedding_padding":
        pytest.skip("a table has no activations to round")
    check_each_example(name, recipe)


@pytest.mark.full
@pytest.mark.parametrize("recipe", ["int8", "mxfp4", "luq-fp4"])
@pytest.mark.parametrize("name", quantized.quantisable())
def test_the_whole_zoo(name: str, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held(monkeypatch, 0.6)
    if name == "bag_max":
        pytest.skip("maxima over a bag stay in full precision")
    check_each_example(name, recipe)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [*((name, "luq-fp4") for name in FEW), *(("conv2d_grouped", recipe) for recipe in RECIPES)],
)
def test_with_real_draws_the_sum_is_that_of_plain_autograd(name: str, recipe: str) -> None:
    """One backward pass of the whole batch under the same secret seed draws the same numbers."""
    case = of_zoo(name, recipe)
    engine = oracle.engine(case.model, case.loss, Clipping(1e6), InsecureSeed(3))
    found = oracle.as_named(engine(case.batch, oracle.ticket()))
    assert engine.method == "bookkeeping"
    with secret_generators(torch.device("cpu"), InsecureSeed(3).seed()):
        total = case.loss.function(case.model, case.batch)
        leaves = torch.utils._pytree.tree_leaves(total)
        loss = torch.stack([leaf.sum() for leaf in leaves]).sum()
        parameters = dict(case.model.named_parameters())
        each = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    for key, gradient in zip(parameters, each, strict=True):
        if gradient is not None:
            wanted = gradient.to_dense().double()
            torch.testing.assert_close(found[key].double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "linear_sequence",
        "cnn",
        "bag_padding_mean",
        pytest.param("encoder_layer", marks=pytest.mark.full),
    ],
)
def test_every_style_clips_what_was_rounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held(monkeypatch, 0.3)
    case = of_zoo(name, "luq-fp4")
    each = oracle.by_loop(case.model, case.loss, case.batch)
    clip = sorted(oracle.length(gradient) for gradient in each)[ROWS // 2]
    engine = oracle.engine(case.model, case.loss, Clipping(clip, microbatch_size=3))
    for style in (Flat(), Flat(bound=0.35), Automatic(gamma=0.02), PerLayer()):
        engine.clipping = replace(engine.clipping, style=style)
        found = oracle.as_named(engine(case.batch, oracle.ticket()))
        assert relative(found, oracle.summed(each, style, clip, case.model)) < EXACT
    assert engine.method == "bookkeeping"


@pytest.mark.parametrize("recipe", ["bf16", "int8", "mxfp4", "luq-fp4"])
@pytest.mark.parametrize("name", FEW)
def test_the_reference_agrees(name: str, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.func runs each example through the quantised layers by itself."""
    held(monkeypatch, 0.3)
    case = of_zoo(name, recipe)
    each = oracle.by_loop(case.model, case.loss, case.batch)
    clip = sorted(oracle.length(gradient) for gradient in each)[ROWS // 2]
    engine = ClippingEngine(
        case.model, case.loss, Clipping(clip), InsecureSeed(1), method="reference"
    )
    found = oracle.as_named(engine(case.batch, oracle.ticket()))
    assert relative(found, oracle.summed(each, Flat(), clip, case.model)) < EXACT


def test_the_reference_draws_for_each_example_anew() -> None:
    case = of_zoo("linear_sequence", "luq-fp4")
    same = torch.utils._pytree.tree_map(lambda leaf: leaf[:1].expand(ROWS, 5, 4), case.batch)
    engine = ClippingEngine(
        case.model, case.loss, Clipping(1e6), InsecureSeed(1), method="reference"
    )
    assert len(set(engine.norms(same).tolist())) > 1


def test_formulas_by_hand() -> None:
    """ŷ = Q(x)Q(w)ᵀ + b; back ĝ = Q(g), ĝQ(w) to the input and Σ ĝᵢᵀQ(xᵢ) to the weight."""
    recipe = parse_recipe("weights=int4:nearest:tensor,activations=fp8_e4m3,gradients=int4")
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(5, 6, generator=generator, requires_grad=True)
    w = torch.randn(3, 6, generator=generator, requires_grad=True)
    b = torch.randn(3, generator=generator, requires_grad=True)
    g = torch.randn(5, 3, generator=generator)
    y = functions.quantized_product(x, w, b, Matrix(), recipe)
    y.backward(g)
    given, by = recipe.activation(x).values(), recipe.weight(w).values()
    back = recipe.gradient(g).values()
    assert x.grad is not None
    assert w.grad is not None
    assert b.grad is not None
    torch.testing.assert_close(y, given @ by.t() + b)
    torch.testing.assert_close(x.grad, back @ by)
    torch.testing.assert_close(w.grad, back.t() @ given)
    torch.testing.assert_close(b.grad, back.sum(0))
    assert not torch.allclose(back, g, atol=1e-3)


def test_a_rule_that_took_the_unrounded_input_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What stands for rounding while examples are compared is far enough from what it rounds."""
    case = of_zoo("linear_sequence", "luq-fp4")
    engine = oracle.engine(case.model, case.loss, Clipping(1.0))
    engine(case.batch, oracle.ticket())
    assert engine.method == "bookkeeping"
    (inputs,) = case.batch

    def unrounded(left: Tensor, right: Tensor, room: object = None) -> Form:
        return over_time(left, inputs[: right.shape[0]])

    monkeypatch.setattr("dither.clipping.rules.linear.over_time", unrounded)
    with pytest.warns(DitherWarning, match="disagree at 'weight'"):
        oracle.engine(case.model, case.loss, Clipping(1.0))(case.batch, oracle.ticket())


def test_in_a_comparison_a_deep_model_does_not_depend_on_the_shape_of_the_batch() -> None:
    """With real formats a last bit, which another shape rounds otherwise, grows to whole steps."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(12):
        layers += [nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(64, 3))
    batch = torch.randn(9, 64), torch.randint(0, 3, (9,))
    loss = quantized.all_chosen(CROSS_ENTROPY, model, parse_recipe("luq-fp4"))
    with NoRandomness(0.01):
        together = oracle.by_loop(model, loss, batch)
        alone = Quantized(model, loss, batch).gradients()
    for row, truth in enumerate(together):
        assert relative(quantized.rows_of(alone, row, model), truth) < 1e-4
    engine = oracle.engine(model, loss, Clipping(1.0))
    engine(batch, oracle.ticket())
    assert engine.method == "bookkeeping"


def test_draws_are_held_inside_and_not_behind() -> None:
    assert not draws_are_held()
    with NoRandomness(0.5):
        assert draws_are_held()
        with NoRandomness(0.1):
            assert draws_are_held()
        assert draws_are_held()
    assert not draws_are_held()


def test_a_table_of_constants_draws_for_each_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions are the same for all: their gradients are pulled back one example at a time."""
    case = of_zoo("positions", "gradients=luq-fp4:stochastic")
    parts = [case.gradients(seed=seed).forms["place.weight"].dense().clone() for seed in (1, 1, 2)]
    assert torch.equal(parts[0], parts[1])
    assert not torch.equal(parts[0], parts[2])


def test_a_loss_that_keeps_records_is_found_out_inside_a_quantised_one() -> None:
    kept: list[Tensor] = []

    def leaking(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        kept[:] = [batch[0]]
        found: Tensor = model(batch[0]).sum(1)
        return found

    model = nn.Linear(4, 3)
    loss = quantized.all_chosen(ModelLoss(leaking), model, parse_recipe("int8"))
    with pytest.raises(ModelError, match="a tensor of the batch kept in a variable of the loss"):
        oracle.engine(model, loss, Clipping(1.0))((torch.randn(5, 4),), oracle.ticket())


def test_add_remove_is_refused_by_every_engine() -> None:
    model = nn.Linear(4, 3)
    loss = quantized.all_chosen(ModelLoss(lambda m, b: m(b[0]).sum(1)), model, parse_recipe("int8"))
    with pytest.raises(ConfigError, match="add_remove"):
        oracle.engine(model, loss, Clipping(1.0, relation=Relation.ADD_REMOVE))
    for relation in (Relation.ZERO_OUT, Relation.REPLACE_ONE):
        oracle.engine(model, loss, Clipping(1.0, relation=relation))


def test_a_new_choice_is_checked_anew() -> None:
    """Quantised or not is part of how parameters meet examples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    batch = torch.randn(6, 4), torch.randint(0, 3, (6,))
    loss = quantized.all_chosen(CROSS_ENTROPY, model, parse_recipe("int8"))
    engine = oracle.engine(model, loss, Clipping(1.0))
    engine(batch, oracle.ticket())
    shown: list[int] = []
    original = check.show

    def watched(*args: Any, **kwargs: Any) -> Any:
        shown.append(1)
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "show", watched)
        engine(batch, oracle.ticket())  # the second call: 2 is a power of two
        shown.clear()
        engine(batch, oracle.ticket())
        assert not shown
        loss.choose(["2"])
        engine(batch, oracle.ticket())
    assert shown
