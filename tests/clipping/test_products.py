"""Products through oneDNN against float64, for every layout of memory that loops hand over."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from dither.clipping.products import adder


def layouts(rows: int, columns: int) -> list[Tensor]:
    return [
        torch.randn(rows, columns),
        torch.randn(rows, 3, columns)[:, 1],
        torch.randn(columns, rows).t(),
        torch.randn(columns).expand(rows, columns),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [0, 1, 5, 64])
def test_any_layout(rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(24, 7).to(dtype)
    add = adder(weight)
    for added, left in itertools.product(layouts(rows, 24), layouts(rows, 7)):
        kept = added.clone()
        found = add(added.to(dtype), left.to(dtype))
        exact = added.double() + left.double() @ weight.double().t()
        torch.testing.assert_close(found, exact.to(dtype), rtol=1e-5, atol=1e-5)
        assert torch.equal(added, kept)
