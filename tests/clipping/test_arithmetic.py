"""Rounding of the clipped sum against what is charged for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dither.clipping import arithmetic
from dither.clipping.arithmetic import (
    LARGEST_NORM,
    ROWS,
    countable,
    lengths,
    required_slack,
    weighted_rows,
)
from dither.clipping.forms import Dense, Outer
from dither.clipping.sums import Sum, Workspace
from dither.privacy.events import Relation

STAYS = [Relation.ZERO_OUT, Relation.REPLACE_ONE]


def total_of(gradient: Tensor, factors: Tensor, *, exact: bool) -> Tensor:
    total = Sum(torch.empty(gradient.shape[1]), Workspace(), exact=exact)
    Dense(gradient).add_to(total, factors)
    return total.result().double()


def blocks_of(gradient: Tensor, factors: Tensor) -> list[Tensor]:
    found: list[Tensor] = []

    def block(rows: int, shape: tuple[int, ...], like: Tensor) -> tuple[Tensor, float]:
        found.append(like.new_empty(shape))
        return found[-1], 0.0

    assert not list(weighted_rows(gradient, factors, exact=False, block=block))
    return found


@pytest.mark.parametrize("relation", Relation)
def test_the_default_slack_covers_any_batch(relation: Relation) -> None:
    assert required_slack(relation, 4096) < 2e-3
    assert required_slack(relation, 1e6) < 3e-3


def crafted(rows: int) -> Tensor:
    """One large value first in each block, the rest below half an ulp: float32 loses them all."""
    gradient = torch.full((rows, 1), 2.0**-25)
    gradient[::ROWS] = 1.0
    return gradient.repeat(1, 1 << 10)  # beyond the size that goes in float64 anyway


@pytest.mark.parametrize("relation", STAYS)
def test_crafted_rows_in_one_block_stay_within_the_bound(relation: Relation) -> None:
    gradient = crafted(ROWS)
    (found,) = blocks_of(gradient, torch.ones(ROWS, dtype=torch.float64))
    error = float((found - gradient.double().sum(0)).norm()) / 32.0  # each row's norm is 32 at most
    assert 0.0 < error <= required_slack(relation, 4096) / 2


def test_a_block_does_not_disturb_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under zero_out the slack covers one block: a change in one must not reach the next."""
    monkeypatch.setattr(arithmetic, "_SIDE_BY_SIDE", 0)
    gradient = torch.randn(4 * ROWS, 1 << 10)
    factors = torch.rand(4 * ROWS, dtype=torch.float64)
    before = blocks_of(gradient, factors)
    gradient[ROWS + 3] = 0.0
    after = blocks_of(gradient, factors)
    same = [torch.equal(one, other) for one, other in zip(before, after, strict=True)]
    assert same == [True, False, True, True]


def test_exact_sums_lose_nothing_to_a_shift() -> None:
    """Under add_remove a missing record moves all rows behind it to other blocks."""
    gradient = crafted(8192)[:, :64] * torch.rand(8192, 1)
    ones = torch.ones(8192, dtype=torch.float64)
    bound = required_slack(Relation.ADD_REMOVE, 8192) * 8.0
    for exact in (True, False):
        whole = total_of(gradient, ones, exact=exact)
        less = total_of(gradient[1:], ones[1:], exact=exact)
        moved = float((whole - less - gradient[0].double()).norm())
        assert (moved <= bound) is exact


@pytest.mark.parametrize("exact", [False, True])
def test_products_are_weighted_sums_of_outer_products(exact: bool) -> None:
    left, right = torch.randn(300, 5), torch.randn(300, 7)
    factors = torch.rand(300, dtype=torch.float64)
    total = Sum(torch.empty(5, 7), Workspace(), exact=exact)
    Outer(left, right).add_to(total, factors)
    found = total.result().double()
    wanted = torch.einsum("r,rm,rn->mn", factors, left.double(), right.double())
    torch.testing.assert_close(found, wanted, rtol=1e-12 if exact else 1e-5, atol=1e-4)


@pytest.mark.parametrize("size", [1, 1023, 1024, 1025, 5000])
def test_squared_norms_of_any_length(size: int) -> None:
    gradient = torch.randn(3, size)
    wanted = gradient.double().square().sum(1)
    torch.testing.assert_close(lengths(gradient).double().square(), wanted, rtol=1e-5, atol=0.0)


def test_a_large_entry_does_not_hide_small_ones() -> None:
    gradient = torch.full((1, 3_000_000), 2.0e-4)
    gradient[0, 0] = 1.0
    wanted = float(gradient.double().square().sum())
    assert float(lengths(gradient).double().square()) == pytest.approx(wanted, rel=6e-5)


@pytest.mark.parametrize(
    ("square", "loss", "counts"),
    [
        (1.0, 1.0, True),
        (float("nan"), 1.0, False),
        (float("inf"), 1.0, False),
        (1.0, float("nan"), False),
        (4.0 * LARGEST_NORM**2, 1.0, False),
    ],
)
def test_what_float32_cannot_hold_does_not_count(square: float, loss: float, counts: bool) -> None:
    one = torch.ones(1, dtype=torch.float64)
    assert bool(countable(one * square, one * loss)) is counts
