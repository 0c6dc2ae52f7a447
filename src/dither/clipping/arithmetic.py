"""Norms and clipped sums whose rounding stays within the plan's numeric slack.

Removing one record must not move the *computed* sum by much more than C (PRIVACY-REVIEW A4). Three
things hold that: every example's gradient rounds by itself; norms are taken in short blocks or in
float64; products over examples are added up in float32 over `ROWS` rows at most, such blocks in
float32 as far as `Additions` fit, and in float64 beyond, or in float64 altogether where a missing
record moves the others (``add_remove``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from dither.privacy.events import Relation

# Adds a float32 product over so many rows, of a shape and like a tensor, which a function writes;
# see `sums.Sum.add_block`.
Write: TypeAlias = Callable[[Tensor], object]
Block: TypeAlias = Callable[[int, tuple[int, ...], Tensor, Write], None]

# Gives a buffer for a use, of a shape and like a tensor; see `sums.Workspace.take`.
Room: TypeAlias = Callable[[str, tuple[int, ...], Tensor], Tensor]

ROWS = 96
_SPREAD = 6845.0  # of `Additions` in float32: ten full blocks
# Beyond this, products in float32 come near its ends, where rounding is no longer relative.
LARGEST_NORM = 1e18
_NORM_BLOCK = 256
TINY = 1e-15  # below it, squares of float32 begin to vanish
_SMALL = 1 << 16  # numbers, below which float64 costs nothing
_SIDE_BY_SIDE = 1 << 19  # numbers of block totals that are cheap to hold
_SHORT = 1 << 16  # numbers of one total that a call of its own would not be worth
_UNIT = 2.0**-24  # rounding unit of float32
_DOUBLE_UNIT = 2.0**-53


@dataclass(frozen=True)
class Additions:
    """What one float32 total has taken up, block after block.

    Attributes:
        count: a, additions; the first block is none.
        rows: Examples in the total.
        touched: Σ N_t, examples in the total after each addition, added up.
    """

    count: int
    rows: int
    touched: int

    @classmethod
    def first(cls, rows: int) -> Additions:
        """Return a total of one block."""
        return cls(0, rows, 0)

    def more(self, rows: int) -> Additions:
        """Return it with another block added."""
        return Additions(self.count + 1, self.rows + rows, self.touched + self.rows + rows)

    @property
    def fit(self) -> bool:
        """Whether `required_slack` covers their rounding."""
        return self.touched * self.count * self.rows <= _SPREAD**2


def fresh(use: str, shape: tuple[int, ...], like: Tensor) -> Tensor:  # noqa: ARG001
    """Return memory of its own."""
    return like.new_empty(shape)


def required_slack(relation: Relation, expected_batch_size: float) -> float:
    """Return how far rounding can carry neighbouring sums beyond C, as a share of C.

    A norm over blocks of n squares errs by at most n·u/2, a product of two by n·u. Under
    ``zero_out`` and ``replace_one`` the record's place in the batch stays, so two neighbouring sums
    round differently only at its own product and where a total that holds it is added to, and each
    such addition of coordinate p errs by u·|partial total|.

    Let d_ip be how many of those additions hold x_ip, example i's coordinate. For any order of a
    sum over n rows Σ_i d_ip ≤ n(n + 1)/2 =: s and d_ip ≤ n, so by Cauchy-Schwarz
    Σ_p (Σ_i d_ip |x_ip|)² ≤ s Σ_ip d_ip x_ip² ≤ s·n·n·C², though every coordinate may have an order
    of its own: the errors of both sums are at most √2·n·√(n(n + 1))·u·C in L2, with the products
    themselves less than √2·(n² + 3n)·u·C: batches are cut into blocks at the same rows for all
    coordinates. Blocks added one after the other, a additions to totals of N_1 < ... < N_a rows,
    likewise add at most 2·√(Σ N_t · a · N_a)·u·C (`Additions`) if all totals begin at the same row,
    and √2 times that in any case: those that hold the record lie within N_a rows to either side.

    Under ``add_remove`` all rows after the record move, so sums are float64 throughout
    (`Sum.exact`).

    Args:
        relation: Neighbouring relation.
        expected_batch_size: Public; ten standard deviations are added.
    """
    largest = expected_batch_size + 10.0 * math.sqrt(expected_batch_size) + 10.0 + ROWS
    if needs_exact_sums(relation):
        product, additions = 0.0, largest
    else:
        product = math.sqrt(2.0) * (ROWS * (ROWS + 3) + 2.0 * _SPREAD) * _UNIT
        additions = largest / ROWS + 1.0
    return _NORM_BLOCK * _UNIT + product + 2.0 * largest * additions * _DOUBLE_UNIT


def needs_exact_sums(relation: Relation) -> bool:
    """Return whether sums over examples must be float64 throughout."""
    return relation is Relation.ADD_REMOVE


def slack_of(expected_rows: float, *, exact: bool) -> dict[Relation, float]:
    """Return what a sum's rounding needs under each relation; infinite where it is unbounded.

    Args:
        expected_rows: As for `required_slack`.
        exact: Whether the sum is float64 throughout.
    """
    return {
        relation: math.inf
        if needs_exact_sums(relation) and not exact
        else required_slack(relation, expected_rows)
        for relation in Relation
    }


def lengths(values: Float[Tensor, "rows size"], *, wide: bool = False) -> Float[Tensor, " rows"]:
    """Return the L2 norm of each row.

    In float32 one sum of many squares can lose the small ones to a large one: a gradient of three
    million entries came out 0.7 % short. Blocks of 256 bound that for any gradient.

    Args:
        values: Rows.
        wide: Compute in float64: below `TINY` squares vanish in float32.
    """
    size = values.shape[1]
    whole = size - size % _NORM_BLOCK
    if wide or not whole:
        return _length(values, torch.float64 if wide else None)
    even = values if whole == size else values[:, :whole]
    blocks = _length(even.reshape(values.shape[0], -1, _NORM_BLOCK))
    total = _length(blocks, torch.float64)
    if whole == size:
        return total
    return torch.hypot(total, _length(values[:, whole:]).double())


def _length(values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(values, dim=-1, dtype=dtype)
    return found


def countable(
    squares: Float64[Tensor, " rows"], losses: Float64[Tensor, " rows"]
) -> Bool[Tensor, " rows"]:
    """Return which examples have a finite loss and a gradient that float32 products can hold."""
    return torch.isfinite(losses) & (squares <= LARGEST_NORM**2)


def weighted_rows(
    gradient: Float[Tensor, "rows size"],
    factors: Float64[Tensor, " rows"],
    *,
    exact: bool,
    block: Block,
    room: Room = fresh,
) -> Iterator[Float64[Tensor, " size"]]:
    """Add Σ_i factor_i·g_i to blocks, or yield parts of it in float64 where that costs nothing."""
    small = gradient.numel() <= _SMALL
    if exact or small:
        for part, weights in _blocks(gradient, factors, gradient.shape[0] if small else ROWS):
            yield weights @ part.double()
        return
    narrow = factors.to(gradient.dtype)
    whole = _whole_blocks(gradient.shape[0], gradient.shape[1])
    if whole:
        weights = narrow[:whole].view(-1, 1, ROWS)
        yield _side_by_side(weights, gradient[:whole].view(-1, ROWS, gradient.shape[1]), room)[0]
        # No float32 total of remainders: it would hold other rows than those of large parameters.
        if whole < gradient.shape[0]:
            yield torch.mv(gradient[whole:].t(), narrow[whole:]).double()
        return
    for part, weights in _blocks(gradient, narrow):
        write = partial(_write_rows, part, weights)
        block(part.shape[0], (part.shape[1],), part, write)


def weighted_products(
    left: Float[Tensor, "rows left"],
    right: Float[Tensor, "rows right"],
    factors: Float64[Tensor, " rows"],
    *,
    exact: bool,
    block: Block,
    room: Room = fresh,
) -> Iterator[Float64[Tensor, "left right"]]:
    """Add Σ_i factor_i·l_i r_iᵀ to blocks, or yield it in float64, as `weighted_rows` does."""
    if exact:
        weighted = left.double() * factors[:, None]
        for one, other in _blocks(weighted, right):
            yield one.t() @ other.double()
        return
    scaled = room("scaled", tuple(left.shape), left)
    torch.mul(left, factors.to(left.dtype)[:, None], out=scaled)
    whole = _whole_blocks(left.shape[0], left.shape[1] * right.shape[1])
    if whole:
        ones, others = (x[:whole].view(-1, ROWS, x.shape[1]) for x in (scaled, right))
        yield _side_by_side(ones.transpose(1, 2), others, room)
        if whole < left.shape[0]:
            yield torch.mm(scaled[whole:].t(), right[whole:]).double()
        return
    for one, other in _blocks(scaled, right):
        write = partial(_write_product, one, other)
        block(one.shape[0], (one.shape[1], other.shape[1]), one, write)


def _write_rows(part: Tensor, weights: Tensor, out: Tensor) -> None:
    torch.mv(part.t(), weights, out=out)


def _write_product(one: Tensor, other: Tensor, out: Tensor) -> None:
    torch.mm(one.t(), other, out=out)


def _side_by_side(left: Tensor, right: Tensor, room: Room) -> Tensor:
    """Return the sum in float64 of products of blocks."""
    shape = (left.shape[0], left.shape[1], right.shape[2])
    products = torch.bmm(left, right, out=room("blocks", shape, left))
    wide = room("wide blocks", shape, left.new_empty(0, dtype=torch.float64))
    return wide.copy_(products).sum(0)


def _whole_blocks(rows: int, size: int) -> int:
    """Return how many rows go in one call, whole blocks side by side; 0 where totals are large."""
    blocks = rows // ROWS
    short = size <= _SHORT and blocks * size <= _SIDE_BY_SIDE
    return blocks * ROWS if blocks > 1 and short else 0


def _blocks(one: Tensor, other: Tensor, rows: int = ROWS) -> Iterator[tuple[Tensor, Tensor]]:
    if one.shape[0] <= rows:
        yield one, other
        return
    for start in range(0, one.shape[0], rows):
        yield one[start : start + rows], other[start : start + rows]


def as_float(tensor: Tensor) -> Tensor:
    """Return float32 (or float64 as it is): products and norms never round to fewer bits."""
    return tensor if tensor.dtype in {torch.float32, torch.float64} else tensor.float()
