"""Forms: what each says of a gradient against the gradient written out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dither.clipping import forms
from dither.clipping.forms import Dense, Form, Ghost, Outer, Rows, combined, over_time
from dither.clipping.rules.embedding import grouped_rows
from dither.clipping.sums import Sum, Workspace

calm = settings(deadline=None)  # a busy machine is no failure
sizes = st.integers(1, 9)


def norms(form: Form, *, wide: bool = False) -> Tensor:
    """Return what the engine takes for norms."""
    return torch.stack([factor.double() for factor in form.lengths(wide=wide)]).prod(0)


def total(form: Form, shape: tuple[int, ...], factors: Tensor, *, exact: bool = False) -> Tensor:
    found = Sum(torch.empty(shape), Workspace(), exact=exact)
    form.add_to(found, factors)
    result = found.result()
    return (result.to_dense() if result.is_sparse else result).double()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dense(rows: int, m: int, n: int, _: int) -> Form:
    return Dense(random(rows, m * n))


def outer(rows: int, m: int, n: int, _: int) -> Form:
    return Outer(random(rows, m), random(rows, n, seed=1))


def ghost(rows: int, m: int, n: int, time: int) -> Form:
    return Ghost(random(rows, time, m), random(rows, time, n, seed=1))


def table(rows: int, m: int, n: int, time: int) -> Form:
    """Return rows of width n in a table of m rows, some of them met more than once."""
    places = torch.randint(0, m, (rows, time), generator=torch.Generator().manual_seed(2))
    return grouped_rows(places, random(rows, time, n), m, None)


KINDS: dict[str, Callable[[int, int, int, int], Form]] = {
    "dense": dense,
    "outer": outer,
    "ghost": ghost,
    "table": table,
}


@pytest.mark.parametrize("kind", KINDS)
@calm
@given(rows=sizes, m=sizes, n=sizes, time=sizes, exact=st.booleans())
def test_forms_say_of_a_gradient_what_it_is(
    *, kind: str, rows: int, m: int, n: int, time: int, exact: bool
) -> None:
    form = KINDS[kind](rows, m, n, time)
    written = form.dense().double()
    assert written.shape == (rows, m * n)
    length = written.norm(dim=1)
    mass = 1e-5 * (1.0 + (m + n) * time)  # a bound on what terms that cancel leave
    for wide in (False, True):
        torch.testing.assert_close(norms(form, wide=wide), length, rtol=1e-4, atol=mass)
    factors = torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = total(form, (m, n), factors, exact=exact)
    torch.testing.assert_close(found.flatten(), factors @ written, rtol=1e-4, atol=1e-4)
    assert form.bytes > 0


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_count_is_zero_in_norm_and_sum(kind: str, poison: float) -> None:
    form = KINDS[kind](4, 3, 2, 5)
    written = form.dense().double()
    spoiled = _spoil(form, poison)
    assert not bool(torch.isfinite(norms(spoiled)[1]))
    keep = torch.tensor([True, False, True, True])
    masked = spoiled.masked(keep)
    assert float(norms(masked)[1]) == 0.0
    found = total(masked, (3, 2), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(found.flatten(), written[keep].sum(0), rtol=1e-5, atol=1e-5)


def _spoil(form: Form, poison: float) -> Form:
    """Return the form with something not finite in its second example."""
    if isinstance(form, Rows):
        values = torch.where((form.examples == 1)[:, None], poison, form.values)
        return Rows(form.examples, form.places, values, form.count, form.height)
    if isinstance(form, Dense):
        gradient = form.gradient.clone()
        gradient[1, 2] = poison
        return Dense(gradient)
    assert isinstance(form, Outer | Ghost)
    left = form.left.clone()
    left[1] = poison
    return type(form)(left, form.right)


@calm
@given(sizes, st.integers(2, 40), st.integers(1, 12), st.floats(1e-6, 1e6))
def test_ghost_norms_are_never_short(rows: int, time: int, width: int, scale: float) -> None:
    """Where terms cancel, Gram matrices lose what is left: the bound must cover it."""
    left, right = random(rows, time, width) * scale, random(rows, time, width, seed=1)
    left = torch.cat([left, -left * (1.0 + 1e-6)], 1)
    right = torch.cat([right, right], 1)
    form = Ghost(left, right)
    true = torch.einsum("rtm,rtn->rmn", left.double(), right.double()).flatten(1).norm(dim=1)
    as_summed = form.dense().double().norm(dim=1)
    assert bool((norms(form) >= torch.maximum(true, as_summed) * (1.0 - 1e-12)).all())


def test_ghost_norms_are_near_where_nothing_cancels() -> None:
    left, right = random(5, 20, 8).abs(), random(5, 20, 6, seed=1).abs()
    form = Ghost(left, right)
    true = torch.einsum("rtm,rtn->rmn", left.double(), right.double()).flatten(1).norm(dim=1)
    torch.testing.assert_close(norms(form), true, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("written", [0, 1 << 23])
def test_both_ways_over_time_are_the_same_gradient(
    written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "_WRITTEN_OUT", written)
    left, right = random(4, 3, 40), random(4, 3, 30, seed=1)
    form = over_time(left, right)
    assert isinstance(form, Dense if written else Ghost)
    wanted = torch.einsum("rtm,rtn->rmn", left, right).flatten(1)
    torch.testing.assert_close(form.dense(), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norms(form), wanted.double().norm(dim=1), rtol=1e-4, atol=0.0)


def test_one_step_is_a_single_product() -> None:
    assert isinstance(over_time(random(4, 1, 5), random(4, 1, 6)), Outer)


@calm
@given(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=4), sizes, sizes, sizes)
def test_uses_of_one_parameter_add_up_with_their_cross_terms(
    kinds: list[str], rows: int, m: int, n: int
) -> None:
    uses = [KINDS[kind](rows, m, n, 4) for kind in kinds]
    wanted = torch.stack([use.dense().double() for use in uses]).sum(0)
    found = combined(uses)
    torch.testing.assert_close(norms(found), wanted.norm(dim=1), rtol=1e-4, atol=1e-3)
    ones = torch.ones(rows, dtype=torch.float64)
    torch.testing.assert_close(
        total(found, (m, n), ones).flatten(), wanted.sum(0), rtol=1e-4, atol=1e-3
    )


def test_opposite_uses_cancel() -> None:
    """A sum of squared norms would say √2 where there is nothing."""
    use = Outer(random(3, 4), random(3, 5, seed=1))
    opposite = Outer(-use.left, use.right)
    assert float(norms(combined([use, opposite])).max()) == 0.0
    torch.testing.assert_close(norms(combined([use, use])), 2.0 * norms(use), rtol=1e-5, atol=0.0)


@calm
@given(sizes, st.integers(1, 6), st.integers(1, 7), st.one_of(st.none(), st.integers(0, 5)))
def test_tables_count_a_token_once_for_each_example(
    rows: int, height: int, time: int, skip: int | None
) -> None:
    places = torch.randint(0, height, (rows, time), generator=torch.Generator().manual_seed(4))
    values = random(rows, time, 3).double()
    form = grouped_rows(places, values, height, skip)
    wanted = torch.zeros(rows, height, 3, dtype=torch.float64)
    for row in range(rows):
        for step in range(time):
            if int(places[row, step]) != skip:
                wanted[row, places[row, step]] += values[row, step]
    torch.testing.assert_close(form.dense(), wanted.flatten(1))
    torch.testing.assert_close(norms(form), wanted.flatten(1).norm(dim=1))


def test_a_table_of_which_little_is_touched_stays_sparse() -> None:
    form = grouped_rows(torch.tensor([[5, 5], [7, 5]]), random(2, 2, 3), 1000, None)
    found = Sum(torch.empty(1000, 3), Workspace(), exact=False)
    form.add_to(found, torch.ones(2, dtype=torch.float64))
    result = found.result()
    assert result.is_sparse
    assert result.is_coalesced()
    assert result.indices().tolist() == [[5, 7]]


@pytest.mark.parametrize("kind", ["dense", "outer", "table"])
def test_norms_below_the_range_of_squares_are_found_when_asked(kind: str) -> None:
    form = KINDS[kind](3, 4, 5, 2)
    small = 1e-24
    if isinstance(form, Dense):
        form = Dense(form.gradient * small)
    elif isinstance(form, Outer):
        form = Outer(form.left * small, form.right)
    else:
        assert isinstance(form, Rows)
        form = Rows(form.examples, form.places, form.values * small, form.count, form.height)
    wanted = form.dense().double().norm(dim=1)
    torch.testing.assert_close(norms(form, wide=True), wanted, rtol=1e-4, atol=0.0)
