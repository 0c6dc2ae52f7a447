"""One private and one plain step of a clip case, ready to be called again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from dither.bench.clip_models import ClipCase
from dither.bench.harness import Work
from dither.clipping.loss import ModelLoss
from dither.noise.entropy import OsEntropy
from dither.noise.pool import PoolStats
from dither.privacy.account import Account
from dither.privacy.events import SamplerKind
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.privacy.ticket import SampleTicket
from dither.sampling.loader import PoissonBatch
from dither.train.plain import PlainStep
from dither.train.step import PrivateStep

Data = tuple[Tensor, Tensor]

_RECORDS = 1 << 20
_STEPS = 1 << 20
_BLOCK = 1 << 16  # the pool refills in these


@dataclass(frozen=True)
class PrivateRun:
    """Private steps on one ready batch.

    Attributes:
        step: Makes one, with a ticket of its own.
        rest: Waits until the noise pool is full; nothing without one.
        data: ``(inputs, targets)``.
        pool: Returns what the pool did; None without one.
        parameters: Number of trained coordinates.
    """

    step: Work
    rest: Work
    data: Data
    pool: Callable[[], PoolStats | None]
    parameters: int


@contextmanager
def private_run(
    case: ClipCase,
    model: nn.Module,
    data: Data,
    *,
    noise_pool: bool = True,
    loss_fn: ModelLoss | None = None,
) -> Iterator[PrivateRun]:
    """Set up private steps; the pool is closed and the ledger removed behind them.

    Args:
        case: The case.
        model: Its model.
        data: Its batch.
        noise_pool: Whether noise is made ahead.
        loss_fn: Instead of the case's own, such as one that runs layers in low precision.
    """
    size = data[0].shape[0]
    rate = size / _RECORDS
    with TemporaryDirectory() as folder:
        private = PrivateStep(
            model,
            torch.optim.SGD(model.parameters()),
            loss_fn=loss_fn or case.loss_fn,
            account=_account(Path(folder), rate),
            entropy=OsEntropy(),
            noise_pool=noise_pool,
        )

        def step() -> None:
            private(PoissonBatch(data, size, SampleTicket(SamplerKind.POISSON, rate, secret=True)))

        try:
            yield PrivateRun(
                step,
                lambda: _wait_until_full(private),
                data,
                private.pool_stats,
                sum(p.numel() for p in model.parameters() if p.requires_grad),
            )
        finally:
            private.close()


def plain_run(case: ClipCase, model: nn.Module, data: Data) -> Work:
    """Return what makes a plain step on the batch."""
    size = data[0].shape[0]
    optimizer = torch.optim.SGD(model.parameters())
    plain = PlainStep(model, optimizer, loss_fn=case.loss_fn, expected_batch_size=float(size))
    ticket = SampleTicket(SamplerKind.POISSON, size / _RECORDS, secret=True)
    return lambda: plain(PoissonBatch(data, size, ticket))


def _account(folder: Path, rate: float) -> Account:
    plan = Plan(
        records=_RECORDS,
        sampling_rate=rate,
        steps=_STEPS,
        l2_clip=1.0,
        noise_multiplier=1.0,
        delta=1e-7,
    )
    ledger = Ledger.create(folder / "ledger.sqlite", store="bench", sensitive=False)
    return Account(ledger, "bench", plan)


def _wait_until_full(step: PrivateStep, limit: float = 60.0) -> None:
    deadline = time.monotonic() + limit
    while (stats := step.pool_stats()) and stats.ready <= stats.capacity - _BLOCK:
        if not stats.running or time.monotonic() > deadline:
            raise RuntimeError(f"the pool did not fill: {stats}")
        time.sleep(0.001)
