"""The contenders of `dither bench scaling`, ready to make steps, on one rank or on two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias, final

import torch
import torch.distributed as dist
from torch import nn

from dither.bench.scaling_cases import BATCH, Contender
from dither.clipping.loss import per_example
from dither.data.store import RecordStore, Split, StoreDataset
from dither.noise.entropy import OsEntropy
from dither.privacy.account import Account
from dither.privacy.events import Relation, Unit
from dither.privacy.plan import Plan
from dither.privacy.trust import Trust
from dither.reduce.protections.private import Reduced, SharedMemoryReduced
from dither.release.transport import Solo, Transport
from dither.sampling.loader import PoissonBatch, PoissonLoader
from dither.sampling.poisson import PoissonSampler
from dither.train.distributed.accounts import open_rank_account, open_rank_ledger
from dither.train.distributed.carrier import open_carrier
from dither.train.distributed.world import World
from dither.train.models import mlp
from dither.train.plain import PlainStep
from dither.train.step import PrivateStep

HIDDEN = (128, 64)
TRUST = Trust("central")
_Joined = Reduced | SharedMemoryReduced
_MANY = 1 << 20  # steps, more than any bench makes

Step: TypeAlias = Callable[[PoissonBatch], object]


@final
class Side:
    """One contender on this rank, with a model, a loader and an account of its own.

    Args:
        model: Trained.
        batches: Drawn and gathered as they are taken, so that this is part of a step's time.
        step: Makes a step of a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterator[PoissonBatch],
        step: Step,
    ) -> None:
        self.model = model
        self._batches = batches
        self._step = step

    def steps(self, count: int) -> None:
        """Make so many steps, sampling included."""
        for _ in range(count):
            self._step(next(self._batches))


@final
class Sides:
    """Makes contenders; all ranks make the same ones in the same order.

    Args:
        world: Both ranks.
        store: The records.
        split: Which train.
        folder: For ledgers.
    """

    def __init__(self, world: World, store: RecordStore, split: Split, folder: Path) -> None:
        self.world = world
        self.store = store
        self.split = split
        self.plan = promise(int(split.train.size))
        self._folder = folder
        world.process_group()
        self._alone = dist.new_group([0], backend="gloo")
        weights = torch.tensor(store.task.class_weights, dtype=torch.float32)
        self._loss = per_example(nn.CrossEntropyLoss(weight=weights))

    def make(self, wanted: Contender) -> Side | None:
        """Return this rank's side of a contender; None where the rank has no part in it."""
        world = self.world if wanted.processes > 1 else World()
        if wanted.processes == 1 and not self.world.is_first:
            return None
        model = mlp(self.store.feature_dim, HIDDEN, 2, seed=0)
        make = self._private if wanted.private else self._plain
        return Side(model, self._batches(world, wanted), make(wanted, world, model))

    def _plain(self, wanted: Contender, world: World, model: nn.Module) -> PlainStep:
        endpoint, group = None, None
        if wanted.engine == "ddp":
            group = self._group(world)
        else:
            carrier = self._carrier(world)
            endpoint = carrier.endpoint if isinstance(carrier, _Joined) else None
        return PlainStep(
            model,
            _optimizer(model),
            loss_fn=self._loss,
            expected_batch_size=float(BATCH),
            endpoint=endpoint,
            group=group,
        )

    def _private(self, wanted: Contender, world: World, model: nn.Module) -> Step:
        account, carrier = self._account(world, wanted), self._carrier(world)
        if wanted.engine == "ddp":
            from dither.train.distributed.ddp import DdpStep  # noqa: PLC0415

            return DdpStep(
                model,
                _optimizer(model),
                loss_fn=self._loss,
                account=account,
                entropy=OsEntropy(),
                transport=carrier,
                group=self._group(world),
            )
        return PrivateStep(
            model,
            _optimizer(model),
            loss_fn=self._loss,
            account=account,
            entropy=OsEntropy(),
            transport=carrier,
        )

    def _batches(self, world: World, wanted: Contender) -> Iterator[PoissonBatch]:
        ranks, rank = (wanted.of, 0) if wanted.of else (world.world_size, world.rank)
        rows = self.store.shard(self.split.train, rank, ranks)
        dataset = StoreDataset(self.store, rows)
        sampler = PoissonSampler(len(dataset), self.plan.sampling_rate, OsEntropy())
        return iter(PoissonLoader(dataset, sampler, _MANY))

    def _carrier(self, world: World) -> Transport:
        return Solo() if world.world_size == 1 else open_carrier(world, TRUST)

    def _group(self, world: World) -> dist.ProcessGroup:
        return self.world.process_group() if world.world_size > 1 else self._alone

    def _account(self, world: World, wanted: Contender) -> Account:
        ledger = open_rank_ledger(
            world,
            self._folder / f"{wanted.name.replace('/', '-')}.sqlite",
            TRUST,
            store="bench",
            unit=Unit.RECORD,
            relation=Relation.ZERO_OUT,
            sensitive=False,
        )
        return open_rank_account(world, ledger, f"bench {wanted.name}", self.plan)


def promise(records: int) -> Plan:
    """Return the plan of each private contender: z = 1 under central."""
    return Plan(
        records=records,
        sampling_rate=min(1.0, BATCH / records),
        steps=_MANY,
        l2_clip=1.0,
        noise_multiplier=1.0,
        delta=1e-7,
        trust=TRUST,
    )


def _optimizer(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)


def dimension(feature_dim: int) -> int:
    """Return the number of trained coordinates."""
    return sum((before + 1) * after for before, after in pairwise((feature_dim, *HIDDEN, 2)))
