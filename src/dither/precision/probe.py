"""The private probe: how much the loss rises where one layer alone runs in low precision.

Sensitivity. Of each example i of a fresh Poisson sample the vector d_i ∈ R^L is computed, d_il =
loss of i with layer l quantised minus its loss with none. It is a function of record i, of weights
(released) and of fresh secret random numbers alone: scales of activations are made from one example
(`dither.precision`), no dropout is drawn, and kernels round a row of a batch of one shape as they
do whatever the other rows hold. An entry that is not finite counts as zero, and the vector is
scaled to L2 norm C_p at most. An example is one unit of the plan, of a person all rows: other rows
than units are refused, and so is a model or a loss that looks across the sample, which is tried
before every release. What is summed is d_i rounded towards zero to whole multiples of
C_p·2⁻⁴⁰: that lengthens none, and integers add up exactly, in any order. Under ``zero_out`` the
sum hence moves by at most C_p, under ``replace_one`` by 2·C_p (which the accountant doubles by
itself), up to the rounding of a norm and of one division in float64, which the plan's numeric slack
covers a million times over. Under ``add_remove`` a missing record moves the rows of others, kernels
may round them otherwise, and a quantiser turns the last bit into a whole step: refused.

So the sum of all L coordinates is one sensitivity-C_p release, and with noise z_p·C_p one event of
the probe's plan for all layers together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from dither.clipping.batches import as_batch
from dither.clipping.capture import version_of
from dither.clipping.check import check_losses
from dither.clipping.gradients import Chunk
from dither.clipping.half import check_arithmetic
from dither.clipping.loss import by_rows, losses_of
from dither.clipping.randomness import secret_generators
from dither.errors import ConfigError, ModelError
from dither.noise.entropy import Entropy
from dither.noise.pool import FreshNoise
from dither.precision.impacts import RELEASED, Impacts
from dither.precision.loss import QuantizedLoss
from dither.precision.mode import as_it_trains
from dither.precision.relation import check_relation
from dither.privacy.account import Account
from dither.privacy.calibrate import noise_multiplier
from dither.privacy.events import Relation
from dither.privacy.plan import check_clip
from dither.privacy.ticket import SampleTicket
from dither.release.bounded_sum import BoundedSum
from dither.release.release import release_sum
from dither.release.transport import Transport
from dither.sampling.loader import PoissonBatch, check_rows

_BITS = 40  # of a vector's length: far below any noise, and 2²³ examples fit 64 bits
_SLACK = 1e-9
_MOST = 1 << 22  # expected records of a sample: a drawn one is never twice as large


@final
@dataclass(frozen=True)
class ProbeOptions:
    """How the probe measures, and what it may cost.

    Attributes:
        every: Steps between two probes, a whole number of periods; every period by default.
        share: Most that all probes alone may take of the run's ε, in (0, 1).
        clip: C_p, bound on the L2 norm of one example's differences, in units of the loss. Small on
            purpose: which layer minds most shows in the direction of d_i, and noise grows with C_p.
        ema: Weight of the newest probe in the moving average, in (0, 1].
        noise_multiplier: z_p, in place of ``share``.
        rows: Examples that pass through the model at a time. Speed and memory only.
    """

    every: int | None = None
    share: float = 0.02
    clip: float = 0.01
    ema: float = 0.5
    noise_multiplier: float | None = None
    rows: int = 256

    def __post_init__(self) -> None:
        z = self.noise_multiplier
        _require(_whole(self.every, optional=True), "a whole every >= 1", self.every)
        _require(0.0 < self.share < 1.0, "a probe share in (0, 1)", self.share)
        check_clip(self.clip)
        _require(0.0 < self.ema <= 1.0, "an ema weight in (0, 1]", self.ema)
        _require(z is None or 0.0 < z < math.inf, "a finite noise_multiplier above 0", z)
        _require(_whole(self.rows), "a whole number of rows >= 1", self.rows)

    def noise(
        self, *, epsilon: float, delta: float, rate: float, releases: int, relation: Relation
    ) -> float:
        """Return z_p: the least noise with which all probes alone stay within their share of ε.

        Args:
            epsilon: Of the whole run.
            delta: δ of the run.
            rate: Sampling rate of a probe.
            releases: How many probes there will be.
            relation: Neighbouring relation.

        Raises:
            ConfigError: No noise that a lattice holds would be enough.
        """
        if self.noise_multiplier is not None:
            return self.noise_multiplier
        try:
            return noise_multiplier(
                self.share * epsilon, delta=delta, rate=rate, steps=releases, relation=relation
            )
        except ConfigError as error:
            raise ConfigError(
                expected=f"{releases} probes within {self.share:g} of epsilon {epsilon:g}",
                got=error.got,
                fix="probe less often (--probe-every), or raise --probe-share",
            ) from error


@final
class Probe:
    """Releases how much each layer minds low precision; the only way to learn it.

    Guarantee: every `release` is one event of ``account.plan``, charged before anything leaves, on
    a Poisson sample of its own (never the gradient's: two releases on one sample cost more than on
    two, PRIVACY-REVIEW A2). Exact differences and losses stay inside.

    Args:
        model: In training; its weights are released ones.
        loss: The run's quantised loss; what it has chosen is put back after each probe.
        account: Of the probes alone, ``account.part("probe", plan)`` of the run's.
        draw: Gives a fresh Poisson sample of this rank's records, at the plan's rate.
        entropy: Source of noise and of stochastic rounding.
        options: Clip bound and average; the plan must have the same bound.

    Attributes:
        impacts: The moving average.
        releases: Probes made, those of lost lineages included.

    Raises:
        ConfigError: Under ``add_remove``, or a plan of another bound.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: QuantizedLoss,
        account: Account,
        draw: Callable[[], PoissonBatch],
        entropy: Entropy,
        *,
        options: ProbeOptions | None = None,
    ) -> None:
        self.options = options or ProbeOptions()
        self.account = account
        self.loss = loss
        self.names = tuple(layer.name for layer in loss.layers)
        _check_plan(account, self.options)
        self._model = model
        self._draw = draw
        self._noise = FreshNoise(entropy.stream("probe noise").key())
        self._rounding = entropy.stream("probe rounding")
        self.impacts = Impacts.none_yet(self.names)
        self.releases = account.steps_charged

    @property
    def steps_left(self) -> int:
        """Probes that the plan still allows."""
        return self.account.steps_left

    def release(self, transport: Transport | None = None) -> Impacts:
        """Draw, measure, charge, add noise; return the moving average, which is public.

        With several ranks all call it together, each with records of its own.

        Args:
            transport: Carries messages between ranks.

        Raises:
            SamplingError: Rows of the sample that are not units; nothing is charged.
            ModelError: The model or the loss looks across the sample, or keeps something of it;
                nothing is charged.
            BudgetExhaustedError: The plan has no probe left.
            ReduceError: There is no sum; what left was protected and stays charged.
        """
        batch = self._draw()
        try:
            bounded = self._bounded(batch)
        except BaseException as error:
            if transport is not None:  # the other ranks shall not wait for a message of this one
                transport.abandon(type(error).__name__)
            raise
        released = release_sum(bounded, self.account, transport, self._noise)
        self.releases += 1
        plan = self.account.plan
        carried = plan.trust.sum_multiple(transport.world_size if transport else 1)
        sigma = plan.noise_multiplier * plan.l2_clip * carried
        scale = 1.0 / plan.expected_batch_size
        self.impacts = self.impacts.after(released, scale, sigma * scale, self.options.ema)
        return self.impacts

    def _bounded(self, batch: PoissonBatch) -> BoundedSum:
        """Return the sum over a sample; its sensitivity is argued at the top of this file."""
        check_rows(batch)
        check_arithmetic(self._model)
        parts = [torch.zeros(len(self.names), dtype=torch.int64)]
        with _unchanged(self._model):
            found = self._differences(batch.data)
            parts.extend(whole_steps(d, self.options.clip).sum(0).cpu() for d in found)
        return clipped_impacts(torch.stack(parts).sum(0), self.options.clip, batch.ticket)

    def _differences(self, data: Any) -> Iterator[Float64[Tensor, "rows layers"]]:
        """Yield d_i of a sample, some examples at a time. Secret."""
        batch = as_batch(data)
        if not batch.rows:
            return
        model, seed = self._model, self._rounding.seed()
        with torch.no_grad(), _evaluating(model), secret_generators(batch.device, seed):
            rows = min(self.options.rows, batch.rows)
            for start in range(0, batch.rows, rows):
                chunk = batch.chunk(start, start + rows, rows)
                if not start:  # nothing has vouched for the model yet: the step checks later
                    check_losses(partial(self._losses, names=self.names), chunk)
                plain = self._losses(chunk, names=())
                quantised = [self._losses(chunk, names=(name,)) for name in self.names]
                yield (torch.stack(quantised, 1) - plain[:, None])[: chunk.real]

    def _losses(self, chunk: Chunk, *, names: tuple[str, ...]) -> Float64[Tensor, " rows"]:
        with self.loss.choosing(names), as_it_trains(self._model):
            losses = losses_of(self._model, self.loss, chunk.data)
        return by_rows(losses, chunk.rows).double()


def whole_steps(
    differences: Float64[Tensor, "rows layers"], clip: float
) -> Int64[Tensor, "rows layers"]:
    """Return each example's vector, clipped to C_p, in whole steps of C_p·2⁻⁴⁰.

    Args:
        differences: d_i; entries that are not finite count as zero.
        clip: C_p.

    Returns:
        Int64 vectors of L2 norm at most 2⁴⁰ (up to rounding of float64).
    """
    finite = torch.where(torch.isfinite(differences), differences, 0.0)
    lengths = torch.linalg.vector_norm(finite, dim=1, keepdim=True)
    factors = (clip / lengths).clamp(max=1.0)
    return torch.trunc(finite * factors * (2.0**_BITS / clip)).long()


def clipped_impacts(
    steps: Int64[Tensor, " layers"], clip: float, ticket: SampleTicket
) -> BoundedSum:
    """Return a sum of `whole_steps`, to be released.

    Args:
        steps: Σ over a sample, int64 ``[layers]``.
        clip: C_p.
        ticket: The sample's.
    """
    total = steps.double() * (clip / 2.0**_BITS)
    return BoundedSum(
        chunks=({RELEASED: total},),
        dimension=total.numel(),
        l2_clip=clip,
        ticket=ticket,
        slack={
            Relation.ZERO_OUT: _SLACK,
            Relation.REPLACE_ONE: _SLACK,
            Relation.ADD_REMOVE: math.inf,
        },
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout off for a while."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Refuse a model that keeps something of a sample: the step's check sees no evaluation mode.

    Raises:
        ModelError: Names buffers or parameters that were written to.
    """
    named = [*model.named_buffers(), *model.named_parameters()]
    before = [version_of(tensor) for _, tensor in named]
    yield
    now = dict(model.named_buffers())
    changed = [
        name
        for (name, tensor), version in zip(named, before, strict=True)
        if version_of(tensor) != version or _replaced(tensor, now.get(name, tensor))
    ]
    if changed:
        raise ModelError(
            expected="no buffers or parameters that records update",
            got=f"a forward pass in evaluation mode that changes {', '.join(changed[:3])}",
            fix="update them outside of forward, from released or public values",
        )


def _replaced(tensor: Tensor, now: Tensor) -> bool:
    """Return whether a buffer is another one of its size: a table of constants may have grown."""
    return now is not tensor and now.shape == tensor.shape


def _check_plan(account: Account, options: ProbeOptions) -> None:
    check_relation(account.plan.relation)
    expected = account.plan.expected_batch_size
    if expected > _MOST:
        raise ConfigError(
            expected=f"samples of {_MOST} records at most, whose sum 64 bits hold",
            got=f"{expected:g} expected",
            fix="plan with a smaller batch, or use schedule random, which makes no probe",
        )
    if account.plan.l2_clip != options.clip:
        raise ConfigError(
            expected=f"a plan of probes clipped at {options.clip:g}",
            got=f"one with l2_clip {account.plan.l2_clip:g}",
            fix="open the probe's account with account.part('probe', dynamic.probe_plan(plan))",
        )


def _whole(value: object, *, optional: bool = False) -> bool:
    return (optional and value is None) or (type(value) is int and value >= 1)


def _require(holds: bool, expected: str, value: object) -> None:
    if not holds:
        raise ConfigError(expected=expected, got=repr(value), fix="change the option")
