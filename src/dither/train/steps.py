"""The step of a run, as its options say: private or plain, of one rank or many."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from dither.clipping.gradients import Loss
from dither.noise.pool import PoolStats
from dither.privacy.trust import CENTRAL
from dither.release.ahead import Span
from dither.release.transport import Transport
from dither.sampling.loader import PoissonBatch
from dither.train.base_step import BaseStep, StepMetrics, StepOptions
from dither.train.distributed.carrier import clear_endpoint, cluster_secret, open_carrier
from dither.train.distributed.ddp import DdpStep
from dither.train.distributed.world import World
from dither.train.plain import PlainStep
from dither.train.run import Run
from dither.train.setup import Parts, style
from dither.train.step import PrivateStep
from dither.train.summary import operator_line


@dataclass(frozen=True)
class Made:
    """What a step tells the loop.

    Attributes:
        line: Exact figures, for the operator alone.
        seconds: Time by part.
    """

    line: dict[str, Any]
    seconds: Mapping[str, float]


class RunStep(ABC):
    """Makes a run's steps."""

    @abstractmethod
    def __call__(self, batch: PoissonBatch, number: int) -> Made:
        """Make a step.

        Args:
            batch: A fresh one of the loader.
            number: Of the step in the run, from 1.

        Raises:
            BudgetExhaustedError: No step is left; on all ranks alike.
            PeerError: A rank is dead or late.
        """

    def pool_stats(self) -> PoolStats | None:
        """Return what the noise pool did; None without one."""
        return None

    def spans(self) -> Sequence[Span]:
        """Return what the last step did when."""
        return ()

    @property
    def bytes_sent(self) -> int:
        """Bytes of a rank's messages a step, by size of the model alone; 0 on one rank."""
        return 0

    @abstractmethod
    def close(self) -> None:
        """Stop threads."""


def loss_of(parts: Parts) -> Loss:
    """Return the loss that is trained on: in low precision, where that is asked for."""
    return parts.loss_fn if parts.precision is None else parts.precision.loss


def make_step(run: Run, parts: Parts, world: World) -> RunStep:
    """Return what makes the run's steps; all ranks call this together.

    Raises:
        ConfigError: An option does not fit the others or the model.
    """
    return _Plain(run, parts, world) if parts.account is None else _Private(run, parts, world)


@final
class _Plain(RunStep):
    def __init__(self, run: Run, parts: Parts, world: World) -> None:
        config, many = run.config, world.world_size > 1
        self._precision = parts.precision
        by_group = many and config.engine == "ddp"
        self._parameters = sum(p.numel() * p.element_size() for p in parts.model.parameters())
        self._many = many
        self._step = PlainStep(
            parts.model,
            parts.optimizer,
            loss_fn=loss_of(parts),
            expected_batch_size=float(config.batch_size),
            endpoint=clear_endpoint(world, config.algorithm) if many and not by_group else None,
            algorithm=config.algorithm,
            group=world.process_group() if by_group else None,
        )

    def __call__(self, batch: PoissonBatch, number: int) -> Made:
        if self._precision is not None:
            self._precision.before_step()
        seconds = self._step(batch)
        return Made({"step": number, "batch_size": batch.size}, seconds)

    @property
    def bytes_sent(self) -> int:
        return self._parameters if self._many else 0

    def close(self) -> None:
        """Have no threads."""


@final
class _Private(RunStep):
    def __init__(self, run: Run, parts: Parts, world: World) -> None:
        assert parts.account is not None  # noqa: S101 - make_step
        config, plan = run.config, parts.account.plan
        self._carrier: Transport = open_carrier(
            world,
            plan.trust if world.world_size > 1 else CENTRAL,
            algorithm=config.algorithm,
            authentication=world.act(
                "read its secret", lambda: cluster_secret(config.cluster_secret)
            ),
        )
        options: StepOptions = {
            "loss_fn": loss_of(parts),
            "account": parts.account,
            "entropy": parts.entropy,
            "style": style(config),
            "adaptive": parts.adaptive,
            "precision": parts.precision,
            "microbatch_size": config.microbatch_size,
            "memory_limit": None if config.memory_limit is None else config.memory_limit << 20,
            "noise_pool": config.noise_pool,
            "transport": self._carrier if world.world_size > 1 else None,
        }
        self._step: BaseStep
        if config.engine == "ddp":
            group = world.process_group()
            self._step = DdpStep(parts.model, parts.optimizer, group=group, **options)
        else:
            self._step = PrivateStep(parts.model, parts.optimizer, **options)
        dimension = sum(p.numel() for p in parts.model.parameters() if p.requires_grad)
        lattice = plan.bind(plan.l2_clip, dimension, world.world_size)
        self._bytes = dimension * lattice.wire_bits // 8 if world.world_size > 1 else 0

    def __call__(self, batch: PoissonBatch, number: int) -> Made:
        metrics: StepMetrics = self._step(batch)
        return Made(operator_line(number, metrics.operator), metrics.seconds)

    def pool_stats(self) -> PoolStats | None:
        return self._step.pool_stats()

    def spans(self) -> Sequence[Span]:
        return self._step.spans()

    @property
    def bytes_sent(self) -> int:
        return self._bytes

    def close(self) -> None:
        self._step.close()
