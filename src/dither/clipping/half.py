"""Arithmetic that would let one example touch another, or exceed the numeric slack: refused.

- A processor's bfloat16 products may read past the end of a row. With AMX, oneDNN's do so where
  rows have an odd length: what they read is multiplied by zero, but 0·NaN is NaN. So an example
  that is not finite takes the example before it with it, and its absence moves the sum by 2C.
  Whether it happens here is measured.
- Float32 products that are told to round to fewer bits (``set_float32_matmul_precision``) round the
  weighted sums too, far beyond what is charged.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from dither.errors import ModelError

_LOOKED_UP = (nn.Embedding, nn.EmbeddingBag)


def check_arithmetic(model: nn.Module) -> None:
    """Refuse products that would not keep examples apart, or not keep to float32.

    Args:
        model: As it is about to run: autocast counts if it is on.

    Raises:
        ModelError: Names the layer and the fix.
    """
    if torch.get_float32_matmul_precision() != "highest":
        raise ModelError(
            expected="float32 products in float32",
            got=f"float32_matmul_precision {torch.get_float32_matmul_precision()!r}",
            fix="call torch.set_float32_matmul_precision('highest'): sums rounded to fewer bits "
            "would exceed the numeric slack; for speed use autocast, or precision=",
        )
    if rows_stay_apart() or not _in_half(model):
        return
    for name, length in _odd_lengths(model):
        raise ModelError(
            expected="rows of even lengths in bfloat16, for this processor's kernels let an "
            "example that is not finite reach its neighbour in odd ones",
            got=f"{length} at '{name}'",
            fix="pad that layer by one, leave autocast off, or start Python with the environment "
            "variable ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16",
        )


@functools.lru_cache(maxsize=1)
def rows_stay_apart() -> bool:
    """Return whether bfloat16 products keep an example that is not finite to itself here."""
    rows, inputs = 64, 33
    x = torch.ones(rows, inputs, dtype=torch.bfloat16)
    x[1::2] = torch.nan
    found = F.linear(x, torch.ones(32, inputs, dtype=torch.bfloat16))
    return bool(found[::2].isfinite().all())


def _in_half(model: nn.Module) -> bool:
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") is torch.bfloat16
    return any(parameter.dtype is torch.bfloat16 for parameter in model.parameters())


def _odd_lengths(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield what matrices take in or give back in rows of an odd length; one number is no row."""
    for where, module in model.named_modules():
        if isinstance(module, _LOOKED_UP):
            continue
        for name, parameter in module.named_parameters(where, recurse=False):
            if parameter.ndim == 2:
                yield from (
                    (name, length) for length in parameter.shape if length % 2 and length > 1
                )
