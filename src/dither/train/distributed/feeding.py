"""What `DistributedDataParallel` wraps in place of a model, so that its buckets carry sums."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dither.clipping.emission import Emission
from dither.errors import ReleaseError
from dither.release.ahead import Line
from dither.release.release import Opened

_NATIVE = {torch.float32, torch.float64}
_MEGABYTE = 1 << 20


@final
class Feed(nn.Module):
    """What DDP wraps: it gives DDP each parameter's turn, and the hook the bucket's sums."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # Of buffers DDP need not know: nothing that training does may change them.
        self.held = nn.ParameterList(model.parameters())
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._names = {id(parameter): name for name, parameter in trained}
        self._trained = tuple(trained)
        self.names = tuple(name for name, _ in trained)
        self._under: tuple[Emission, Opened, Line[dict[str, Tensor]]] | None = None

    def opened(self, emission: Emission, opened: Opened, line: Line[dict[str, Tensor]]) -> None:
        """Say whose sums are due."""
        self._under = emission, opened, line

    def closed(self) -> None:
        """Let go of them."""
        self._under = None

    def forward(self) -> list[Tensor]:
        """Return one number a parameter; autograd begins with the last."""
        turns = [(p, partial(self._make, name)) for name, p in self._trained]
        return [_Turn.apply(*turn) for turn in turns]  # type: ignore[no-untyped-call]

    def leave(self, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """Send a bucket's sums; its future is the bucket with the noisy mean in it."""
        emission, opened, line = self._require_open()
        names = [self._names[id(parameter)] for parameter in bucket.parameters()]
        chunk = {name: emission.total(name) for name in names}
        opened.admit(chunk)
        back: torch.futures.Future[Tensor] = torch.futures.Future()
        sent = line.send(partial(_fill, opened, chunk, bucket))
        sent.add_done_callback(partial(_pass_on, bucket.buffer(), back))
        return back

    def _make(self, name: str) -> None:
        self._require_open()[0].total(name)

    def _require_open(self) -> tuple[Emission, Opened, Line[dict[str, Tensor]]]:
        if self._under is None:
            raise ReleaseError(
                expected="buckets of a release that was charged",
                got="a bucket outside of any step",
                fix="leave backward passes to DdpStep: call it with each batch",
            )
        return self._under


class _Turn(torch.autograd.Function):
    """A function of a parameter in whose backward pass that parameter's sum is computed."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, make: Callable[[], None]) -> Tensor:
        """Return nothing of the parameter."""
        ctx.make = make
        ctx.like = parameter
        return parameter.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Compute the sum, which stays where it is; tell autograd of zeros."""
        ctx.make()
        return gradients[0].new_zeros(()).expand_as(ctx.like), None


def _fill(opened: Opened, chunk: dict[str, Tensor], bucket: dist.GradBucket) -> dict[str, Tensor]:
    """Send a chunk, and put what comes back into DDP's bucket."""
    buffer, parameters = bucket.buffer(), bucket.parameters()
    whole = sum(p.numel() for p in parameters) == buffer.numel()
    plain = whole and all(p.is_contiguous() for p in parameters)
    if plain and buffer.dtype in _NATIVE and buffer.device.type == "cpu":
        return opened.send(chunk, buffer)
    noisy = opened.send(chunk)
    for gradient, released in zip(bucket.gradients(), noisy.values(), strict=True):
        gradient.copy_(released)
    return noisy


def _pass_on(
    buffer: Tensor, back: torch.futures.Future[Tensor], sent: Future[dict[str, Tensor]]
) -> None:
    """Let DDP's future follow ours."""
    error = sent.exception()
    if error is None:
        back.set_result(buffer)
    else:
        told: Any = error if isinstance(error, Exception) else RuntimeError(repr(error))
        back.set_exception(told)


def wrap(feed: Feed, group: dist.ProcessGroup | None, bucket_size: int) -> DistributedDataParallel:
    """Return DDP over a feed, with the feed as its communication hook.

    Args:
        feed: The turns of a model's parameters.
        group: Process group; the default one if None.
        bucket_size: Coordinates of a bucket, about.
    """
    widest = max(p.element_size() for p in feed.parameters())
    wrapped = DistributedDataParallel(
        feed,
        process_group=group,
        find_unused_parameters=False,
        gradient_as_bucket_view=True,
        bucket_cap_mb=bucket_size * widest / _MEGABYTE,
    )
    # DDP refuses annotations that are strings, as they are in this file.
    wrapped.register_comm_hook(feed, lambda fed, bucket: fed.leave(bucket))
    return wrapped
