"""Norms and clipped sums whose rounding stays within the plan's numeric slack.

Removing one record must not move the *computed* sum by much more than C (PRIVACY-REVIEW A4). Three
things hold that: gradients are taken in chunks of one fixed shape, so that other rows round as
before; norms are taken in short blocks; products are added up in float32 over `ROWS` rows at most
and in float64 beyond.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dither.privacy.events import Relation

ROWS = 8
_NORM_BLOCK = 4096
_UNIT = 2.0**-24  # rounding unit of float32


def required_slack(relation: Relation, expected_batch_size: float) -> float:
    """Return how far rounding can carry neighbouring sums beyond C, as a share of C.

    A norm over blocks of n squares errs by at most n·u/2. A float32 sum of 8 products errs by at
    most (1 + ... + 8 + 8)·u·C in L2. Under ``zero_out`` and ``replace_one`` the record's place in
    the batch stays, so only its own 8 rows round differently. Under ``add_remove`` all rows after
    it move, so every block may.

    Args:
        relation: Neighbouring relation.
        expected_batch_size: Public; ten standard deviations are added.
    """
    block = 2.0 * (ROWS * (ROWS + 1) / 2 + ROWS) * _UNIT
    largest = expected_batch_size + 10.0 * math.sqrt(expected_batch_size) + 10.0
    blocks = largest / ROWS + 1.0 if relation is Relation.ADD_REMOVE else 1.0
    return _NORM_BLOCK * _UNIT / 2.0 + block * blocks


def norms(gradients: Iterable[Float[Tensor, "rows _"]]) -> Float64[Tensor, " rows"]:
    """Return L2 norms over all parameters of each example.

    In float32 one sum of many squares can lose the small ones to a large one: a gradient of three
    million entries came out 0.7 % short. Blocks of 4096 bound that for any gradient. A norm that
    overflows is infinite, so its example is left out.
    """
    blocks = [
        torch.linalg.vector_norm(block, dim=1).double()
        for gradient in gradients
        for block in torch.split(gradient, _NORM_BLOCK, dim=1)
    ]
    joined: Tensor = torch.linalg.vector_norm(torch.stack(blocks), dim=0)
    return joined


def clip_factors(
    lengths: Float64[Tensor, " rows"], counted: Tensor, l2_clip: float
) -> Float64[Tensor, " rows"]:
    """Return min(1, C/‖g‖) for the rows that count, 0 for the others."""
    factor = (l2_clip / lengths).clamp(max=1.0)
    return torch.where(counted, torch.where(lengths == 0.0, 1.0, factor), 0.0)


def weighted_sums(
    gradients: Mapping[str, Float[Tensor, "rows _"]],
    factors: Float64[Tensor, " rows"],
    counted: Tensor,
) -> dict[str, Float64[Tensor, " _"]]:
    """Return Σ_i factor_i·g_i by parameter; the number of rows is a multiple of `ROWS`.

    Rows that do not count are masked in both operands: 0·NaN is NaN.
    """
    if not bool(counted.all()):
        gradients = {n: torch.where(counted[:, None], g, 0.0) for n, g in gradients.items()}
    return {name: _weighted_sum(g, factors.to(g.dtype)) for name, g in gradients.items()}


def _weighted_sum(gradient: Tensor, factors: Tensor) -> Tensor:
    blocks = gradient.view(-1, ROWS, gradient.shape[1])
    return torch.einsum("br,brd->bd", factors.view(-1, ROWS), blocks).double().sum(0)
