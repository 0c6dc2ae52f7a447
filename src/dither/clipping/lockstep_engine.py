"""Clipping where all ranks gather a model's layers together, as often whatever they sampled."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn

from dither.clipping import bookkeeping, check
from dither.clipping.arrivals import Arrivals, Offered
from dither.clipping.batches import Batch
from dither.clipping.clipping import Clipping
from dither.clipping.engine import ClippingEngine
from dither.clipping.gradients import Chunk, Gradients, Inventory, Loss
from dither.clipping.layout import Place
from dither.clipping.leaks import check_nothing_new, kept_tensors
from dither.clipping.randomness import NoRandomness, secret_generators
from dither.clipping.unsupported import AmbiguousError, UnsupportedError
from dither.errors import ModelError
from dither.noise.entropy import Entropy
from dither.release.ahead import Spans

_FIRST = 13  # rows of the first pass; few models have an axis as long
_TRIES = 8
_TRIAL = 4
_STARTS = 2  # places in a batch where a check looks
# Passes of a check: one for what the model keeps, eight a place, three of a whole chunk.
CHECK = 1 + 8 * _STARTS + 3


@final
class LockstepEngine(ClippingEngine):
    """Sums as `ClippingEngine` does, in a number of passes that no record decides.

    Where layers are gathered over ranks in every pass, passes are messages: their number is public,
    and it must be the same on all ranks. Each batch is cut into so many chunks, however many
    examples it has; what it lacks are passes over zeros, whose gradients are dropped. A batch that
    is larger than foreseen makes larger chunks, not more. Checks come at calls 1, 2, 4, 8 and so
    on, each with its full number of passes; what a rank cannot check on its own sample, it checks
    at the first call on made-up examples.

    Sensitivity: as in `ClippingEngine`; a chunk's books, activations and output gradients, are kept
    until its sums leave, and no parameter or sum is whole for longer than it is computed with.

    Args:
        model: Its layers gather themselves.
        loss_fn: As for `ClippingEngine`, as are all that follow.
        clipping: Its ``microbatch_size`` says how many chunks are enough for nearly all batches.
        entropy: Seeds dropout.
        inventory: Of the model, with gathered parameters and its `Lockstep`.
        ranks: R.
        bucket_size: Coordinates that leave together.
        spans: Where to note when what was computed.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss,
        clipping: Clipping,
        entropy: Entropy,
        *,
        inventory: Inventory,
        ranks: int,
        bucket_size: int | None = None,
        spans: Spans | None = None,
    ) -> None:
        super().__init__(
            model, loss_fn, clipping, entropy, bucket_size=bucket_size, frugal=True, spans=spans
        )
        self._inventory = inventory
        assert inventory.lockstep is not None  # noqa: S101 - why this engine is there
        self._lockstep = inventory.lockstep
        spread = 10.0 if self._exact else 6.0
        self._most = most_rows(clipping.expected_rows / ranks, spread)
        self.chunks = -(-self._most // (clipping.microbatch_size or self._most))
        self._axes: frozenset[tuple[Place, int]] | None = None
        self._checked_at = -1

    def _gradients(
        self,
        batch: Batch,
        offered: Offered | None = None,  # noqa: ARG002 - books are kept: none is wanted
    ) -> Iterator[tuple[Chunk, Gradients, Arrivals | None]]:
        with secret_generators(batch.device, self._entropy.seed()):
            if self._axes is None:
                self._axes = self._first_pass(made_up(batch, _FIRST + _TRIES))
                self._check_in_time(made_up(batch, _TRIAL))
            if self._calls & (self._calls - 1) == 0 and self._checked_at != self._calls:
                self._checked_at = self._calls
                self._check_in_time(batch)
            for chunk in self._cut(batch):
                gradients = self._believed(chunk)
                if chunk.real:
                    yield chunk, gradients, None

    def _cut(self, batch: Batch) -> Iterator[Chunk]:
        """Yield so many chunks of each batch; the last ones may have no examples."""
        rows = -(-batch.rows // self.chunks)
        if self._exact:
            rows = max(rows, -(-self._most // self.chunks))
        rows = self._telling(max(rows, 2))
        for number in range(self.chunks):
            yield batch.chunk(min(number * rows, batch.rows), (number + 1) * rows, rows)

    def _telling(self, rows: int, also: int = 0) -> int:
        """Return the next number of rows that no axis beside the examples' has, nor those after."""
        axes = self._axes or frozenset()
        while any(_hides(axes, rows + more) for more in range(also + 1)):
            rows += 1
        return rows

    def _first_pass(self, made: Batch) -> frozenset[tuple[Place, int]]:
        """Learn the order of layers and where examples are, on all ranks of the same zeros."""
        for rows in range(_FIRST, _FIRST + _TRIES):
            try:
                return self._run(made.chunk(0, 0, rows)).axes
            except AmbiguousError:  # on all ranks alike
                continue
            except UnsupportedError as why:
                raise _refusal(str(why)) from why
        raise _refusal("its axes cannot be told apart")

    def _run(self, chunk: Chunk) -> Gradients:
        return bookkeeping.differentiate(self.model, self._loss_fn, chunk, self._inventory)

    def _believed(self, chunk: Chunk) -> Gradients:
        try:
            gradients = self._run(chunk)
        except (AmbiguousError, UnsupportedError) as why:
            raise _refusal(str(why)) from why
        if self._shown and (gradients.signature, self._inventory.modes) not in self._shown:
            raise _refusal("its course depends on the examples")
        return gradients

    def _check_in_time(self, batch: Batch) -> None:
        """Check a batch in as many passes as any."""
        with self._passes(CHECK, batch):
            if batch.rows:
                try:
                    self._check_batch(batch)
                except (AmbiguousError, UnsupportedError) as why:
                    raise _refusal(str(why)) from why

    @contextmanager
    def _passes(self, count: int, batch: Batch) -> Iterator[None]:
        """Make up for the passes that the block does not need."""
        end = self._lockstep.passes + count
        yield
        rows = self._telling(2)
        while self._lockstep.passes < end:
            self._run(batch.chunk(0, 0, rows))

    def _check_batch(self, batch: Batch) -> None:
        rows = self._telling(_TRIAL, also=1)
        before = kept_tensors(self.model, self._loss_fn)
        with NoRandomness(0.01):
            constants = self._run(batch.chunk(0, rows, rows)).constants
        check_nothing_new(before, kept_tensors(self.model, self._loss_fn), constants)
        shown = self._show(batch, rows)
        if shown is not None:
            modes = self._inventory.modes
            self._shown.update((signature, modes) for signature in shown.signatures)
        check.check_whole(self._run, next(self._cut(batch)))

    def _show(self, batch: Batch, rows: int) -> check.Shown | None:
        failed: UnsupportedError | None = None
        for start in sorted({0, batch.rows // _STARTS}):
            try:
                shown = check.show_at(
                    self._run,
                    self.model,
                    self._loss_fn,
                    batch,
                    inventory=self._inventory,
                    rows=rows,
                    start=start,
                )
            except UnsupportedError as error:
                failed = failed or error
                continue
            if shown is not None:
                return shown
        if failed is not None:
            raise failed
        return None


def most_rows(mean: float, spread: float) -> int:
    """Return a number of rows that hardly any Poisson sample of this mean exceeds.

    Args:
        mean: Expected rows.
        spread: In standard deviations.
    """
    return math.ceil(mean + spread * math.sqrt(mean)) + 4


def made_up(batch: Batch, rows: int) -> Batch:
    """Return examples of a batch's shapes and types that are the same on all ranks.

    Args:
        batch: Perhaps empty.
        rows: How many.
    """
    generator = torch.Generator().manual_seed(0)  # public: no record goes into it

    def leaf_like(leaf: Tensor) -> Tensor:
        shape = (rows, *leaf.shape[1:])
        if not leaf.is_floating_point():
            return leaf.new_zeros(shape)  # a valid index, whatever it counts
        return torch.randn(shape, generator=generator).to(leaf)

    return Batch(tuple(leaf_like(leaf) for leaf in batch.leaves), batch.spec, rows)


def _hides(axes: frozenset[tuple[Place, int]], rows: int) -> bool:
    """Return whether an axis could be taken for that of so many examples."""
    return any(
        beside and (beside % rows == 0 if place is Place.SECOND else beside == rows)
        for place, beside in axes
    )


def _refusal(why: str) -> ModelError:
    return ModelError(
        expected="a model whose layers can be clipped while they are gathered one at a time",
        got=why,
        fix="write it with layers that have rules, or do not shard it with fully_shard",
    )
