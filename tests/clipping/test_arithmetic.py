"""Rounding of the clipped sum against what is charged for it."""

from __future__ import annotations

import pytest
import torch

from dither.clipping.arithmetic import ROWS, required_slack, weighted_sums
from dither.privacy.events import Relation


@pytest.mark.parametrize("relation", [Relation.ZERO_OUT, Relation.REPLACE_ONE])
def test_the_default_slack_covers_any_batch_where_places_stay(relation: Relation) -> None:
    assert required_slack(relation, 4096) == required_slack(relation, 1e6) < 2e-3


def test_add_remove_needs_more_slack_with_the_batch() -> None:
    small, large = (required_slack(Relation.ADD_REMOVE, size) for size in (256, 65536))
    assert small < 2e-3 < large


def test_crafted_rows_stay_within_the_bound() -> None:
    """One large value first in each block, the rest below half an ulp: float32 loses them all."""
    rows = 65536
    gradient = torch.full((rows, 1), 2.0**-25)
    gradient[::ROWS] = 1.0
    counted = torch.ones(rows, dtype=torch.bool)
    factors = torch.ones(rows, dtype=torch.float64)
    found = weighted_sums({"w": gradient}, factors, counted)["w"]
    exact = gradient.double().sum(0)
    error = float((found - exact).abs())
    assert 0.0 < error <= required_slack(Relation.ADD_REMOVE, rows)


def test_rows_that_do_not_count_are_masked() -> None:
    gradient = torch.ones(ROWS, 3)
    gradient[2] = float("nan")
    counted = torch.arange(ROWS) != 2
    factors = counted.double()
    found = weighted_sums({"w": gradient}, factors, counted)["w"]
    assert found.tolist() == [ROWS - 1.0] * 3
