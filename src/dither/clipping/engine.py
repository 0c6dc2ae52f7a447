"""A model and a batch to a sum of clipped per-example gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from dither.clipping import bookkeeping, check, reference
from dither.clipping.arithmetic import countable, needs_exact_sums, slack_of
from dither.clipping.arrivals import Arrivals, Offered, Receiver, offers
from dither.clipping.batches import Batch, as_batch, chunk_rows, chunks, with_row
from dither.clipping.clipping import ClippedSum, Clipping, Diagnostics
from dither.clipping.emission import Emission, Weighted, add_up, buckets, queued
from dither.clipping.gradients import Chunk, Gradients, Inventory, Loss, squared_norms
from dither.clipping.half import check_arithmetic
from dither.clipping.leaks import check_nothing_new, kept_tensors
from dither.clipping.loss import ModelLoss
from dither.clipping.pages import keep_freed_pages
from dither.clipping.randomness import NoRandomness, generators, secret_generators
from dither.clipping.sums import Sum, Workspace
from dither.clipping.unsupported import AmbiguousError, UnsupportedError
from dither.clipping.validate import check_factors
from dither.clipping.warn import warn_of_reference, warn_of_slow
from dither.noise.entropy import Entropy
from dither.privacy.ticket import SampleTicket
from dither.release.ahead import Spans
from dither.release.bounded_sum import BoundedSum

Method = Literal["bookkeeping", "reference"]

# What one chunk may take by default. Chunks of large models are faster still with more, but then a
# step takes more memory than a plain one.
_WORKING_SET = 96 << 20
_TRIAL = 4  # rows of the chunk that is checked against each example alone
_AMBIGUITIES = 8
_WHOLE = 3  # shapes of batches whose first chunk is checked as a whole


def clipped_sum(
    model: nn.Module,
    loss_fn: Loss,
    data: Any,
    ticket: SampleTicket,
    *,
    clipping: Clipping,
    entropy: Entropy,
    method: Method = "bookkeeping",
) -> ClippedSum:
    """Sum the clipped per-example gradients of a batch: a `ClippingEngine`, used once.

    Guarantee and sensitivity are the engine's.

    Args:
        model: Its trainable parameters are differentiated; nothing is left on them.
        loss_fn: ``(output, target) -> losses [batch]``, unreduced, or a `ModelLoss`.
        data: A batch of the loader, ``batch.data``.
        ticket: Its sample's right to one release, ``batch.ticket``.
        clipping: The bound, which must be the plan's, and the style.
        entropy: Seeds dropout; `OsEntropy` unless for debugging.
        method: ``reference`` is the slow oracle.

    Returns:
        The bounded sum, for `release_sum`, and diagnostics for the operator alone.

    Raises:
        ModelError: The batch, the model or the loss cannot be taken example by example.
    """
    return ClippingEngine(model, loss_fn, clipping, entropy, method=method)(data, ticket)


class ClippingEngine:
    """Sums clipped per-example gradients (Abadi et al. 1607.00133, Algorithm 1).

    Sensitivity: a contribution g·factor depends on no other example and has norm at most C, the
    norm being that of what is summed, rounding bounds included; a gradient that is not finite
    counts as zero, also in the product. One record more or less hence moves the sum by at most C
    in exact arithmetic, and by `required_slack` more as computed. Dropout and the like draw fresh
    entropy each call, or one record's absence would shift everyone else's masks (PRIVACY-REVIEW
    A5). Independence is checked, not assumed: at the first batch of each shape, at calls 2, 4, 8
    and so on, and wherever parameters meet examples in a new way, examples are compared with
    themselves alone and with other examples beside them.

    What book-keeping cannot split goes through `torch.func`, with one warning.

    Args:
        model: Its trainable parameters are differentiated; nothing is left on them.
        loss_fn: ``(output, target) -> losses``, as `per_example` gives it, or a `ModelLoss`.
        clipping: Bound, style and memory.
        entropy: Seeds dropout.
        method: ``reference`` is the slow oracle.
        bucket_size: Coordinates of the sum that leave together; all by default. Speed only.
        frugal: Keep no memory for sums: each bucket is gone when the next is asked for. All chunks
            of examples keep their books until then.
        spans: Where to note when what was computed.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss,
        clipping: Clipping,
        entropy: Entropy,
        *,
        method: Method = "bookkeeping",
        bucket_size: int | None = None,
        frugal: bool = False,
        spans: Spans | None = None,
    ) -> None:
        if isinstance(loss_fn, ModelLoss):
            loss_fn.check_relation(clipping.relation)
        self.model = model
        self.clipping = clipping
        self.method = method
        self._loss_fn = loss_fn
        self._entropy = entropy
        self._exact = needs_exact_sums(clipping.relation)
        self._inventory = Inventory.of(model)
        self._slack = slack_of(float(clipping.expected_rows), exact=self._exact)
        self._row_bytes: dict[tuple[object, ...], int] = {}
        self._shown: set[tuple[object, ...]] = set()
        self._whole: set[tuple[object, ...]] = set()
        self._warned: set[tuple[str, tuple[str, ...]]] = set()
        self._calls = 0
        self._ambiguous: set[int] = set()
        self._workspace = Workspace()
        keep_freed_pages()
        self._bucket_size = bucket_size
        self._frugal = frugal
        self._spans = spans
        self._sums: dict[str, Sum] = {}
        self._order: tuple[tuple[str, ...], ...] = ()
        self._emission = Emission.of_nothing()

    def __call__(
        self, data: Any, ticket: SampleTicket, receiver: Receiver | None = None
    ) -> ClippedSum:
        """Sum over a batch.

        Args:
            data: ``(input, ..., target)``, tensors with the same first axis; zero rows are fine.
            ticket: How the batch was sampled.
            receiver: With `PerLayer`, takes parts of the sum during the last backward pass. It may
                be told of none, and of some parameters never; all are zeros or there afterwards.

        Returns:
            The sum over all trainable parameters, zeros where the batch is empty: float32 where few
            blocks of examples were added up, float64 else; tables of which few rows were touched as
            coalesced sparse tensors. It is good until the engine's next batch.

        Raises:
            ModelError: The batch, the model or the loss cannot be taken example by example.
        """
        check_arithmetic(self.model)
        self._calls += 1
        if self._calls & (self._calls - 1) == 0:  # again at calls 2, 4, 8, ...
            self._shown.clear()
            self._whole.clear()
        sums = self._restart()
        last: dict[str, Weighted] = {}
        self._emission = Emission(sums, last, self._order, self._spans, once=self._frugal)
        bounded = BoundedSum(
            chunks=self._emission,
            dimension=self._size(),
            l2_clip=self.clipping.l2_clip,
            ticket=ticket,
            slack=self._slack,
        )
        batch = as_batch(data)
        losses, norms, seen = [], [], 0
        offered = None if receiver is None else self._offers(batch, bounded, last, receiver)
        for chunk, gradients, arrivals in self._gradients(batch, offered):
            losses.append(gradients.losses[: chunk.real])
            length, weighted = self._weigh(gradients, chunk)
            taken = None if arrivals is None else arrivals.norms
            norms.append(length if taken is None else taken)
            seen += chunk.real
            if seen == batch.rows or self._frugal:
                last.update(queued(weighted, last))
            else:
                add_up(weighted, sums)
        return ClippedSum(bounded, Diagnostics(losses, norms, self.clipping))

    def _offers(
        self, batch: Batch, bounded: BoundedSum, last: dict[str, Weighted], receiver: Receiver
    ) -> Offered | None:
        return offers(
            self.clipping.style,
            self.clipping.l2_clip,
            names=tuple(self._inventory.parameters),
            believed=lambda signature: self._is_shown(signature, batch),
            bounded=bounded,
            weighted=last,
            receiver=receiver,
        )

    def _restart(self) -> dict[str, Sum]:
        """Return empty sums; the last batch's are withdrawn."""
        self._emission.withdraw()
        if not self._inventory.current:
            self._inventory = Inventory.of(self.model)
        parameters = self._inventory.parameters
        if self._sums.keys() != parameters.keys():
            self._sums = {
                name: Sum(p.detach(), self._workspace, exact=self._exact)
                for name, p in parameters.items()
            }
            sizes = {name: p.numel() for name, p in parameters.items()}
            self._order = buckets(sizes, self._bucket_size)
        for total in self._sums.values():
            total.restart()
        return self._sums

    @property
    def emission(self) -> Emission:
        """The last sum, which leaves bucket by bucket."""
        return self._emission

    def norms(self, data: Any) -> Float64[Tensor, " rows"]:
        """Return the gradient norms of a batch; infinite where an example is left out.

        They depend on records without noise: only a charged release may leave.
        """
        check_arithmetic(self.model)
        found = [torch.empty(0, dtype=torch.float64)]
        for chunk, gradients, _ in self._gradients(as_batch(data)):
            with torch.no_grad(), torch.autocast(gradients.losses.device.type, enabled=False):
                found.append(self._measure(gradients, chunk.real)[0][: chunk.real].cpu())
        return torch.cat(found)

    def _size(self) -> int:
        return sum(p.numel() for p in self._inventory.parameters.values())

    def _gradients(
        self, batch: Batch, offered: Offered | None = None
    ) -> Iterator[tuple[Chunk, Gradients, Arrivals | None]]:
        if not batch.rows:
            return
        seen = 0
        with secret_generators(batch.device, self._entropy.seed()):
            if batch.shape not in self._row_bytes:
                self._row_bytes[batch.shape] = self._learn(batch)
            for chunk in chunks(batch, self._rows(batch)):
                part = replace(chunk, workspace=self._workspace)
                seen += chunk.real
                arrivals = offered(chunk.real) if offered and seen == batch.rows else None
                yield part, self._differentiate(part, batch, arrivals), arrivals

    def _rows(self, batch: Batch) -> int:
        """Return the rows of a chunk; they depend on shapes alone."""
        clipping = self.clipping
        limit = clipping.memory_limit or _WORKING_SET
        most = clipping.microbatch_size or max(1, limit // self._row_bytes[batch.shape])
        most = min(most, clipping.expected_rows + clipping.expected_rows // 4 + _TRIAL)
        rows = chunk_rows(batch.rows, most, fixed=self._exact)
        while rows in self._ambiguous:
            rows += 1
        return rows

    def _differentiate(
        self, chunk: Chunk, batch: Batch, arrivals: Arrivals | None = None
    ) -> Gradients:
        if self.method == "bookkeeping":
            try:
                known = bool(self._shown) and self._whole_is_shown(batch)
                states = [] if known else [(g, g.get_state()) for g in generators(batch.device)]
                gradients = self._keep_books(chunk, arrivals)
                taken = arrivals is not None and arrivals.norms is not None
                if taken or self._is_shown(gradients.signature, batch):
                    return gradients
                signature = gradients.signature
                del gradients  # a check takes as much memory
                if self._may_believe(signature, chunk, batch):
                    for generator, state in states:
                        generator.set_state(state)
                    return self._keep_books(chunk)
                return reference.one_by_one(self.model, self._loss_fn, chunk, self._inventory)
            except UnsupportedError as why:
                self._fall_back(str(why))
        return reference.differentiate(self.model, self._loss_fn, chunk, self._inventory)

    def _is_shown(self, signature: tuple[object, ...], batch: Batch) -> bool:
        shown = (signature, self._inventory.modes) in self._shown
        return shown and self._whole_is_shown(batch)

    def _whole_is_shown(self, batch: Batch) -> bool:
        return batch.shape in self._whole or len(self._whole) >= _WHOLE

    def _may_believe(self, signature: tuple[object, ...], chunk: Chunk, batch: Batch) -> bool:
        """Return whether this is shown now; of a few examples none need be told by the check."""
        try:
            return self._require_shown(signature, chunk, batch)
        except UnsupportedError:
            if chunk.rows > _TRIAL:
                raise
            return False

    def _require_shown(self, signature: tuple[object, ...], chunk: Chunk, batch: Batch) -> bool:
        """Check anew where parameters meet examples in another way than before.

        Returns:
            Whether book-keeping may be believed here.
        """
        key = signature, self._inventory.modes
        if key not in self._shown:
            shown, _ = self._check(batch, min(chunk.rows, _TRIAL))
            if not shown:
                return False
        if key not in self._shown:
            raise UnsupportedError("its course depends on the examples")
        if not self._whole_is_shown(batch):
            self._whole.add(batch.shape)
            check.check_whole(self._keep_books, chunk)
        return True

    def _keep_books(self, chunk: Chunk, arrivals: Arrivals | None = None) -> Gradients:
        """Run book-keeping; where a chunk's size hides its examples, with rows added."""
        tried = chunk
        for _ in range(_AMBIGUITIES):
            try:
                return bookkeeping.differentiate(
                    self.model, self._loss_fn, tried, self._inventory, arrivals
                )
            except AmbiguousError as found:
                self._ambiguous.add(found.rows)
                tried = with_row(tried)
        raise UnsupportedError("its axes cannot be told apart")

    def _try_books(self, chunk: Chunk) -> Gradients:
        """Run book-keeping for a check, in the memory that chunks have."""
        return self._keep_books(replace(chunk, workspace=self._workspace))

    def _learn(self, batch: Batch) -> int:
        """Check book-keeping on the first examples of a batch; return bytes an example takes."""
        if self.method == "bookkeeping":
            try:
                return self._check(batch, _TRIAL)[1]
            except UnsupportedError as why:
                if batch.rows > _TRIAL:
                    self._fall_back(str(why))
        return 4 * self._size()

    def _check(self, batch: Batch, rows: int) -> tuple[bool, int]:
        """Compare book-keeping with examples of a batch alone.

        Returns:
            Whether anything was shown, and the bytes that an example takes.
        """
        before = kept_tensors(self.model, self._loss_fn)
        with NoRandomness(0.01):
            constants, row_bytes = _summary(self._try_books(batch.chunk(0, rows, rows)))
        now = kept_tensors(self.model, self._loss_fn)
        check_nothing_new(before, now, constants)
        shown = check.show(
            self._try_books,
            self.model,
            self._loss_fn,
            batch,
            inventory=self._inventory,
            rows=rows,
        )
        if shown is None:
            return False, row_bytes
        self._shown.update((signature, self._inventory.modes) for signature in shown.signatures)
        warn_of_slow(shown.slow, self._warned, self._inventory.parameters)
        return True, shown.row_bytes

    def _measure(self, gradients: Gradients, real: int) -> tuple[Tensor, dict[str, Tensor]]:
        squares, total = squared_norms(gradients, self._inventory.parameters, real)
        finite = countable(total, gradients.losses)
        return torch.where(finite, total.sqrt(), torch.inf), squares

    def _weigh(self, gradients: Gradients, chunk: Chunk) -> tuple[Tensor, dict[str, Weighted]]:
        """Return the norms of a chunk's real examples, and what remains to be added up."""
        with torch.no_grad(), torch.autocast(gradients.losses.device.type, enabled=False):
            length, squares = self._measure(gradients, chunk.real)
            finite = torch.isfinite(length)
            counted = finite & (torch.arange(length.shape[0], device=finite.device) < chunk.real)
            wanted = self.clipping.style.factors(squares, self.clipping.l2_clip)
            check_factors(self.clipping, wanted, squares, counted)
            distinct = {id(factor): factor for factor in wanted.values()}
            kept = {key: torch.where(counted, one, 0.0) for key, one in distinct.items()}
            mask = None if bool(finite.all()) else finite
        forms = gradients.forms.items()
        weighted = {name: Weighted(form, kept[id(wanted[name])], mask) for name, form in forms}
        gradients.forms.clear()
        return length[: chunk.real], weighted

    def _fall_back(self, why: str) -> None:
        self.method = "reference"
        warn_of_reference(self.model, why, self._size())


def _summary(gradients: Gradients) -> tuple[frozenset[int], int]:
    """Return the constants that were seen and the bytes an example takes; the rest ends here."""
    return gradients.constants, max(1, gradients.bytes // gradients.losses.shape[0])
