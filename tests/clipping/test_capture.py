"""How uses of parameters are seen, whatever the shapes are."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.clipping import oracle
from tests.clipping.zoo import PLAIN, Composed, floats, score, tokens
from torch import Tensor, nn
from torch.nn import functional as F

from dither.clipping import bookkeeping, forms
from dither.clipping.capture import Capture
from dither.clipping.clipping import Clipping
from dither.clipping.forms import Ghost
from dither.clipping.gradients import Chunk, Inventory
from dither.clipping.layout import Layout, Place, find_layout
from dither.clipping.rules.registry import EXPANDERS, RULES
from dither.clipping.unsupported import AmbiguousError, UnsupportedError
from dither.errors import ModelError

calm = settings(deadline=None, max_examples=40)  # a busy machine is no failure
rows = st.integers(1, 6)
few = st.integers(1, 6)


def is_right(model: nn.Module, data: Any, **options: Any) -> None:
    """Compare with one backward an example; any warning is an error."""
    wide = model.double()
    clipping = Clipping(0.7, **options)
    found = oracle.as_named(oracle.clip_sum(wide, PLAIN, data, clipping))
    wanted = oracle.summed(oracle.by_loop(wide, PLAIN, data), clipping.style, 0.7, wide)
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-8, atol=1e-9, msg=key)


@calm
@given(
    dims=st.integers(1, 3),
    count=rows,
    groups=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 2),
    size=st.integers(2, 6),
    mode=st.sampled_from(["zeros", "zeros", "circular", "reflect", "replicate"]),
)
def test_convolutions_of_any_geometry(
    *,
    dims: int,
    count: int,
    groups: int,
    channels: tuple[int, int],
    kernel: int,
    stride: int,
    dilation: int,
    padding: int,
    size: int,
    mode: Any,
) -> None:
    assume(size + 2 * padding >= dilation * (kernel - 1) + 1)
    assume(mode == "zeros" or padding < size)
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    torch.manual_seed(0)
    layer = kind(
        groups * channels[0],
        groups * channels[1],
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        padding_mode=mode,
    )
    is_right(layer, (floats(groups * channels[0], *(size,) * dims)(count),), microbatch_size=4)


@calm
@given(
    dims=st.integers(1, 3),
    count=rows,
    groups=st.integers(1, 2),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 1),
    extra=st.integers(0, 1),
    size=st.integers(2, 4),
)
def test_transposed_convolutions_of_any_geometry(
    *,
    dims: int,
    count: int,
    groups: int,
    kernel: int,
    stride: int,
    dilation: int,
    padding: int,
    extra: int,
    size: int,
) -> None:
    assume(extra < max(stride, dilation))
    assume((size - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1 > 0)
    kind = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dims]
    torch.manual_seed(0)
    layer = kind(
        2 * groups,
        groups,
        kernel,
        stride=stride,
        padding=padding,
        output_padding=extra,
        dilation=dilation,
        groups=groups,
    )
    is_right(layer, (floats(2 * groups, *(size,) * dims)(count),))


@calm
@given(count=rows, part=few, time=few, inputs=few, outputs=few, first=st.booleans())
def test_sequences_of_any_shape(
    *, count: int, part: int, time: int, inputs: int, outputs: int, first: bool
) -> None:
    """Times and widths that equal the number of examples; examples first and second."""
    torch.manual_seed(0)

    def forward(m: Any, x: Tensor) -> Tensor:
        y = x if first else x.transpose(0, 1)
        z: Tensor = m.out(m.norm(torch.tanh(m.layer(y)) * m.scale))
        return z if first else z.transpose(0, 1)

    model = Composed(
        forward,
        layer=nn.Linear(inputs, outputs),
        norm=nn.LayerNorm(outputs),
        scale=nn.Parameter(torch.randn(outputs)),
        out=nn.Linear(outputs, 2),
    )
    is_right(model, (floats(time, inputs)(count),), microbatch_size=part)


def test_gram_matrices_in_place_of_written_out_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Ghost] = []
    true = Ghost.lengths
    monkeypatch.setattr(forms, "_WRITTEN_OUT", 0)

    def lengths(form: Ghost, *, wide: bool = False) -> tuple[Tensor, ...]:
        seen.append(form)
        return true(form, wide=wide)

    monkeypatch.setattr(Ghost, "lengths", lengths)
    torch.manual_seed(0)
    is_right(nn.Linear(20, 30), (floats(3, 20)(7),), microbatch_size=5)
    assert seen


@calm
@given(
    count=rows,
    part=few,
    time=few,
    vocabulary=st.integers(1, 9),
    width=few,
    padding=st.one_of(st.none(), st.integers(0, 8)),
    mode=st.sampled_from(["sum", "mean"]),
)
def test_tables_of_any_size(
    *, count: int, part: int, time: int, vocabulary: int, width: int, padding: int | None, mode: str
) -> None:
    skip = None if padding is None else padding % vocabulary
    torch.manual_seed(0)
    data = (tokens(time, most=vocabulary)(count),)
    is_right(nn.Embedding(vocabulary, width, padding_idx=skip), data, microbatch_size=part)
    bag = nn.EmbeddingBag(vocabulary, width, mode=mode, padding_idx=skip)
    is_right(bag, data, microbatch_size=part)


@calm
@given(count=rows, part=few, channels=st.integers(1, 3), size=few, norm=st.booleans())
def test_channels_that_equal_the_number_of_examples(
    count: int, part: int, channels: int, size: int, norm: bool
) -> None:
    width = 2 * channels
    assume(size > 1)
    torch.manual_seed(0)
    layer = nn.GroupNorm(channels, width) if norm else nn.InstanceNorm1d(width, affine=True)
    model = nn.Sequential(nn.Conv1d(width, width, 1), layer, nn.Tanh())
    is_right(model, (floats(width, size)(count),), microbatch_size=part)


@pytest.mark.parametrize(
    ("leading", "count", "place"),
    [
        ([4, 3], 4, Place.FIRST),
        ([3, 4], 4, Place.SECOND),
        ([12], 4, Place.FOLDED),
        ([12, 5], 4, Place.FOLDED),
        ([9, 7], 1, Place.ALONE),
        ([], 1, Place.ALONE),
    ],
)
def test_where_examples_are(leading: list[int], count: int, place: Place) -> None:
    assert find_layout(leading, count) == Layout(place, count)


def test_two_axes_of_that_size_do_not_tell() -> None:
    with pytest.raises(AmbiguousError) as caught:
        find_layout([4, 4], 4)
    assert caught.value.rows == 4


@pytest.mark.parametrize("leading", [[], [3], [5, 3], [0, 3], [3, 2, 4]])
def test_no_axis_of_that_size_is_said(leading: list[int]) -> None:
    with pytest.raises(UnsupportedError, match="no axis"):
        find_layout(leading, 4)


@given(st.integers(2, 5), st.integers(1, 4), st.sampled_from(list(Place)))
@calm
def test_layouts_bring_examples_to_the_front(count: int, parts: int, place: Place) -> None:
    one = torch.arange(count)[:, None, None].expand(count, parts, 2)
    given_as = {
        Place.FIRST: one,
        Place.SECOND: one.movedim(0, 1),
        Place.FOLDED: one.flatten(0, 1),
        Place.ALONE: one[0],
    }[place]
    found = Layout(place, 1 if place is Place.ALONE else count).by_example(given_as)
    assert torch.equal(found, one[:1] if place is Place.ALONE else one)


def signature(model: nn.Module, data: tuple[Tensor, ...]) -> tuple[Any, ...]:
    count = data[0].shape[0]
    chunk = Chunk(data, count, count)
    return bookkeeping.differentiate(model, PLAIN, chunk, Inventory.of(model)).signature


def test_every_use_is_tapped_once() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4).double()
    model = Composed(lambda m, x: m.layer(torch.tanh(m.layer(x))), layer=layer)
    found = signature(model, (floats(4)(3),))
    assert [names for _, names, *_ in found] == [("layer.weight", "layer.bias")] * 2


def test_frozen_layers_are_not_tapped() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    model[0].requires_grad_(False)
    assert [names for _, names, *_ in signature(model, (floats(4)(3),))] == [("2.weight", "2.bias")]


def test_uses_without_gradients_give_none() -> None:
    """As in plain autograd: what is computed under no_grad teaches a parameter nothing."""

    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = m.layer(x).tanh()
        output: Tensor = (m.layer(x) - target).square()
        return output

    torch.manual_seed(0)
    is_right(Composed(forward, layer=nn.Linear(4, 3)), (floats(4)(5),))


@pytest.mark.parametrize("reached", [True, False])
def test_losses_that_reach_no_parameter(reached: bool) -> None:
    torch.manual_seed(0)

    def forward(m: Any, x: Tensor) -> Tensor:
        used: Tensor = m.layer(x)
        return used if reached else used.detach()

    model = Composed(forward, layer=nn.Linear(4, 3), unused=nn.Linear(2, 2)).double()
    data = (floats(4)(5),)
    found = oracle.as_named(oracle.clip_sum(model, PLAIN, data, Clipping(0.7)))
    assert (oracle.length(found) > 0.0) is reached
    assert oracle.length({key: t for key, t in found.items() if "unused" in key}) == 0.0


def test_parameters_of_other_models_are_constants() -> None:
    torch.manual_seed(0)
    other = nn.Parameter(torch.randn(4, dtype=torch.float64))
    is_right(Composed(lambda m, x: m.layer(x * other), layer=nn.Linear(4, 3)), (floats(4)(5),))


def test_parameters_that_came_after_the_engine_are_refused() -> None:
    """Norm and sum would leave them out."""
    model = nn.Sequential(nn.Linear(4, 3)).double()
    tried = oracle.engine(model, PLAIN, Clipping(0.7))
    model[0] = nn.Linear(4, 3).double()
    with pytest.raises(ModelError, match=r"0\.weight"):
        tried((floats(4)(5),), oracle.ticket())


class Mode:
    """Runs functions under a capture by hand."""

    def __init__(self, model: nn.Module, count: int) -> None:
        inventory = Inventory.of(model)
        self.capture = Capture(
            inventory.parameters,
            inventory.constants,
            count,
            rules=RULES,
            expanders=EXPANDERS,
            default=lambda capture, call: call.run(),
        )


def test_what_is_made_of_parameters_alone_is_known_by_its_parameters() -> None:
    model: Any = Composed(lambda m: None, a=nn.Parameter(torch.ones(3, 4)), b=nn.Linear(4, 3))
    mode = Mode(model, 5)
    with mode.capture:
        mixed = model.a * model.b.weight
        turned = model.a.t()
        constant = torch.ones(3) * 2.0
        touched = torch.ones(5, 3) @ model.a
    target = mode.capture.target(mixed)
    assert target is not None
    assert set(target.names) == {"a", "b.weight"}
    assert not target.is_parameter
    flipped = mode.capture.target(turned)
    assert flipped is not None
    assert flipped.transposed == "a"
    assert id(constant) in mode.capture.constants()
    assert mode.capture.is_shared(constant)
    assert mode.capture.target(touched) is not None  # made of constants and parameters


def test_constants_that_examples_are_written_into_are_constants_no_more() -> None:
    model = nn.Linear(3, 2)
    x = torch.randn(5, 3)
    mode = Mode(model, 5)
    with mode.capture:
        table = torch.zeros(5, 3)
        known = mode.capture.is_shared(table)
        table.copy_(x)
    assert known
    assert not mode.capture.is_shared(table)


def test_tables_filled_by_examples_are_split_by_example() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        table = torch.zeros(x.shape[0], 6, dtype=x.dtype)
        table[:, 1:5] = x
        return m.layer(table)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    is_right(Composed(forward, layer=nn.Linear(6, 3)), (floats(4)(5),), microbatch_size=3)


@pytest.mark.parametrize("way", ["functional_call", "copy", "data"])
def test_weights_taken_another_way(way: str) -> None:
    """By name, by a copy that keeps the graph, and past autograd: then it has no gradient."""

    def forward(m: Any, x: Tensor) -> Tensor:
        if way == "functional_call":
            named = dict(m.layer.named_parameters())
            return torch.func.functional_call(m.layer, named, (x,))  # type: ignore[no-any-return]
        weight = m.layer.weight.clone() if way == "copy" else m.layer.weight.data
        return F.linear(x, weight, m.layer.bias)

    torch.manual_seed(0)
    is_right(Composed(forward, layer=nn.Linear(4, 3)), (floats(4)(5),))


def test_the_mode_is_gone_when_a_forward_fails() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        m.layer(x)
        raise KeyError("mine")

    model: Any = Composed(forward, layer=nn.Linear(4, 3)).double()
    stack: Any = torch.overrides._get_current_function_mode_stack
    before = len(stack())
    with contextlib.suppress(KeyError):
        oracle.clip_sum(model, PLAIN, (floats(4)(5),), Clipping(0.7))
    assert len(stack()) == before
    assert torch.is_grad_enabled()
    x = torch.randn(2, 4).double()
    torch.autograd.backward(score(model.layer(x)).sum())
    assert model.layer.weight.grad is not None
