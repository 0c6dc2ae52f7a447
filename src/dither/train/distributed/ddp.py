"""Private steps whose sums travel as `DistributedDataParallel`'s gradients do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Unpack, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from dither.clipping.arrivals import Receiver
from dither.clipping.emission import Emission
from dither.errors import ConfigError, PeerError
from dither.release.ahead import Line
from dither.release.bounded_sum import BoundedSum
from dither.release.release import Opened, open_release
from dither.release.transport import Transport
from dither.sampling.loader import PoissonBatch
from dither.train.applying import clear_gradients
from dither.train.base_step import BaseStep, Released, StepOptions
from dither.train.distributed.feeding import Feed, wrap


@final
class DdpStep(BaseStep):
    """Makes private steps through the buckets of `DistributedDataParallel`; as `PrivateStep` does.

    DDP does not see the model's own passes (book-keeping on the bare model). Its reducer is driven
    by a backward pass over one small function a parameter: each computes its parameter's clipped
    sum, and DDP hands a bucket to its communication hook as soon as the bucket's last sum is there.
    The hook encodes with this rank's noise, sums integers over ranks, and decodes into the bucket,
    on a thread of its own while the next sums are computed.

    Flat clipping takes two passes, since each factor needs all norms. Group-wise clipping
    (`PerLayer`) takes one: inside the model's backward pass a group's functions are run as soon as
    its last output gradient is there (`Arrivals`), so that buckets leave while the backward pass
    goes on. The first step, and batches whose course was not checked before, take two.

    What leaves a rank: noisy integers, and public facts that DDP exchanges (parameters at the
    start, sizes, the cut into buckets). DDP is fed zeros and the clipped sums reach the hook beside
    it, so no un-noised number is ever in its buckets. Every parameter is fed in every step, used or
    not, whatever the batch: ``find_unused_parameters`` and its bitmap of what examples touched are
    never needed. One sum is charged once, before its first bucket is encoded.

    Args:
        model: Trained in place; the bare model, not wrapped.
        optimizer: Over the model's parameters; it only sees the noisy mean.
        group: Process group, the default one if None; all of its ranks make a step together.
        options: As for `PrivateStep`. The transport is over the ranks of the group, apart from the
            group's own; DDP keeps the first ``bucket_size`` from its second step on.

    Raises:
        ConfigError: No process group, or a transport of other ranks.
        ModelError: An optimizer of another model.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        group: dist.ProcessGroup | None = None,
        **options: Unpack[StepOptions],
    ) -> None:
        _check_ranks(options.get("transport"), group)
        super().__init__(model, optimizer, **options)
        self._feed = Feed(model)
        self._wrapped = wrap(self._feed, group, self._bucket_size or self._dimension)

    def _release(self, batch: PoissonBatch, start: float) -> Released:
        clear_gradients(self.optimizer)
        with Line[dict[str, Tensor]](self._sender, self._spans) as line:
            under = _Underway(self._open, self._feed, self._wrapped, line)
            try:
                # In the first step DDP sees in which order parameters are ready, cuts its buckets
                # by that and tells all ranks: an order of sizes, not of what a batch did.
                clipped = self._clip(batch, under if self.steps_made else None)
                self._spans.add("forward", start)
                clipped_at = time.perf_counter()
                saturated = under.finish(clipped.bounded)
            except BaseException as error:
                under.abandon(error)
                raise
        return Released(clipped.diagnostics, saturated, clipped_at, {})

    def _apply(self, gradients: Mapping[str, Tensor]) -> None:
        assert not gradients  # noqa: S101 - DDP left them in p.grad, views of its buckets
        self.optimizer.step()
        clear_gradients(self.optimizer)

    def _note(self, released_at: float) -> None:
        """Note how long DDP waited for buckets, after the last product."""
        products = [span for span in self._spans.list() if span.name.startswith("product")]
        if products and self._sender is not None:
            self._spans.add("wait", products[-1].end, end=released_at)

    def _open(self, bounded: BoundedSum) -> Opened:
        return open_release(
            bounded, self.account, self._transport, self._noise, scale=self._clip.scale
        )


@final
class _Underway(Receiver):
    """One step's sum on its way through DDP, in one pass with the norms or after them.

    Args:
        open_it: Pays for a sum.
        feed: What DDP wraps.
        wrapped: DDP.
        line: Sends.
    """

    def __init__(
        self,
        open_it: Callable[[BoundedSum], Opened],
        feed: Feed,
        wrapped: DistributedDataParallel,
        line: Line[dict[str, Tensor]],
    ) -> None:
        self._open = open_it
        self._feed = feed
        self._wrapped = wrapped
        self._line = line
        self._opened: Opened | None = None
        self._turns: dict[str, Tensor] = {}

    def begin(self, bounded: BoundedSum) -> None:
        """Pay, and make DDP ready for all parameters."""
        self._opened = self._open(bounded)
        assert isinstance(bounded.chunks, Emission)  # noqa: S101 - a clipping engine's
        self._feed.opened(bounded.chunks, self._opened, self._line)
        with torch.enable_grad():
            try:
                turns = self._wrapped()
            except RuntimeError as error:  # DDP tells the cut into buckets over its group
                raise PeerError(
                    expected="all ranks of the process group in the same step",
                    got=str(error).splitlines()[0],
                    fix="look at the other ranks' own errors; end all processes, then start anew",
                ) from error
        self._turns = dict(zip(self._feed.names, turns, strict=True))

    def ready(self, names: tuple[str, ...]) -> None:
        """Let DDP have these parameters' sums, last ones first."""
        turns = [self._turns.pop(name) for name in names]
        try:
            torch.autograd.backward(turns)
        except RuntimeError:
            self._line.check()  # DDP tells a send's error in words of its own
            raise

    def finish(self, bounded: BoundedSum) -> int:
        """Let DDP have what remains, and wait for all; return how many coordinates were clamped."""
        if self._opened is None:
            self.begin(bounded)
        assert self._opened is not None  # noqa: S101 - it has begun
        if self._turns:
            self.ready(tuple(self._turns))
        self._line.results()  # all are there: DDP waited for them
        self._opened.finish()
        self._feed.closed()
        return self._opened.saturated

    def abandon(self, error: BaseException) -> None:
        """Let the other ranks know, if anything may have left."""
        self._feed.closed()
        if self._opened is not None:
            self._opened.abandon(error)


def _check_ranks(transport: Transport | None, group: dist.ProcessGroup | None) -> None:
    """Refuse a group and a transport that do not agree on R."""
    if not (dist.is_available() and dist.is_initialized()):
        raise ConfigError(
            expected="an initialised process group for --engine ddp",
            got="none",
            fix="start with torchrun or dither train --nproc, or use --engine reduce",
        )
    ranks = dist.get_world_size(group)
    carried = 1 if transport is None else transport.world_size
    if ranks != carried:
        raise ConfigError(
            expected=f"a transport over the group's {ranks} ranks",
            got=f"one over {carried}",
            fix="open the carrier over the same ranks as the process group",
        )
