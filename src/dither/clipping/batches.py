"""A batch in chunks of one padded shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import (
    TreeSpec,
    keystr,
    tree_flatten,
    tree_flatten_with_path,
    tree_map,
    tree_unflatten,
)

from dither.clipping.gradients import Chunk
from dither.errors import ModelError


@dataclass(frozen=True)
class Batch:
    """Tensors with one row an example, in whatever structure the loader made.

    Attributes:
        leaves: The tensors.
        spec: Their structure.
        rows: Number of examples.
    """

    leaves: tuple[Tensor, ...]
    spec: TreeSpec
    rows: int

    @property
    def shape(self) -> tuple[object, ...]:
        """What is public of the batch: shape and type of one row."""
        return tuple((leaf.shape[1:], leaf.dtype) for leaf in self.leaves)

    @property
    def device(self) -> torch.device:
        """Where it lives."""
        return self.leaves[0].device

    def chunk(self, start: int, stop: int, rows: int) -> Chunk:
        """Return examples ``start`` to ``stop`` with zeros behind, ``rows`` in all."""
        parts = [_padded(leaf[start:stop], rows) for leaf in self.leaves]
        return Chunk(tree_unflatten(parts, self.spec), rows, min(stop, self.rows) - start)


def as_batch(data: Any) -> Batch:
    """Return a batch.

    Raises:
        ModelError: Leaves are not tensors with the same number of rows.
    """
    leaves, spec = tree_flatten(data)
    rows = {leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim}
    tensors = all(isinstance(leaf, Tensor) and leaf.ndim for leaf in leaves)
    if not leaves or not tensors or len(rows) != 1 or isinstance(data, Tensor):
        _refuse_others(data)
        raise ModelError(
            expected="batches (input, ..., target) of tensors with one row an example",
            got=type(data).__name__ if len(rows) < 2 else f"rows {sorted(rows)}",
            fix="give the loader a collate_fn that returns (inputs, targets)",
        )
    return Batch(tuple(leaves), spec, rows.pop())


def _refuse_others(data: Any) -> None:
    """Refuse leaves that are no tensors, by name, and sequences packed over the batch."""
    for path, leaf in tree_flatten_with_path(data, lambda x: isinstance(x, PackedSequence))[0]:
        if isinstance(leaf, PackedSequence):
            raise ModelError(
                expected="padded sequences, one row an example",
                got="a PackedSequence, whose rows are time steps of all examples",
                fix="pad with torch.nn.utils.rnn.pad_sequence(batch_first=True) and mask the loss",
            )
        if not isinstance(leaf, Tensor):
            raise ModelError(
                expected="batches (input, ..., target) of tensors with one row an example",
                got=f"{type(leaf).__name__} at batch{keystr(path)}",
                fix="let the collate_fn return tensors only",
            )


def chunk_rows(rows: int, most: int, *, fixed: bool) -> int:
    """Return how many rows each chunk has.

    Args:
        rows: Examples of the batch.
        most: Largest number that memory allows.
        fixed: Every chunk of every batch has that many: with a record more or less, the others
            must round as before. Else the batch is cut evenly, with little padding.
    """
    if fixed:
        return most
    return -(-rows // max(1, -(-rows // most)))


def chunks(batch: Batch, rows: int) -> Iterator[Chunk]:
    """Yield the chunks of a batch."""
    for start in range(0, batch.rows, rows):
        yield batch.chunk(start, start + rows, rows)


def with_row(chunk: Chunk) -> Chunk:
    """Return the chunk with one more row of padding."""
    rows = chunk.rows + 1
    data = tree_map(lambda leaf: _padded(leaf, rows), chunk.data)
    return replace(chunk, data=data, rows=rows)


def _padded(part: Tensor, rows: int) -> Tensor:
    if part.shape[0] == rows:
        return part
    return torch.cat([part, part.new_zeros((rows - part.shape[0], *part.shape[1:]))])
