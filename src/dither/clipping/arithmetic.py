"""Norms and clipped sums whose rounding stays within the plan's numeric slack.

Removing one record must not move the *computed* sum by much more than C (PRIVACY-REVIEW A4). Three
things hold that: every example's gradient rounds by itself; norms are taken in short blocks or in
float64; products over examples are added up in float32 over `ROWS` rows at most and in float64
beyond, or in float64 altogether where a missing record moves the others (``add_remove``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from dither.privacy.events import Relation

ROWS = 128
# Beyond this, products in float32 come near its ends, where rounding is no longer relative.
LARGEST_NORM = 1e18
_NORM_BLOCK = 1024
_SMALL = 1 << 16  # numbers, below which float64 costs nothing
_UNIT = 2.0**-24  # rounding unit of float32
_DOUBLE_UNIT = 2.0**-53


def required_slack(relation: Relation, expected_batch_size: float) -> float:
    """Return how far rounding can carry neighbouring sums beyond C, as a share of C.

    A norm over blocks of n squares errs by at most n·u/2. In a float32 sum of n products each
    passes at most n + 1 roundings, whatever their order, so it errs by at most n·(n + 1)·u·C in
    L2, and two neighbouring sums by twice that. Under ``zero_out`` and ``replace_one`` the
    record's place in the batch stays, so only its own block of 128 rows rounds differently. Under
    ``add_remove`` all rows after it move, so sums are float64 throughout (`Sum.exact`).

    Args:
        relation: Neighbouring relation.
        expected_batch_size: Public; ten standard deviations are added.
    """
    largest = expected_batch_size + 10.0 * math.sqrt(expected_batch_size) + 10.0 + ROWS
    double = 2.0 * largest * (largest + 1.0) * _DOUBLE_UNIT
    single = 0.0 if needs_exact_sums(relation) else 2.0 * ROWS * (ROWS + 1) * _UNIT
    return _NORM_BLOCK * _UNIT / 2.0 + single + double


def needs_exact_sums(relation: Relation) -> bool:
    """Return whether sums over examples must be float64 throughout."""
    return relation is Relation.ADD_REMOVE


def squared_norms(gradient: Float[Tensor, "rows size"]) -> Float64[Tensor, " rows"]:
    """Return the squared L2 norm of each row.

    In float32 one sum of many squares can lose the small ones to a large one: a gradient of three
    million entries came out 0.7 % short. Blocks of 1024 bound that for any gradient.
    """
    size = gradient.shape[1]
    whole = size - size % _NORM_BLOCK
    if not whole:
        return _squared(gradient)
    blocks = gradient[:, :whole].reshape(gradient.shape[0], -1, _NORM_BLOCK)
    total = _squared(blocks).sum(1)
    return total + _squared(gradient[:, whole:]) if whole < size else total


def _squared(values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(values, dim=-1, dtype=dtype)
    return lengths.double().square()


def exact_squared_norms(values: Float[Tensor, "rows size"]) -> Float64[Tensor, " rows"]:
    """Return squared norms in float64: factors of a product, whose own squares may underflow."""
    return _squared(values, torch.float64)


def countable(
    squares: Float64[Tensor, " rows"], losses: Float64[Tensor, " rows"]
) -> Bool[Tensor, " rows"]:
    """Return which examples have a finite loss and a gradient that float32 products can hold."""
    return torch.isfinite(losses) & (squares <= LARGEST_NORM**2)


def weighted_rows(
    gradient: Float[Tensor, "rows size"], factors: Float64[Tensor, " rows"], *, exact: bool
) -> Iterator[Float[Tensor, " size"]]:
    """Yield parts of Σ_i factor_i·g_i, to be added in float64; each is overwritten by the next."""
    if exact or gradient.numel() <= _SMALL:
        for part, weights in _blocks(gradient, factors):
            yield weights @ part.double()
        return
    room = gradient.new_empty(gradient.shape[1])
    for part, weights in _blocks(gradient, factors.to(gradient.dtype)):
        yield torch.mv(part.t(), weights, out=room)


def weighted_products(
    left: Float[Tensor, "rows left"],
    right: Float[Tensor, "rows right"],
    factors: Float64[Tensor, " rows"],
    *,
    exact: bool,
) -> Iterator[Float[Tensor, "left right"]]:
    """Yield parts of Σ_i factor_i·l_i r_iᵀ, as `weighted_rows` does."""
    if exact:
        weighted = left.double() * factors[:, None]
        for one, other in _blocks(weighted, right):
            yield one.t() @ other.double()
        return
    scaled = left * factors.to(left.dtype)[:, None]
    room = left.new_empty(left.shape[1], right.shape[1])
    for one, other in _blocks(scaled, right):
        yield torch.mm(one.t(), other, out=room)


def _blocks(one: Tensor, other: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(one, ROWS), torch.split(other, ROWS), strict=True)


def as_float(tensor: Tensor) -> Tensor:
    """Return float32 (or float64 as it is): products and norms never round to fewer bits."""
    return tensor if tensor.dtype in {torch.float32, torch.float64} else tensor.float()
