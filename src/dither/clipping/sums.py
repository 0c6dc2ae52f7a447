"""The totals of clipped gradients, over all chunks of a batch, in memory used again."""

from __future__ import annotations

import math
from typing import final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from dither.clipping.arithmetic import Additions, Write

_STEP = 1 << 18  # numbers widened at a time


@final
class Workspace:
    """Buffers that outlive a batch: fresh memory costs more than the products written to it."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[object, ...], Tensor] = {}

    def take(self, use: str, shape: tuple[int, ...], like: Tensor) -> Float[Tensor, ...]:
        """Return a buffer of this shape; the next one for the same use overwrites it."""
        size = math.prod(shape)
        key = (use, like.dtype, like.device)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[key] = like.new_empty(size)
        return buffer[:size].view(shape)


@final
class Sum:
    """A total that stays sparse as long as only rows of a table are added.

    Args:
        like: The parameter.
        workspace: For what is on its way to the total.
        exact: Whether products over examples must be float64 too.
    """

    def __init__(self, like: Tensor, workspace: Workspace, *, exact: bool) -> None:
        self.exact = exact
        self.workspace = workspace
        self.device = like.device
        self._shape = like.shape
        self._dense: Tensor | None = None
        self._started = False
        self._blocks: Tensor | None = None
        self._taken: Additions | None = None
        self._turned: tuple[int, int] | None = None
        self._places: list[Tensor] = []
        self._values: list[Tensor] = []

    def restart(self) -> None:
        """Forget the total, keep its memory."""
        self._started = False
        self._taken = None
        self._places.clear()
        self._values.clear()

    def free(self) -> None:
        """Forget the total and let its memory go, once whoever reads it does."""
        self.restart()
        self._dense = self._blocks = None

    def add(self, part: Float[Tensor, ...]) -> None:
        """Add a part with as many numbers as the parameter; it is free to change afterwards."""
        shaped = part if part.shape == self._shape else part.reshape(self._shape)
        if self._started:
            self._widen_and_add(shaped)
        else:
            self._memory().copy_(shaped)
            self._started = True

    def _widen_and_add(self, part: Tensor) -> None:
        """Add to the float64 total; torch would widen all of a part at once, in fresh memory."""
        if part.dtype == torch.float64 or not part.is_contiguous():
            self._memory().add_(part)
            return
        sums, parts = self._memory().view(-1), part.view(-1)
        for start in range(0, sums.numel(), _STEP):
            piece = sums[start : start + _STEP]
            wide = self.workspace.take("wide", (piece.numel(),), sums)
            piece.add_(wide.copy_(parts[start : start + _STEP]))

    def add_block(
        self,
        turned: tuple[int, int] | None,
        rows: int,
        shape: tuple[int, ...],
        like: Tensor,
        write: Write,
    ) -> None:
        """Add a float32 product over few rows.

        Blocks are added up in float32, over chunks too, as long as these `Additions` fit; then
        their total goes into the float64 one.

        Args:
            turned: Shape of a matrix added as its transpose.
            rows: Examples in it, at most `ROWS`.
            shape: Of the product.
            like: Type and device.
            write: Writes it where it is told to.
        """
        if self._taken and (turned != self._turned or not self._taken.more(rows).fit):
            self._flush()
        if self._blocks is None or self._blocks.dtype != like.dtype:
            self._blocks = like.new_empty(self._shape.numel())
        total = self._blocks.view(shape)
        if self._taken:
            block = self.workspace.take("block", shape, like)
            write(block)
            total.add_(block)
            self._taken = self._taken.more(rows)
        else:
            write(total)
            self._taken, self._turned = Additions.first(rows), turned

    def _flush(self) -> None:
        if self._taken:
            self.add(self._finished())
            self._taken = None

    def _finished(self) -> Tensor:
        assert self._blocks is not None  # noqa: S101 - it has rows
        if self._turned is None:
            return self._blocks.view(self._shape)
        return self._blocks.view(self._turned).t().reshape(self._shape)

    def add_rows(
        self, places: Int64[Tensor, " entries"], values: Float64[Tensor, "entries width"]
    ) -> None:
        """Add values to rows of the table."""
        self._places.append(places)
        self._values.append(values)

    def rows_room(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return memory for values of the next rows to be added."""
        return self.workspace.take(f"rows {id(self)} {len(self._values)}", shape, like)

    def result(self) -> Float[Tensor, ...]:
        """Return the total: float32 where blocks alone hold it, sparse where rows alone do."""
        if self._taken and not self._started and not self._places:
            return self._finished()
        self._flush()
        if not self._places:
            return self._memory() if self._started else self._memory().zero_()
        several = len(self._places) > 1
        places = torch.cat(self._places) if several else self._places[0]
        values = torch.cat(self._values) if several else self._values[0]
        if self._started:
            return self._memory().index_add_(0, places, values)
        rising = not several and bool((places[1:] > places[:-1]).all())
        sparse = torch.sparse_coo_tensor(
            places[None],
            values,
            tuple(self._shape),
            is_coalesced=rising,
            check_invariants=False,
        )
        return sparse if rising else sparse.coalesce()

    def _memory(self) -> Tensor:
        if self._dense is None:
            self._dense = torch.empty(self._shape, dtype=torch.float64, device=self.device)
        return self._dense
