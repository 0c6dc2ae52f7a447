"""`dither bench train`: a private step against a plain one of the same model and optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from dither.bench.harness import Case, Row, measure
from dither.clipping.loss import per_example
from dither.noise.entropy import OsEntropy
from dither.privacy.account import Account
from dither.privacy.events import SamplerKind
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.privacy.ticket import SampleTicket
from dither.sampling.loader import PoissonBatch
from dither.train.models import mlp
from dither.train.plain import PlainStep
from dither.train.step import PrivateStep

_RECORDS = 1 << 20
_STEPS = 1 << 20


def rows(*, full: bool = False) -> Iterator[Row]:
    """Yield one row a case; batches are ready, so sampling and gathering are not counted."""
    cases = [("mlp", (64, 512, 512), size) for size in (256, 1024, 4096)]
    cases += [("acs_mlp", (135, 128, 64), size) for size in (1024, 4096)]
    for name, widths, size in cases:
        with _contenders(f"{name}/{size}", widths, size) as case:
            yield measure(case, pairs=20 if full else 8)


@contextmanager
def _contenders(name: str, widths: tuple[int, ...], batch_size: int) -> Iterator[Case]:
    inputs = torch.randn(batch_size, widths[0])
    targets = torch.randint(0, 2, (batch_size,))
    loss_fn = per_example(nn.CrossEntropyLoss())
    rate = batch_size / _RECORDS

    def batch() -> PoissonBatch:
        ticket = SampleTicket(SamplerKind.POISSON, rate, secret=True)
        return PoissonBatch((inputs, targets), batch_size, ticket)

    with TemporaryDirectory() as folder:
        plan = Plan(
            records=_RECORDS,
            sampling_rate=rate,
            steps=_STEPS,
            l2_clip=1.0,
            noise_multiplier=1.0,
            delta=1e-7,
        )
        ledger = Ledger.create(Path(folder) / "ledger.sqlite", store="bench", sensitive=False)
        model, twin = (mlp(widths[0], widths[1:], 2, seed=0) for _ in range(2))
        private = PrivateStep(
            model,
            torch.optim.SGD(model.parameters(), lr=0.01),
            loss_fn=loss_fn,
            account=Account(ledger, "bench", plan),
            entropy=OsEntropy(),
        )
        plain = PlainStep(
            twin,
            torch.optim.SGD(twin.parameters(), lr=0.01),
            loss_fn=loss_fn,
            expected_batch_size=float(batch_size),
        )
        yield Case(name, "plain", lambda: private(batch()), lambda: plain(batch()))
