"""From a Poisson batch to a bounded sum, as every private step begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import final

import numpy as np
import torch
from torch import nn

from dither.clipping.arithmetic import required_slack
from dither.clipping.arrivals import Receiver
from dither.clipping.clipping import ClippedSum, Clipping
from dither.clipping.engine import ClippingEngine
from dither.clipping.gradients import Inventory, Loss
from dither.clipping.lockstep_engine import LockstepEngine
from dither.clipping.styles import Flat, Style
from dither.clipping.validate import check_style
from dither.errors import ConfigError, SamplingError
from dither.noise.codec import message_type
from dither.noise.entropy import Entropy
from dither.noise.pool import FreshNoise, Noise, NoisePool
from dither.precision.controller import Controller
from dither.precision.relation import check_relation
from dither.privacy.account import Account
from dither.privacy.plan import Plan
from dither.release.ahead import Sender, Spans, hidden
from dither.release.transport import Transport
from dither.sampling.loader import PoissonBatch, check_rows
from dither.train.adaptive import AdaptiveBound

# Bytes of a message where several ranks sum: its cost is bandwidth by then, and the next one's
# products have something to hide.
BUCKET_BYTES = 1 << 20


@final
class Clipper:
    """Sums the clipped gradients of each batch, with a bound that may move.

    Args:
        model: Its trainable parameters are differentiated.
        loss_fn: Per-example loss.
        account: The run whose plan bounds the sum.
        entropy: Source of dropout.
        style: How gradients become shorter.
        adaptive: Moves the bound, in place of a style.
        precision: Chooses layers that run in low precision; ``loss_fn`` must be its loss.
        microbatch_size: As for `Clipping`.
        memory_limit: As for `Clipping`.
        bucket_size: Coordinates that leave together; None for all.
        transport: Carries the messages of the adaptive bound and of the probe.
        spans: Where to note what was done when.
        inventory: Of a model that gathers its layers; else the engine lists it.
        ranks: R, which such a model is spread over.

    Raises:
        ConfigError: A style and adaptive clipping, a plan with too little slack, or low precision
            with another loss or under ``add_remove``.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss,
        account: Account,
        entropy: Entropy,
        *,
        style: Style | None,
        adaptive: AdaptiveBound | None,
        microbatch_size: int | None,
        memory_limit: int | None,
        bucket_size: int | None,
        transport: Transport | None,
        spans: Spans,
        precision: Controller | None = None,
        inventory: Inventory | None = None,
        ranks: int = 1,
    ) -> None:
        check_slack(account.plan)
        check_precision(precision, loss_fn, account.plan)
        chosen = _style(style, adaptive)
        check_style(chosen, model, account.plan.l2_clip)
        clipping = Clipping(
            account.plan.l2_clip,
            style=chosen,
            relation=account.plan.relation,
            microbatch_size=microbatch_size,
            memory_limit=memory_limit,
            expected_rows=max(1, round(account.plan.expected_batch_size)),
        )
        make: Callable[..., ClippingEngine] = ClippingEngine
        if inventory is not None:
            make = partial(LockstepEngine, inventory=inventory, ranks=ranks)
        self.engine = make(
            model,
            loss_fn,
            clipping,
            entropy.stream("dropout"),
            bucket_size=bucket_size,
            spans=spans,
        )
        self.spans = spans
        self._plan = account.plan
        self._adaptive = adaptive
        self._precision = precision
        self._transport = transport

    def __call__(self, batch: PoissonBatch, receiver: Receiver | None = None) -> ClippedSum:
        """Sum a batch; before, if it is time, choose layers and move the bound.

        Args:
            batch: Fresh.
            receiver: As for `ClippingEngine`.

        Raises:
            ModelError: The model or loss cannot be taken example by example.
            SamplingError: Rows that are not records.
        """
        check_rows(batch)
        if self._precision is not None:  # first: the bound follows the norms of this choice
            self._precision.before_step(self._transport)
        if self._adaptive is not None:
            self._adaptive.before_step(self.engine.norms, self._transport)
            self.engine.clipping = replace(self.engine.clipping, style=self._adaptive.style)
        return self.engine(batch.data, batch.ticket, receiver)

    @property
    def bound(self) -> float | None:
        """Where adaptive clipping clips; None without it."""
        return None if self._adaptive is None else self._adaptive.bound

    @property
    def quantized(self) -> tuple[str, ...]:
        """Layers in low precision."""
        return () if self._precision is None else self._precision.chosen

    @property
    def scale(self) -> float:
        """What turns the released sum into a mean: clipped at B it was scaled by C/B."""
        clipping = self.engine.clipping
        return clipping.bound / clipping.l2_clip / self._plan.expected_batch_size


def require_batch(batch: object) -> PoissonBatch:
    """Return a batch of the Poisson loader.

    Raises:
        SamplingError: It is none.
    """
    if isinstance(batch, PoissonBatch):
        return batch
    raise SamplingError(
        expected="a batch of the loader that make_private returned",
        got=type(batch).__name__,
        fix="iterate over that loader and pass each batch to the step as it is",
    )


def message_size(plan: Plan, dimension: int, ranks: int, wanted: int | None) -> int | None:
    """Return how many coordinates travel together: about `BUCKET_BYTES`, all of them from one rank.

    Args:
        plan: Decides the wire's integers.
        dimension: d.
        ranks: R.
        wanted: The caller's number.

    Raises:
        ConfigError: Less than one.
    """
    if wanted is not None and not (isinstance(wanted, int) and wanted >= 1):
        raise ConfigError(
            expected="a bucket_size of at least 1 coordinate",
            got=repr(wanted),
            fix="leave it out for messages of about 1 MiB",
        )
    if ranks == 1 or wanted is not None:
        return wanted
    lattice = plan.bind(plan.l2_clip, dimension, ranks)
    return int(BUCKET_BYTES // np.dtype(message_type(lattice)).itemsize)


def make_noise(plan: Plan, dimension: int, entropy: Entropy, *, ahead: bool, ranks: int) -> Noise:
    """Return a step's noise, from a pool where it is made ahead.

    Raises:
        ConfigError: Ahead, in a seeded run.
    """
    key = entropy.stream("noise").key()
    if not ahead:
        return FreshNoise(key)
    if not key.secret:
        raise ConfigError(
            expected="fresh noise in a seeded run",
            got="a noise pool, whose draws come in an order that depends on timing",
            fix="leave noise_pool out",
        )
    lattice = plan.bind(plan.l2_clip, dimension, ranks)
    return NoisePool(lattice.sigma, key, dimension=dimension)


def _style(style: Style | None, adaptive: AdaptiveBound | None) -> Style:
    if adaptive is None:
        return style or Flat()
    if style is not None:
        raise ConfigError(
            expected="a style or adaptive clipping",
            got=f"both {type(style).__name__} and adaptive clipping",
            fix="leave one out: adaptive clipping is flat, with a bound that moves",
        )
    return adaptive.style


def check_slack(plan: Plan) -> None:
    """Refuse a plan whose numeric slack does not cover the rounding of its sums.

    Raises:
        ConfigError: Names the slack that would.
    """
    needed = required_slack(plan.relation, plan.expected_batch_size)
    if needed > plan.numeric_slack:
        raise ConfigError(
            expected=f"a numeric_slack of at least {needed:.2g} for this relation and batch size",
            got=f"{plan.numeric_slack:g}",
            fix=f"plan with numeric_slack={needed * 1.01:.2g}, or a smaller batch",
        )


def check_precision(precision: Controller | None, loss_fn: Loss, plan: Plan) -> None:
    """Refuse low precision that would not happen, or that no rounding argument covers.

    Raises:
        ConfigError: The loss is not the controller's, or the relation is ``add_remove``.
    """
    if precision is None:
        return
    check_relation(plan.relation)
    if loss_fn is not precision.loss:
        raise ConfigError(
            expected="the controller's own loss, which runs the model in low precision",
            got=f"a {type(loss_fn).__name__}",
            fix="pass loss_fn=controller.loss",
        )


def trained_size(model: nn.Module) -> int:
    """Return d, the number of trainable coordinates."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def make_sender(model: nn.Module, size: int | None) -> Sender | None:
    """Return a thread to send from, where there is something to compute beside it.

    There is not with one message. On another device the products are that device's, and the step's
    own thread is free already.

    Args:
        model: What is trained.
        size: Coordinates of a message.
    """
    host = torch.device("cpu")
    several = size is not None and size < trained_size(model)
    on_host = all(p.device == host for p in model.parameters() if p.requires_grad)
    return Sender() if several and on_host else None


def parts_of(spans: Spans, start: float, clipped: float, end: float) -> Mapping[str, float]:
    """Return the parts of a step up to its optimizer, which add up to their wall time.

    Args:
        spans: Of the step.
        start: When it began, seconds of `time.perf_counter`.
        clipped: When norms and factors were known.
        end: When all was released.
    """
    found = spans.list()
    products = sum(s.seconds for s in found if s.name.startswith("product") and s.start >= clipped)
    parts = {"clip": clipped - start + products, "release": max(0.0, end - clipped - products)}
    beside = hidden(found)
    return {**parts, "hidden": beside} if beside else parts
