"""Matrix products of float32 through oneDNN, as `torch.lstm` and convolutions have them.

On AMD processors `torch.addmm` (MKL) takes up to twice as long. The operator is the one that
`torch.compile` uses; where it is missing, and for all but float32 on a CPU, `torch.addmm` serves.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def _operator() -> Any:
    """Return oneDNN's linear layer, None where this PyTorch has none."""
    known = platform.machine().lower() in {"x86_64", "amd64"}
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None) if known else None


def adder(weight: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function of ``(added, rows)`` that gives ``added + rows @ weight.T``, no gradients.

    Args:
        weight: ``[outputs, inputs]``, dense.
    """
    operator = _operator()
    fits = weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.numel() > 0
    if operator is None or not fits or not torch.backends.mkldnn.enabled:
        turned = weight.t()
        return lambda added, rows: torch.addmm(added, rows, turned)
    fused = operator.binary

    def add(added: Tensor, rows: Tensor) -> Tensor:
        found: Tensor = fused(rows, added, weight, None, "add")
        return found

    return add
