"""What every private step is made of: clip, release, optimise; one at a time."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Required, TypedDict

from torch import Tensor, nn
from torch.optim import Optimizer

from dither.clipping.clipping import Diagnostics
from dither.clipping.gradients import Inventory, Loss
from dither.clipping.styles import Style
from dither.noise.entropy import Entropy
from dither.noise.pool import NoisePool, PoolStats
from dither.precision.controller import Controller
from dither.privacy.account import Account
from dither.privacy.plan import Plan
from dither.release.ahead import Span, Spans
from dither.release.transport import Transport
from dither.sampling.loader import PoissonBatch
from dither.train.adaptive import AdaptiveBound
from dither.train.applying import check_optimizer
from dither.train.clipper import (
    Clipper,
    make_noise,
    make_sender,
    message_size,
    parts_of,
    require_batch,
    trained_size,
)


@dataclass(frozen=True)
class OperatorMetrics:
    """What depends on records without noise: for the operator's eyes, never to be published.

    Attributes:
        diagnostics: Loss, batch size, gradient norms before noise.
        saturated: Coordinates of the sum that were clamped before noise.
    """

    diagnostics: Diagnostics
    saturated: int


@dataclass(frozen=True)
class StepMetrics:
    """What one step tells.

    Attributes:
        step: Number of steps that this `PrivateStep` has made.
        seconds: Time by part. Clip (passes and products), release (what of it no product hid) and
            optimizer add up to the step; ``hidden`` is what sends took beside products. Not covered
            by the guarantee.
        operator: Exact figures that are not released.
        bound: Where gradients were clipped, with adaptive clipping; public.
        quantized: Layers that ran in low precision; public.
    """

    step: int
    seconds: Mapping[str, float]
    operator: OperatorMetrics
    bound: float | None = None
    quantized: tuple[str, ...] = ()


@dataclass(frozen=True)
class Released:
    """What a step's release left.

    Attributes:
        diagnostics: Of the clipped sum; the operator's.
        saturated: Coordinates of the sum that were clamped before noise.
        clipped_at: When clipping ended, by `time.perf_counter`.
        gradients: The noisy mean by parameter; none where it is in place already.
    """

    diagnostics: Diagnostics
    saturated: int
    clipped_at: float
    gradients: Mapping[str, Tensor]


class StepOptions(TypedDict, total=False):
    """Options that all steps have; see `PrivateStep`."""

    loss_fn: Required[Loss]
    account: Required[Account]
    entropy: Required[Entropy]
    style: Style | None
    adaptive: AdaptiveBound | None
    precision: Controller | None
    microbatch_size: int | None
    memory_limit: int | None
    noise_pool: bool
    transport: Transport | None
    bucket_size: int | None


class BaseStep(ABC):
    """A private step, but for the way on which sums leave and gradients come back.

    Options and errors are those of `PrivateStep`, which documents them.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        loss_fn: Loss,
        account: Account,
        entropy: Entropy,
        style: Style | None = None,
        adaptive: AdaptiveBound | None = None,
        precision: Controller | None = None,
        microbatch_size: int | None = None,
        memory_limit: int | None = None,
        noise_pool: bool = False,
        transport: Transport | None = None,
        bucket_size: int | None = None,
    ) -> None:
        check_optimizer(model, optimizer)
        ranks = transport.world_size if transport else 1
        self.model = model
        self.optimizer = optimizer
        self.account = account
        self.steps_made = 0
        self._dimension = trained_size(model)
        self._bucket_size = message_size(account.plan, self._dimension, ranks, bucket_size)
        self._spans = Spans()
        self._clip = Clipper(
            model,
            loss_fn,
            account,
            entropy,
            style=style,
            adaptive=adaptive,
            precision=precision,
            microbatch_size=microbatch_size,
            memory_limit=memory_limit,
            bucket_size=self._bucket_size,
            transport=transport,
            spans=self._spans,
            inventory=self._inventory(),
            ranks=ranks,
        )
        self._one_at_a_time = threading.Lock()
        self._noise = make_noise(
            account.plan, self._dimension, entropy, ahead=noise_pool, ranks=ranks
        )
        self._transport = transport
        self._sender = make_sender(model, self._bucket_size)

    def _inventory(self) -> Inventory | None:
        """Return the layers of a model that is not whole on this rank."""
        return None

    @property
    def plan(self) -> Plan:
        """What was promised."""
        return self.account.plan

    def pool_stats(self) -> PoolStats | None:
        """Return what the noise pool did; None without one."""
        return self._noise.stats() if isinstance(self._noise, NoisePool) else None

    def spans(self) -> list[Span]:
        """Return what the last step did when; durations are the operator's."""
        return self._spans.list()

    def close(self) -> None:
        """Stop the step's threads; without any, nothing. The step cannot go on after it."""
        if self._sender is not None:
            self._sender.close()
        if isinstance(self._noise, NoisePool):
            self._noise.close()

    def epsilon(self) -> float:
        """Return ε charged so far by this run, quantiles and probes included, from the ledger."""
        return self.account.ledger.epsilon(self.plan.delta, self.account.run)

    def __call__(self, batch: object) -> StepMetrics:
        """Make one step. Where there are several ranks, all make it together.

        Args:
            batch: A fresh `PoissonBatch` of this rank's loader; it may be empty.

        Raises:
            SamplingError: Not a fresh batch of the Poisson loader.
            BudgetExhaustedError: The plan has no step left; the model is unchanged.
            ModelError: The model or loss cannot be taken example by example.
            ReduceError: There is no sum; what left was protected and stays charged.
        """
        fresh = require_batch(batch)
        with self._one_at_a_time:
            return self._step(fresh)

    def _step(self, batch: PoissonBatch) -> StepMetrics:
        self._spans.clear()
        start = time.perf_counter()
        released = self._release(batch, start)
        after_release = time.perf_counter()
        self._apply(released.gradients)
        self.steps_made += 1
        self._note(after_release)
        self._spans.add("optimizer", after_release)
        parts = parts_of(self._spans, start, released.clipped_at, after_release)
        return StepMetrics(
            self.steps_made,
            {**parts, "optimizer": time.perf_counter() - after_release},
            OperatorMetrics(released.diagnostics, released.saturated),
            self._clip.bound,
            self._clip.quantized,
        )

    @abstractmethod
    def _release(self, batch: PoissonBatch, start: float) -> Released:
        """Clip a batch, pay for its sum, and release it; note the forward pass from ``start``."""

    @abstractmethod
    def _apply(self, gradients: Mapping[str, Tensor]) -> None:
        """Let the optimizer step on released gradients, and clear them."""

    def _note(self, released_at: float) -> None:  # noqa: B027 - most have nothing to note
        """Note what else the release took."""
