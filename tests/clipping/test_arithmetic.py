"""Rounding of the clipped sum against what is charged for it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dither.clipping import arithmetic
from dither.clipping.arithmetic import (
    LARGEST_NORM,
    ROWS,
    Additions,
    Write,
    countable,
    lengths,
    required_slack,
    weighted_products,
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

    def block(rows: int, shape: tuple[int, ...], like: Tensor, write: Write) -> None:
        found.append(like.new_empty(shape))
        write(found[-1])

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


@pytest.mark.parametrize("relation", STAYS)
def test_crafted_blocks_added_up_in_float32_stay_within_the_bound(relation: Relation) -> None:
    """The first row is large and the others are lost to it, in its block and in all that follow."""
    blocks = most_blocks(ROWS)
    gradient = torch.full((blocks * ROWS, 1), 2.0**-25).repeat(1, 1 << 17)
    gradient[0] = 1.0
    ones = torch.ones(blocks * ROWS, dtype=torch.float64)
    total = Sum(torch.empty(1 << 17), Workspace(), exact=False)
    Dense(gradient).add_to(total, ones)
    assert total.result().dtype == torch.float32  # none of it went through float64
    lost = float((total.result().double() - gradient.double().sum(0)).norm())
    assert 0.0 < lost <= required_slack(relation, 4096) / 2 * 2.0**8.5  # C is the largest norm


def most_blocks(rows: int) -> int:
    additions, blocks = Additions.first(rows), 1
    while additions.more(rows).fit:
        additions, blocks = additions.more(rows), blocks + 1
    return blocks


@pytest.mark.parametrize("rows", [1, 7, ROWS // 2, ROWS])
def test_blocks_beyond_what_the_slack_covers_go_into_float64(rows: int) -> None:
    """Bounds from the definition: additions t = 1 ... a to totals of N_t rows."""
    blocks = most_blocks(rows)
    totals = [rows * count for count in range(2, blocks + 1)]
    spread = 2.0 * math.sqrt(2.0) * math.sqrt(sum(totals) * len(totals) * totals[-1]) * 2.0**-24
    within = math.sqrt(2.0) * ROWS * (ROWS + 3) * 2.0**-24
    assert spread + within <= required_slack(Relation.ZERO_OUT, 1) <= 2e-3
    sums = Sum(torch.empty(1 << 17), Workspace(), exact=False)
    block = torch.ones(rows, 1 << 17)
    for _ in range(blocks + 1):
        Dense(block).add_to(sums, torch.ones(rows, dtype=torch.float64))
    assert sums.result().dtype == torch.float64
    assert float(sums.result()[0]) == rows * (blocks + 1)


def test_remainders_beside_whole_blocks_have_no_float32_total() -> None:
    """Else totals of short and of large parameters would hold different rows around a record."""
    rows = 2 * ROWS + 8
    left, right = torch.randn(rows, 64), torch.randn(rows, 32)
    factors = torch.rand(rows, dtype=torch.float64)

    def block(*_: object) -> None:
        raise AssertionError

    parts = list(weighted_products(left, right, factors, exact=False, block=block))
    flat = list(weighted_rows(torch.randn(rows, 512), factors, exact=False, block=block))
    assert [part.dtype for part in parts + flat] == [torch.float64] * 4
    wanted = torch.einsum("r,rm,rn->mn", factors, left.double(), right.double())
    torch.testing.assert_close(sum(parts[1:], parts[0]), wanted, rtol=1e-4, atol=1e-4)


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
    rows = 32768  # float32 loses four times the bound here, whatever order a processor adds up in
    gradient = crafted(rows)[:, :64] * torch.rand(rows, 1)
    ones = torch.ones(rows, dtype=torch.float64)
    bound = required_slack(Relation.ADD_REMOVE, rows) * 8.0
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
