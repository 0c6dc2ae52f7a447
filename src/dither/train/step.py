"""One private step: sample → clip → release → optimise."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from dither.clipping.arithmetic import required_slack
from dither.clipping.clipping import Clipping, Diagnostics
from dither.clipping.engine import ClippingEngine
from dither.clipping.gradients import Loss
from dither.clipping.styles import Flat, Style
from dither.clipping.validate import check_style
from dither.errors import ConfigError, ModelError, SamplingError
from dither.noise.entropy import Entropy
from dither.noise.pool import FreshNoise, Noise, NoisePool, PoolStats
from dither.privacy.account import Account
from dither.privacy.plan import Plan
from dither.release.release import release_sum
from dither.release.transport import Transport
from dither.sampling.loader import PoissonBatch
from dither.train.adaptive import AdaptiveBound


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
        seconds: Time by part: clip, release, optimizer. Not covered by the guarantee.
        operator: Exact figures that are not released.
        bound: Where gradients were clipped, with adaptive clipping; public.
    """

    step: int
    seconds: Mapping[str, float]
    operator: OperatorMetrics
    bound: float | None = None


@final
class PrivateStep:
    """Makes private steps; call it with each batch of the Poisson loader.

    Only the noisy sum divided by the *expected* batch size, a public number, ever stands in
    ``p.grad``; gradients are cleared again before it returns. An empty batch is a normal step.

    Args:
        model: Trained in place.
        optimizer: Any optimizer over the model's parameters; it only sees the noisy gradient, so
            momentum and Adam's moments are post-processing (DP-Adam).
        loss_fn: Per-example loss.
        account: The run that pays.
        entropy: Source of noise and dropout.
        style: How gradients become shorter; the sensitivity is the plan's clip bound in each.
        adaptive: Moves the bound, in place of a style.
        microbatch_size: Examples that pass through the model at a time. Changes speed and memory
            only, as does the next.
        memory_limit: Bytes that one pass may take, about.
        noise_pool: Make noise ahead, on a thread of its own: worth it where a core is idle and the
            model is large. Changes speed and nothing else.
        transport: Carries messages between ranks.
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
        microbatch_size: int | None = None,
        memory_limit: int | None = None,
        noise_pool: bool = False,
        transport: Transport | None = None,
    ) -> None:
        check_optimizer(model, optimizer)
        check_slack(account.plan)
        chosen = _style(style, adaptive)
        check_style(chosen, model, account.plan.l2_clip)
        self.model = model
        self.optimizer = optimizer
        self.account = account
        self.steps_made = 0
        self._dropout = entropy.stream("dropout")
        clipping = Clipping(
            account.plan.l2_clip,
            style=chosen,
            relation=account.plan.relation,
            microbatch_size=microbatch_size,
            memory_limit=memory_limit,
            expected_rows=max(1, round(account.plan.expected_batch_size)),
        )
        self._engine = ClippingEngine(model, loss_fn, clipping, self._dropout)
        self._released = _memory(model)
        self._one_at_a_time = threading.Lock()
        self._noise = _noise(
            model,
            account.plan,
            entropy,
            ahead=noise_pool,
            ranks=transport.world_size if transport else 1,
        )
        self._transport = transport
        self._adaptive = adaptive

    @property
    def plan(self) -> Plan:
        """What was promised."""
        return self.account.plan

    def pool_stats(self) -> PoolStats | None:
        """Return what the noise pool did; None without one."""
        return self._noise.stats() if isinstance(self._noise, NoisePool) else None

    def close(self) -> None:
        """Stop the noise pool's thread; without a pool, nothing. The step cannot go on after it."""
        if isinstance(self._noise, NoisePool):
            self._noise.close()

    def epsilon(self) -> float:
        """Return ε charged so far by this run, its quantiles included, from the ledger."""
        return self.account.ledger.epsilon(self.plan.delta, self.account.run)

    def __call__(self, batch: object) -> StepMetrics:
        """Make one step.

        Args:
            batch: A fresh `PoissonBatch` of the loader.

        Raises:
            SamplingError: Not a fresh batch of the Poisson loader.
            BudgetExhaustedError: The plan has no step left; the model is unchanged.
            ModelError: The model or loss cannot be taken example by example.
        """
        if not isinstance(batch, PoissonBatch):
            raise SamplingError(
                expected="a batch of the loader that make_private returned",
                got=type(batch).__name__,
                fix="iterate over that loader and pass each batch to the step as it is",
            )
        with self._one_at_a_time:
            return self._step(batch)

    def _step(self, batch: PoissonBatch) -> StepMetrics:
        start = time.perf_counter()
        check_rows(batch)
        if self._adaptive is not None:
            self._adaptive.before_step(self._engine.norms, self._transport)
            self._engine.clipping = replace(self._engine.clipping, style=self._adaptive.style)
        clipped = self._engine(batch.data, batch.ticket)
        after_clip = time.perf_counter()
        released = release_sum(
            clipped.bounded,
            self.account,
            self._transport,
            self._noise,
            scale=self._scale(),
            dtype=self._released.dtype,
            out=self._released,
        )
        after_release = time.perf_counter()
        apply_gradient(self.model, self.optimizer, released.tensors)
        self.steps_made += 1
        seconds = {
            "clip": after_clip - start,
            "release": after_release - after_clip,
            "optimizer": time.perf_counter() - after_release,
        }
        operator = OperatorMetrics(clipped.diagnostics, released.saturated)
        bound = None if self._adaptive is None else self._adaptive.bound
        return StepMetrics(self.steps_made, seconds, operator, bound)

    def _scale(self) -> float:
        """Return what turns the released sum into a mean: clipped at B it was scaled by C/B."""
        clipping = self._engine.clipping
        return clipping.bound / clipping.l2_clip / self.plan.expected_batch_size


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


def _noise(model: nn.Module, plan: Plan, entropy: Entropy, *, ahead: bool, ranks: int) -> Noise:
    key = entropy.stream("noise").key()
    if not ahead:
        return FreshNoise(key)
    if not key.secret:
        raise ConfigError(
            expected="fresh noise in a seeded run",
            got="a noise pool, whose draws come in an order that depends on timing",
            fix="leave noise_pool out",
        )
    dimension = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lattice = plan.bind(plan.l2_clip, dimension, ranks)
    return NoisePool(lattice.sigma, key, dimension=dimension)


def check_rows(batch: PoissonBatch) -> None:
    """Refuse a batch with other rows than records: one record would count several times.

    Raises:
        SamplingError: A collate function repeated, dropped or merged records.
    """
    first = next((leaf for leaf in tree_leaves(batch.data) if isinstance(leaf, Tensor)), None)
    if first is not None and first.ndim and first.shape[0] != batch.size:
        raise SamplingError(
            expected=f"one row for each of the {batch.size} records of the batch",
            got=f"{first.shape[0]} rows",
            fix="use a collate_fn that makes one row of one record",
        )


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


def apply_gradient(model: nn.Module, optimizer: Optimizer, gradients: Mapping[str, Tensor]) -> None:
    """Let the optimizer step on released gradients, and clear them.

    They become ``p.grad`` as they are, views of one memory; only those of another type are copied.
    """
    _clear(optimizer)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gradient = gradients[name]
            same = gradient.dtype is parameter.dtype
            parameter.grad = gradient if same else gradient.to(parameter.dtype)
    optimizer.step()
    _clear(optimizer)


def _clear(optimizer: Optimizer) -> None:
    """Forget gradients: what `zero_grad` does, without its detours."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def _memory(model: nn.Module) -> Tensor:
    """Return memory for released gradients, used again each step."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.empty(sum(p.numel() for p in trained), dtype=gradient_dtype(model))


def gradient_dtype(model: nn.Module) -> torch.dtype:
    """Return the type to release gradients in: float64 where a parameter has it, else float32."""
    wide = any(p.dtype == torch.float64 for p in model.parameters() if p.requires_grad)
    return torch.float64 if wide else torch.float32


def check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse an optimizer that would step on gradients that no release made.

    Raises:
        ModelError: It holds parameters that are not the model's.
    """
    known = {id(parameter) for parameter in model.parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if not all(id(parameter) in known for parameter in held):
        raise ModelError(
            expected="an optimizer over this model's parameters",
            got="one with parameters of something else",
            fix="build it from model.parameters(), after moving the model to its device",
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ModelError(
            expected="an optimizer that takes one gradient a step",
            got="LBFGS, which evaluates the loss again",
            fix="use SGD or Adam",
        )
