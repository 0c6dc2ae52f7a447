"""Small trainings that ranks make together, and one process that does the same alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from dither.clipping.clipping import Clipping
from dither.clipping.engine import ClippingEngine
from dither.clipping.loss import per_example
from dither.clipping.styles import Flat, Style
from dither.noise.codec import Encoded, Grid, decode, encode_ready
from dither.noise.entropy import InsecureSeed, OsEntropy
from dither.privacy.account import Account
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.privacy.ticket import SampleTicket
from dither.reduce.protections.private import Reduced
from dither.reduce.transports.torch_distributed import TorchDistributed
from dither.release.transport import Transport
from dither.sampling.loader import PoissonBatch
from dither.train.distributed.ddp import DdpStep
from dither.train.step import PrivateStep

FEATURES, CLASSES = 7, 3
PLAN = Plan(
    records=4000,
    sampling_rate=0.01,
    steps=400,
    l2_clip=1.0,
    noise_multiplier=1.0,
    delta=1e-6,
)
LOSS = per_example(nn.CrossEntropyLoss(reduction="none"))
Step = PrivateStep | DdpStep


class Quiet:
    """No noise: for insecure accounts only."""

    def encode(
        self,
        values: Float[np.ndarray, " size"],
        grid: Grid,
        *,
        out: Integer[np.ndarray, " size"] | None = None,
        factor: float = 1.0,
    ) -> Encoded:
        encoded = encode_ready(values * factor, np.zeros(values.size, np.int32), grid)
        if out is None:
            return encoded
        out[:] = encoded.message
        return replace(encoded, message=out)


class Partly(nn.Module):
    """Four layers; one is never used, one only where an input says so."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 16)
        self.unused = nn.Linear(5, 4)
        self.table = nn.Embedding(11, 16, sparse=False)
        self.last = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        places = (x[:, 0].abs() * 3).long().clamp(max=10)
        found: Tensor = self.last(torch.tanh(self.first(x)) + self.table(places))
        return found


def make_model() -> nn.Module:
    """The same on all ranks."""
    torch.manual_seed(4)
    return Partly()


def make_data(rank: int, step: int, rows: int | None = None) -> tuple[Tensor, Tensor]:
    """What a rank's sampler drew: other numbers of examples on each."""
    generator = torch.Generator().manual_seed(100 * rank + step)
    count = 5 + 9 * rank + step if rows is None else rows
    x = 2 * torch.randn(count, FEATURES, generator=generator)
    return x, torch.randint(CLASSES, (count,), generator=generator)


def make_batch(data: tuple[Tensor, Tensor]) -> PoissonBatch:
    """Fresh."""
    ticket = SampleTicket(PLAN.sampler, PLAN.sampling_rate, secret=True)
    return PoissonBatch(data, data[0].shape[0], ticket)


@dataclass(frozen=True)
class Job:
    """What ranks do together.

    Attributes:
        engine: ddp or reduce.
        style: As for the step.
        bucket_size: Likewise.
        steps: How many.
        empty: Ranks whose batches have no examples.
        quiet: No noise.
        microbatch_size: As for the step.
    """

    engine: str
    style: Style | None = None
    bucket_size: int | None = None
    steps: int = 3
    empty: tuple[int, ...] = ()
    quiet: bool = True
    microbatch_size: int | None = None

    def data(self, rank: int, step: int) -> tuple[Tensor, Tensor]:
        """A rank's examples."""
        return make_data(rank, step, 0 if rank in self.empty else None)


def make_account(folder: Path, rank: int, *, insecure: bool) -> Account:
    """A ledger of the rank's own."""
    folder.mkdir(exist_ok=True, parents=True)
    ledger = Ledger.create(folder / f"{rank}.sqlite", store="records")
    return Account(ledger, "run", PLAN, insecure="a test" if insecure else None)


def make_step(
    job: Job,
    model: nn.Module,
    optimizer: Optimizer,
    account: Account,
    *,
    carrier: Transport | None,
    group: dist.ProcessGroup | None = None,
) -> Step:
    """The job's engine."""
    options: dict[str, Any] = {
        "loss_fn": LOSS,
        "account": account,
        "entropy": InsecureSeed(1) if job.quiet else OsEntropy(),
        "style": job.style,
        "bucket_size": job.bucket_size,
        "transport": carrier,
        "microbatch_size": job.microbatch_size,
    }
    made: Step
    if job.engine == "ddp":
        made = DdpStep(model, optimizer, group=group, **options)
    else:
        made = PrivateStep(model, optimizer, **options)
    if job.quiet:
        made._noise = Quiet()
    return made


def gloo_carrier() -> Reduced:
    """Over a group of its own."""
    return Reduced(TorchDistributed(dist.new_group(), timeout=30.0), algorithm="ring")


def train(rank: int, job: Job, folder: Path) -> dict[str, Any]:
    """Make the job's steps on this rank; return the model and what was seen on the way."""
    model = make_model()
    optimizer = SGD(model.parameters(), lr=0.5, momentum=0.9)
    account = make_account(folder / "ledgers", rank, insecure=job.quiet)
    carrier = gloo_carrier() if dist.get_world_size() > 1 else None
    step = make_step(job, model, optimizer, account, carrier=carrier)
    metrics = [step(make_batch(job.data(rank, number))) for number in range(job.steps)]
    spans = step.spans()
    step.close()
    return {
        "model": {name: p.detach().clone() for name, p in model.named_parameters()},
        "gradients": [p.grad is not None for p in model.parameters()],
        "spans": spans,
        "seconds": [dict(one.seconds) for one in metrics],
        "sizes": [one.operator.diagnostics.batch_size for one in metrics],
        "charged": account.ledger.charged("run"),
    }


def alone(job: Job, world_size: int) -> dict[str, Tensor]:
    """The same steps in one process, which encodes each rank's shard and adds the integers."""
    model = make_model()
    optimizer = SGD(model.parameters(), lr=0.5, momentum=0.9)
    dimension = sum(p.numel() for p in model.parameters())
    lattice = PLAN.bind(PLAN.l2_clip, dimension, world_size)
    for number in range(job.steps):
        messages = []
        for rank in range(world_size):
            flat = flat_sum(model, job, job.data(rank, number))
            messages.append(Quiet().encode(flat.numpy(), lattice).message)
        total = np.sum(messages, axis=0, dtype=messages[0].dtype)
        mean = np.empty(dimension, np.float32)
        decode(total, lattice, scale=1.0 / PLAN.expected_batch_size, out=mean)
        apply(model, optimizer, torch.from_numpy(mean))
    return {name: p.detach() for name, p in model.named_parameters()}


def flat_sum(model: nn.Module, job: Job, data: tuple[Tensor, Tensor]) -> Tensor:
    """The clipped sum of one shard, in the order of parameters."""
    clipping = Clipping(
        PLAN.l2_clip,
        style=job.style or Flat(),
        expected_rows=round(PLAN.expected_batch_size),
        microbatch_size=job.microbatch_size,
    )
    ticket = SampleTicket(PLAN.sampler, PLAN.sampling_rate, secret=True)
    found = ClippingEngine(model, LOSS, clipping, InsecureSeed(1))(data, ticket)
    parts: dict[str, Tensor] = {}
    for chunk in found.bounded.chunks:
        parts.update(chunk)
    return torch.cat([dense(parts[name]) for name, _ in model.named_parameters()])


def dense(tensor: Tensor) -> Tensor:
    """Flat, in float64."""
    return (tensor.to_dense() if tensor.is_sparse else tensor).double().reshape(-1)


def apply(model: nn.Module, optimizer: Optimizer, mean: Tensor) -> None:
    """Step on a flat mean."""
    parts = torch.split(mean, [p.numel() for p in model.parameters()])
    for parameter, part in zip(model.parameters(), parts, strict=True):
        parameter.grad = part.view(parameter.shape)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """Bit for bit."""
    return found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in found)


def cross_entropy(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    """Of one shard."""
    return F.cross_entropy(model(data[0]), data[1], reduction="sum")
