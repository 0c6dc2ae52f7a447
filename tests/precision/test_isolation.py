"""One record's numbers under quantised layers: never another's, and never far from the charge."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

import pytest
import torch
from tests.clipping import neighbours, oracle
from tests.clipping.neighbours import CHARGED_SLACK, CLIP, LOSS, MODELS, made
from tests.precision import quantized
from tests.precision.quantized import RECIPES, Quantized
from torch import Tensor

from dither.clipping.clipping import Clipping
from dither.clipping.loss import losses_of
from dither.clipping.randomness import secret_generators
from dither.clipping.styles import Automatic, Flat, PerLayer, Style
from dither.errors import ConfigError
from dither.noise.entropy import InsecureSeed
from dither.precision import loss as loss_module
from dither.precision.blocks import Per
from dither.precision.formats import FLOAT32, INT8, Format
from dither.precision.formats import Quantized as Numbers
from dither.precision.isolation import check_isolation
from dither.precision.recipe import Operand, Recipe, parse_recipe
from dither.precision.rounding import Rounding

ROWS = 13
KEPT = (0, 5, 12)
NAMES = [name for name in MODELS if name != "lstm"]  # has one quantised layer only, behind it


def all_quantized(name: str, recipe: Recipe) -> Quantized:
    model = made(name)
    loss = quantized.all_chosen(LOSS, model, recipe)
    return Quantized(model, loss, MODELS[name].batch(ROWS))


def others_changed(batch: Any, row: int, how: str) -> Any:
    """Return the batch with all examples but one exchanged for others, of the same shape."""
    *inputs, target, weight = batch
    keep = torch.arange(target.shape[0]) == row

    def changed(leaf: Tensor) -> Tensor:
        if not leaf.is_floating_point():
            other = torch.flip(leaf, [0])
        elif how == "nan":
            other = torch.full_like(leaf, torch.nan)
        else:
            other = leaf * {"huge": 1e8, "zero": 0.0, "tiny": 1e-30}[how]
        return torch.where(keep.view(-1, *[1] * (leaf.ndim - 1)), leaf, other)

    return tuple(changed(leaf) for leaf in (*inputs, target, weight))


@dataclass(frozen=True)
class Seen:
    """All that one example comes to."""

    loss: Tensor
    lengths: dict[str, tuple[Tensor, ...]]
    parts: dict[str, Tensor]

    @classmethod
    def of(cls, case: Quantized, batch: Any, row: int) -> Seen:
        found = case.gradients(batch, seed=4)
        forms = found.forms.items()
        return cls(
            found.losses[row],
            {name: tuple(part[row] for part in form.lengths()) for name, form in forms},
            {name: form.dense()[row].clone() for name, form in forms},
        )

    def differs(self, other: Seen) -> list[str]:
        """Return in what two differ, in any bit."""
        wrong = [] if torch.equal(self.loss, other.loss) else ["loss"]
        for name, part in self.parts.items():
            if not torch.equal(part, other.parts[name]):
                wrong.append(name)
            pairs = zip(self.lengths[name], other.lengths[name], strict=True)
            if not all(torch.equal(one, two) for one, two in pairs):
                wrong.append(f"norm of {name}")
        return wrong


def _bitwise() -> list[Any]:
    """Every recipe on one model and every model with one recipe; all in the full run."""
    found = []
    for name in NAMES:
        for recipe in RECIPES:
            quick = name == "cnn" or recipe == "luq-fp4"
            found.append(pytest.param(name, recipe, marks=() if quick else pytest.mark.full))
    return found


@pytest.mark.parametrize(("name", "recipe"), _bitwise())
def test_an_example_is_the_same_to_the_bit_whatever_the_others_are(name: str, recipe: str) -> None:
    """Loss, gradient and norm, with real draws and real kernels."""
    case = all_quantized(name, parse_recipe(RECIPES[recipe]))
    for row in KEPT:
        whole = Seen.of(case, case.batch, row)
        for how in ("huge", "zero", "nan", "tiny"):
            changed = Seen.of(case, others_changed(case.batch, row, how), row)
            assert whole.differs(changed) == []


@pytest.mark.parametrize("recipe", ["bf16", "int8", "mxfp4", "luq-fp4"])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_so_is_the_gradient_of_its_input(name: str, recipe: str) -> None:
    case = all_quantized(name, parse_recipe(recipe))

    def of_input(batch: Any) -> Tensor:
        x, *rest = batch
        leaf = x.detach().requires_grad_()
        with secret_generators(torch.device("cpu"), 9):
            losses = losses_of(case.model, case.loss, (leaf, *rest))
            found: Tensor = torch.autograd.grad(losses.sum(), leaf)[0]
        return found

    for row in KEPT:
        whole = of_input(case.batch)[row]
        for how in ("huge", "zero", "nan"):
            assert torch.equal(of_input(others_changed(case.batch, row, how))[row], whole)


@final
class BatchWide(Format):
    """Rounds by the largest magnitude of all that it is given, as mutant 37's cousin would."""

    name = "batch-wide"
    bits = 8

    def _encode(
        self, x: Tensor, rounding: Rounding, per: Per, axis: int, uniform: Tensor | None
    ) -> Numbers:
        return INT8.encode(x, rounding=rounding, per=Per.TENSOR, axis=axis, uniform=uniform)


def test_a_scale_over_the_batch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the test above would see it."""
    wide = Operand(BatchWide(), Rounding.NEAREST, Per.ROW)
    for role in ("activations", "gradients"):
        operands: dict[str, Operand | None] = dict.fromkeys(("weights", "activations", "gradients"))
        recipe = Recipe("mine", **{**operands, role: wide})
        with pytest.raises(ConfigError, match=f"batch-wide.* for {role}, whose numbers change"):
            all_quantized("mlp", recipe)
        monkeypatch.setattr(loss_module, "check_isolation", lambda recipe: None)
        case = all_quantized("mlp", recipe)
        changed = Seen.of(case, others_changed(case.batch, 5, "huge"), 5)
        assert Seen.of(case, case.batch, 5).differs(changed)
        monkeypatch.undo()


@final
class Remembers(Format):
    """Scales by the largest magnitude it has ever met: a history, as delayed scaling keeps it."""

    name = "remembers"
    bits = 8

    def __init__(self) -> None:
        self.largest = 0.0

    def _encode(
        self, x: Tensor, rounding: Rounding, per: Per, axis: int, uniform: Tensor | None
    ) -> Numbers:
        finite = x[torch.isfinite(x)]
        self.largest = max(self.largest, float(finite.abs().max()) if finite.numel() else 0.0)
        scale = max(self.largest, 1e-9) / 127.0
        return replace(FLOAT32.encode(x), codes=torch.round(x / scale) * scale)


def test_a_scale_with_a_history_is_refused() -> None:
    wide = Operand(Remembers(), Rounding.NEAREST, Per.ROW)
    with pytest.raises(ConfigError, match="remembers"):
        check_isolation(Recipe("mine", None, wide, None))


STYLES: dict[str, Style] = {
    "flat": Flat(),
    "wide": Flat(bound=3.0),
    "automatic": Automatic(),
    "per_layer": PerLayer(),
}


def _zeroed() -> list[Any]:
    """Every style on one model, and a flat bound on another; all in the full run."""
    pairs = [(name, "luq-fp4") for name in NAMES]
    pairs += [("mlp", "bf16"), ("cnn", "int8"), ("cnn", "mxfp4")]
    quick = {(*pairs[0], style) for style in STYLES}
    quick.add(("cnn", "int8", "flat"))
    whole = [(*pair, style) for pair in pairs for style in STYLES]
    return [pytest.param(*each, marks=() if each in quick else pytest.mark.full) for each in whole]


@pytest.mark.parametrize(("name", "recipe", "style"), _zeroed())
def test_a_zeroed_record_moves_the_sum_by_at_most_the_charge(
    name: str, recipe: str, style: str
) -> None:
    """Engines of one secret seed, so that all records draw the same in both worlds."""
    model, batch = made(name), MODELS[name].batch(41)
    loss = quantized.all_chosen(LOSS, model, parse_recipe(RECIPES[recipe]))

    def summed(data: Any) -> Tensor:
        clipping = Clipping(CLIP, style=STYLES[style], microbatch_size=16, expected_rows=41)
        return oracle.as_vector(
            oracle.engine(model, loss, clipping, InsecureSeed(3))(data, oracle.ticket())
        )

    norms = oracle.engine(model, loss, Clipping(CLIP), InsecureSeed(3)).norms(batch)
    row = int(torch.where(torch.isfinite(norms), norms, 0.0).argmax())
    whole = summed(batch)
    moved = [
        float((whole - summed(neighbours.poisoned(batch, other))).norm()) / CLIP
        for other in (0, 40, row)
    ]
    assert max(moved) <= 1.0 + CHARGED_SLACK
    assert moved[-1] > 0.5  # the charge is not generous


@pytest.mark.parametrize("recipe", ["int8", "luq-fp4"])
def test_a_replaced_record_moves_the_sum_by_at_most_twice_the_bound(recipe: str) -> None:
    model, batch = made("cnn"), MODELS["cnn"].batch(41)
    loss = quantized.all_chosen(LOSS, model, parse_recipe(recipe))
    other = tuple(leaf.clone() for leaf in batch)
    other[0][7] = -30.0 * other[0][7]
    found = [
        oracle.as_vector(
            oracle.engine(model, loss, Clipping(CLIP), InsecureSeed(3))(data, oracle.ticket())
        )
        for data in (batch, other)
    ]
    assert 0.1 * CLIP < float((found[0] - found[1]).norm()) <= 2.0 * CLIP * (1.0 + CHARGED_SLACK)


@pytest.mark.parametrize("recipe", ["bf16", "int8", "mxfp4", "luq-fp4"])
def test_an_example_that_is_not_finite_counts_as_zero_and_alone(recipe: str) -> None:
    model, (x, target, weight) = made("cnn"), MODELS["cnn"].batch(9)
    loss = quantized.all_chosen(LOSS, model, parse_recipe(recipe))
    bad = x.clone()
    bad[4] = torch.inf
    poisoned = neighbours.poisoned((x, target, weight), 4)
    found = []
    for batch in ((bad, target, weight), poisoned):
        engine = oracle.engine(model, loss, Clipping(CLIP), InsecureSeed(3))
        result = engine(batch, oracle.ticket())
        found.append(oracle.as_vector(result))
    assert torch.isfinite(found[0]).all()
    assert torch.equal(*found)


def test_no_draw_depends_on_what_the_records_are() -> None:
    """Draws follow shapes: after a batch the generator stands where it stands after any other."""
    case = all_quantized("transformer", parse_recipe("luq-fp4"))
    states = []
    for how in ("zero", "huge", "nan"):
        batch = others_changed(case.batch, 3, how)
        with secret_generators(torch.device("cpu"), 5):
            losses = losses_of(case.model, case.loss, batch)
            parameters = list(case.model.parameters())
            torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
            states.append(torch.get_rng_state())
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])
