"""Sums over the rows of an embedding table, few of which have entries, as dense blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dither.errors import ReleaseError


def is_rows(tensor: Tensor) -> bool:
    """Whether this is a sparse COO tensor whose entries are whole rows of the first dimension."""
    return tensor.layout == torch.sparse_coo and tensor.sparse_dim() == 1


def dense(tensor: Tensor) -> Tensor:
    """Return a tensor of any layout as a strided one; entries of one place are added in float64."""
    if tensor.layout == torch.strided:
        return tensor
    return tensor.detach().to(torch.float64).to_dense()


def row_blocks(table: Tensor, block: int) -> Iterator[Float[np.ndarray, " _"]]:
    """Yield all coordinates of a sparse table on the CPU, in order, zeros where it has no entry.

    All, since which rows have entries tells which words or items the records hold: the others get
    the same noise, and what comes of them differs in nothing but that. The sum is the dense one,
    and so is its sensitivity.

    Blocks are views of one buffer, each good until the next is asked for; the dense table is never
    in memory. A row that a cut divides is written for both blocks.

    Args:
        table: As `is_rows` says; entries of one row, if not coalesced, are added in float64.
        block: Coordinates of one block.

    Raises:
        ReleaseError: It says that it is coalesced, but its rows are not rising, or beyond the end.
    """
    total = table.numel()
    if total == 0:
        return
    width = total // table.shape[0]
    rows, values = _entries(table, width)
    # numpy: for blocks of this size PyTorch would wake its threads, twice a block.
    buffer = np.empty(min(total, block + 2 * width), values.dtype)
    starts = np.arange(0, total, block)
    ends = np.minimum(starts + block, total)
    firsts, lasts = starts // width, -(-ends // width)
    cuts = np.searchsorted(rows, (firsts, lasts))
    for start, end, first, last, low, high in np.stack(
        (starts, ends, firsts, lasts, *cuts), axis=1
    ).tolist():
        room = buffer[: (last - first) * width]
        room.fill(0.0)
        room.reshape(-1, width)[rows[low:high] - first] = values[low:high]
        yield room[start - first * width : end - first * width]


def _entries(
    table: Tensor, width: int
) -> tuple[Int64[np.ndarray, " n"], Float[np.ndarray, "n width"]]:
    whole = table.detach()
    if not whole.is_coalesced() or whole.dtype not in {torch.float32, torch.float64}:
        whole = whole.to(torch.float64).coalesce()
    rows, values = whole.indices()[0].numpy(), whole.values().reshape(-1, width).numpy()
    inside = rows.size == 0 or bool(rows[0] >= 0 and rows[-1] < table.shape[0])
    # Rows that came twice or out of order would be lost.
    if not inside or not bool((rows[1:] > rows[:-1]).all()):
        raise ReleaseError(
            expected="a coalesced sparse sum: rows in rising order, each once, none beyond the end",
            got="a sum that is marked so and is not",
            fix="report this as a bug: a clipping engine marked its sum wrongly",
        )
    return rows, values
