"""How far one record moves the sum, against what is charged for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.clipping import neighbours, oracle
from tests.clipping.neighbours import CHARGED_SLACK, CLIP, LOSS, MODELS, made
from tests.clipping.zoo import CASES
from torch import Tensor
from torch.utils._pytree import tree_map

from dither.clipping import bookkeeping, check, forms, styles
from dither.clipping import engine as engine_module
from dither.clipping.batches import Batch
from dither.clipping.clipping import Clipping
from dither.clipping.engine import ClippingEngine
from dither.clipping.forms import Form, combined
from dither.clipping.gradients import Chunk, Gradients, Inventory, squared_norms
from dither.clipping.loss import ModelLoss
from dither.clipping.rules import embedding
from dither.clipping.styles import Automatic, Flat, PerLayer, Style
from dither.errors import DitherWarning
from dither.privacy.events import Relation

pytestmark = pytest.mark.filterwarnings(  # torch's own, of its own copy
    "ignore:Using padding='same' with even kernel lengths"
)

STYLES: list[Style] = [Flat(), Flat(bound=3.0), Automatic(), PerLayer()]


def engine(model: torch.nn.Module, **options: Any) -> ClippingEngine:
    return oracle.engine(model, LOSS, Clipping(CLIP, **options))


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_zeroed_record_moves_the_sum_by_at_most_the_charge(name: str, autocast: bool) -> None:
    model, batch = made(name), MODELS[name].batch(41)
    row = longest(model, batch)
    tried = engine(model, microbatch_size=16, expected_rows=41)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for style in STYLES:
            tried.clipping = replace(tried.clipping, style=style)
            whole = oracle.as_vector(tried(batch, oracle.ticket()))
            moved = []
            for other in (0, 40, row):
                less = tried(neighbours.poisoned(batch, other), oracle.ticket())
                moved.append(float((whole - oracle.as_vector(less)).norm()) / CLIP)
            assert max(moved) <= 1.0 + CHARGED_SLACK
            assert moved[-1] > 0.5  # the charge is not generous


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_with_dropout_of_the_same_secret_seed(name: str, autocast: bool) -> None:
    """Another engine for each batch: seeds go on from batch to batch."""
    model, batch = made(name, dropout=0.4), MODELS[name].batch(41)
    row = longest(model.eval(), batch)
    model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        one, again, less, other = (
            oracle.as_vector(engine(model, microbatch_size=16)(data, oracle.ticket()))
            for data in (batch, batch, *(neighbours.poisoned(batch, r) for r in (row, 3)))
        )
    assert torch.equal(one, again)
    assert float((one - other).norm()) <= CLIP * (1.0 + CHARGED_SLACK)
    assert 0.3 * CLIP < float((one - less).norm()) <= CLIP * (1.0 + CHARGED_SLACK)


def longest(model: torch.nn.Module, batch: Any) -> int:
    """Return the example with the longest gradient."""
    return int(engine(model).norms(batch).argmax())


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_removed_record_moves_the_sum_by_at_most_the_charge(name: str, autocast: bool) -> None:
    """All rows behind it shift, into other chunks too."""
    model, batch = made(name), MODELS[name].batch(41)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        tried = engine(model, relation=Relation.ADD_REMOVE, microbatch_size=16, expected_rows=41)
        moved = [
            neighbours.distance(tried, batch, neighbours.without(batch, row))
            for row in (0, 16, 40, longest(model, batch))
        ]
        charge = neighbours.charged(tried(batch, oracle.ticket()), Relation.ADD_REMOVE)
    assert max(moved) <= charge
    assert moved[-1] > 0.9


@pytest.mark.parametrize("name", MODELS)
def test_a_replaced_record_moves_the_sum_by_at_most_twice_the_charge(name: str) -> None:
    model, batch = made(name), MODELS[name].batch(41)
    other = MODELS[name].batch(41, seed=1)
    tried = engine(model, microbatch_size=16, expected_rows=41)
    for row in (0, 17, 40):
        keep = torch.arange(41) != row
        mixed = tuple(
            torch.where(keep.view(-1, *[1] * (a.ndim - 1)), a, b)
            for a, b in zip(batch, other, strict=True)
        )
        assert neighbours.distance(tried, batch, mixed) <= 2.0 * (1.0 + CHARGED_SLACK)


def aligned(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return examples whose gradients all point the same way: rounding adds up."""
    inputs = torch.linspace(0.3, 1.7, 10).expand(rows, 10) * torch.linspace(1.0, 1.1, rows)[:, None]
    return inputs, torch.zeros(rows, dtype=torch.int64), torch.full((rows,), 50.0)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("relation", [Relation.ZERO_OUT, Relation.ADD_REMOVE])
@pytest.mark.parametrize("batch", ["random", "aligned"])
def test_a_batch_of_16384(batch: str, relation: Relation, autocast: bool) -> None:
    model = made("mlp")
    whole = MODELS["mlp"].batch(16384) if batch == "random" else aligned(16384)
    removal = relation is Relation.ADD_REMOVE
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        tried = engine(model, relation=relation, expected_rows=16384)
        for row in (0, 9000):
            other = neighbours.without(whole, row) if removal else neighbours.poisoned(whole, row)
            moved = neighbours.distance(tried, whole, other)
            assert moved <= neighbours.charged(tried(whole, oracle.ticket()), relation)
            assert moved > 0.1


@settings(deadline=None, max_examples=15)
@given(
    st.sampled_from(sorted(MODELS)),
    st.integers(0, 10_000),
    st.integers(1, 12),
    st.integers(1, 13),
    st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_any_batch_in_any_parts(name: str, seed: int, rows: int, part: int, scale: float) -> None:
    """Chunk sizes that equal the model's own sizes included."""
    model = made(name, seed=seed)
    inputs, target, weight = MODELS[name].batch(rows, seed)
    batch = (inputs, target, weight * scale)
    tried = engine(model, microbatch_size=part)
    row = seed % rows
    other = neighbours.poisoned(batch, row)
    assert neighbours.distance(tried, batch, other) <= 1.0 + CHARGED_SLACK
    wanted = oracle.summed(oracle.by_loop(model, LOSS, batch), Flat(), CLIP, model)
    found = oracle.as_named(tried(batch, oracle.ticket()))
    off = oracle.length({key: found[key] - value for key, value in wanted.items()})
    assert off <= 1e-4 * CLIP * rows


def other_at(batch: Any, row: int) -> Any:
    """Return the batch with another example at one place."""

    def change(leaf: Tensor) -> Tensor:
        changed = leaf.clone()
        changed[row] = leaf[0]
        return changed

    return tree_map(change, batch)


@pytest.mark.parametrize("name", CASES)
def test_another_example_leaves_the_rest_as_they_are(name: str) -> None:
    """To the last bit, since shapes stay."""
    case, rows, row = CASES[name], 6, 4
    model, batch = case.model(), case.batch(6)
    one, other = (
        bookkeeping.differentiate(model, case.loss, Chunk(data, rows, rows), Inventory.of(model))
        for data in (batch, other_at(batch, row))
    )
    rest = torch.arange(rows) != row
    assert torch.equal(one.losses[rest], other.losses[rest])
    assert not torch.equal(one.losses, other.losses)
    moved = False
    for key, form in one.forms.items():
        before, after = form.dense(), other.forms[key].dense()
        assert torch.equal(before[rest], after[rest]), key
        moved = moved or not torch.equal(before, after)
    assert moved


TAKES_FLOATS = [
    name
    for name, case in CASES.items()
    if isinstance(case.batch(1), tuple) and any(leaf.is_floating_point() for leaf in case.batch(1))
]


@pytest.mark.parametrize(("poison", "row"), [(torch.nan, 0), (torch.inf, 3)])
@pytest.mark.parametrize("name", TAKES_FLOATS)
def test_an_example_that_is_not_finite_counts_as_zero(name: str, poison: float, row: int) -> None:
    """In every family, and also where it is among those the check looks at."""
    case = CASES[name]
    model, batch = case.model(), case.batch(5)
    spoiled = tuple(leaf.clone() for leaf in batch)
    for leaf in spoiled:
        if leaf.is_floating_point():
            leaf[row] = poison
    each = oracle.by_loop(model, case.loss, spoiled)
    finite = [gradient for gradient in each if math.isfinite(oracle.length(gradient))]
    assert len(finite) == 4 or poison == torch.inf  # what saturates makes infinity finite
    found = oracle.clip_sum(model, case.loss, spoiled, Clipping(1.0), oracle.warnings_of(case))
    assert found.diagnostics.non_finite == 5 - len(finite)
    for key, value in oracle.summed(finite, Flat(), 1.0, model).items():
        torch.testing.assert_close(oracle.as_named(found)[key], value, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 1e30, 3e38])
def test_losses_beyond_the_range_of_float32_count_as_zero_or_are_clipped(
    name: str, poison: float
) -> None:
    model, batch = made(name), MODELS[name].batch(9)
    inputs, target, weight = batch
    spoiled = weight.clone()
    spoiled[4] = poison
    tried = engine(model, microbatch_size=4)
    less = neighbours.poisoned(batch, 4)
    assert neighbours.distance(tried, (inputs, target, spoiled), less) <= 1.0 + CHARGED_SLACK


@pytest.mark.parametrize("beside", [1.0, torch.nan, torch.inf, 0.0])
def test_squares_that_vanish_in_float32_are_measured_whatever_is_beside_them(beside: float) -> None:
    """Factors of 1e-24 and 1e17: their product is 100 times C, their squares are 0 and 1e34."""
    model = torch.nn.Linear(1, 9, bias=False)
    loss = ModelLoss(lambda model, batch: model(batch[0]).sum(1) * batch[1])
    weight = torch.tensor([1.0, 1.0, 1e-24, 1.0, beside])
    whole, less = (
        oracle.as_vector(
            oracle.clip_sum(model, loss, (torch.full((5, 1), 1e17), given), Clipping(1e-9))
        )
        for given in (weight, weight * torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0]))
    )
    assert float((whole - less).norm()) <= 1e-9 * (1.0 + CHARGED_SLACK)


@dataclass(frozen=True)
class Uncrossed:
    """A bug: norms of two uses of one parameter, as if they never pointed the same way."""

    parts: list[Form]

    def lengths(self, *, wide: bool = False) -> tuple[Tensor, ...]:
        squares = [combined([form]).lengths() for form in self.parts]
        products = [torch.stack([x.double() for x in pair]).prod(0) for pair in squares]
        return (torch.stack(products).square().sum(0).sqrt(),)

    bytes = 0

    def masked(self, counted: Tensor) -> Uncrossed:
        return Uncrossed([form.masked(counted) for form in self.parts])

    def add_to(self, total: Any, factors: Tensor) -> None:
        combined(self.parts).add_to(total, factors)

    def dense(self) -> Tensor:
        return combined(self.parts).dense()


def uncrossed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        bookkeeping, "combined", lambda forms: forms[0] if len(forms) == 1 else Uncrossed(forms)
    )


def unclipped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(styles, "_at_most", lambda bound, length: torch.ones_like(length))


def without_biases(patch: pytest.MonkeyPatch) -> None:
    true = squared_norms

    def norms(gradients: Gradients, parameters: Any, real: int) -> tuple[dict[str, Tensor], Tensor]:
        squares, _ = true(gradients, parameters, real)
        cut = {key: s * 0.0 if "bias" in key else s for key, s in squares.items()}
        return cut, torch.stack(list(cut.values())).sum(0)

    patch.setattr(engine_module, "squared_norms", norms)


def in_bf16(patch: pytest.MonkeyPatch) -> None:
    def products(left: Tensor, right: Tensor, factors: Tensor, **_: Any) -> Iterator[Tensor]:
        scaled = (left * factors.to(left.dtype)[:, None]).bfloat16()
        yield (scaled.t() @ right.bfloat16()).float()

    patch.setattr(forms, "weighted_products", products)


def in_one_float32_sum(patch: pytest.MonkeyPatch) -> None:
    def products(left: Tensor, right: Tensor, factors: Tensor, **_: Any) -> Iterator[Tensor]:
        each = (left * factors.to(left.dtype)[:, None])[:, :, None] * right[:, None]
        yield torch.from_numpy(np.add.accumulate(each.numpy(), 0)[-1])  # in a plain loop's order

    patch.setattr(forms, "weighted_products", products)


def not_masked(patch: pytest.MonkeyPatch) -> None:
    for form in (forms.Dense, forms.Outer):
        patch.setattr(form, "masked", lambda form, counted: form)


def counting_padding(patch: pytest.MonkeyPatch) -> None:
    true = Batch.chunk

    def chunk(batch: Batch, start: int, stop: int, rows: int) -> Chunk:
        return replace(true(batch, start, stop, rows), real=rows)

    patch.setattr(Batch, "chunk", chunk)


def worst(name: str, batch: Any, rows: list[int], **options: Any) -> float:
    """Return the largest distance over the charge that is found with the engine as it is."""
    model = made(name)
    tried = engine(model, **options)
    found = 0.0
    for row in rows:
        moved = neighbours.distance(tried, batch, neighbours.poisoned(batch, row))
        found = max(found, moved if math.isfinite(moved) else math.inf)
    return found / (1.0 + CHARGED_SLACK)


def long_gradients(name: str, rows: int = 12) -> Any:
    inputs, target, weight = MODELS[name].batch(rows)
    return inputs, target, weight * 100.0


def crafted(rows: int) -> Any:
    """Return one long gradient, then ones against it that are less than half its last bit."""
    weight = torch.full((rows,), -0.98 * 2.0**-25)
    weight[0] = 1.0
    return torch.ones(rows, 1), torch.zeros(rows, dtype=torch.int64), weight


BUGS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str, Any, dict[str, Any]]] = {
    "no cross terms": (uncrossed, "tied", long_gradients("tied"), {}),
    "no minimum": (unclipped, "mlp", MODELS["mlp"].batch(12), {}),
    "no biases": (without_biases, "cnn", long_gradients("cnn"), {}),
    "bf16 products": (in_bf16, "mlp", aligned(4096), {"microbatch_size": 4096}),
    "float32 sums": (in_one_float32_sum, "line", crafted(1 << 18), {"microbatch_size": 1 << 18}),
    "not masked": (not_masked, "mlp", MODELS["mlp"].batch(12), {}),
}


@pytest.mark.parametrize("name", BUGS)
def test_these_tests_see_a_broken_engine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each test above would say of a bug in what it tests; without the bug, all is well."""
    break_it, model, batch, options = BUGS[name]
    rows = list(range(12)) if len(batch[0]) == 12 else [0, 5]
    assert worst(model, batch, rows, **options) <= 1.0
    monkeypatch.setattr(check, "disagreement", lambda *_: None)  # which may see it first
    break_it(monkeypatch)
    assert worst(model, batch, rows, **options) > 1.0


@pytest.mark.parametrize(
    ("break_it", "name"), [(uncrossed, "used_twice"), (counting_padding, "mlp")]
)
def test_sums_tell_a_broken_engine(
    break_it: Callable[[pytest.MonkeyPatch], None], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    model, batch = case.model(), case.batch(7)
    wanted = oracle.summed(oracle.by_loop(model, case.loss, batch), Flat(), CLIP, model)
    monkeypatch.setattr(check, "disagreement", lambda *_: None)

    def off() -> float:
        clipping = Clipping(CLIP, microbatch_size=4)
        found = oracle.as_named(oracle.clip_sum(model, case.loss, batch, clipping))
        return oracle.length({key: found[key] - value for key, value in wanted.items()})

    assert off() < 1e-8 * CLIP
    break_it(monkeypatch)
    assert off() > 1e-2 * CLIP


def test_the_check_sees_a_broken_rule_first(monkeypatch: pytest.MonkeyPatch) -> None:
    uncrossed(monkeypatch)
    with pytest.warns(DitherWarning, match="disagree at 'layer"):
        engine(made("tied"))(long_gradients("tied"), oracle.ticket())


def test_a_counted_padding_index_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "_index", lambda padding, weight: None)
    tokens, target, weight = MODELS["bag"].batch(12)
    with pytest.warns(DitherWarning, match="disagree at '0.weight'"):
        engine(made("bag"))((tokens % 2, target, weight), oracle.ticket())
