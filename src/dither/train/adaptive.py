"""Adaptive clipping: the bound follows a noisy quantile of gradient norms (Andrew et al.)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from dither.clipping.styles import Flat
from dither.errors import ConfigError
from dither.noise.entropy import Entropy
from dither.noise.pool import FreshNoise
from dither.privacy.account import Account
from dither.privacy.events import Event, Gaussian, Relation, SampledGaussian
from dither.privacy.plan import Plan, check_clip
from dither.privacy.ticket import SampleTicket
from dither.release.bounded_sum import BoundedSum
from dither.release.release import release_sum
from dither.release.transport import Transport
from dither.sampling.gather import Collate
from dither.sampling.loader import PoissonBatch, PoissonLoader, check_rows
from dither.sampling.poisson import PoissonSampler

Norms = Callable[[Any], Float64[Tensor, " rows"]]

HALF = 0.5  # L2 norm of one record's part of the count: ±1/2
_WIDEST = 1e6  # the bound stays within this factor of where it began
_SHARE = 10.0  # of the expected batch size: 1905.03871 adds noise of a twentieth to a count by 1/2
_LEAST_NOISE = 2.0


@final
@dataclass(frozen=True)
class AdaptiveClip:
    """Clip where a share of the gradients is shorter, and follow it (Andrew et al. 1905.03871).

    Every few steps a *fresh* Poisson sample is drawn, never the gradient's: two releases on one
    sample cost more than two samples (PRIVACY-REVIEW A2). How many of its gradients are within the
    bound B is released with noise, and B ← B·exp(−η(share − quantile)). These releases have a plan
    and an account of their own, named ``RUN/quantile``, in the ledger of the records.

    Attributes:
        quantile: Share of gradients that B should leave whole, in (0, 1).
        learning_rate: η > 0.
        every: Steps between two releases of the share.
        noise_multiplier: Noise of such a release over its sensitivity; a tenth of the expected
            batch size by default and at least 2, so that the share errs by a twentieth.
        bound: B at the beginning; the plan's clip bound by default. To go on with a run, give the
            last ``bound`` that a step told. Public: a constant or made of released values.
    """

    quantile: float = 0.5
    learning_rate: float = 0.2
    every: int = 10
    noise_multiplier: float | None = None
    bound: float | None = None

    def __post_init__(self) -> None:
        _require(0.0 < self.quantile < 1.0, "a quantile in (0, 1)", self.quantile)
        _require(0.0 < self.learning_rate <= 10.0, "a learning_rate in (0, 10]", self.learning_rate)
        _require(isinstance(self.every, int) and self.every >= 1, "a whole every >= 1", self.every)
        noise = self.noise_multiplier
        _require(
            noise is None or 0.0 < noise < math.inf, "a finite noise_multiplier above 0", noise
        )
        if self.bound is not None:
            check_clip(self.bound)

    def beside(
        self, *, records: int, batch_size: float, steps: int
    ) -> tuple[tuple[Event, int], ...]:
        """Return what these releases cost: ``Plan.calibrate(..., beside=...)`` makes room for it.

        Args:
            records: n, declared number of training records.
            batch_size: Expected batch size of the gradients, and of these samples.
            steps: Number of gradient steps.
        """
        rate = batch_size / records
        z = self._noise(rate * records)
        event = Gaussian(z) if rate == 1.0 else SampledGaussian(rate, z)
        return ((event, self.releases(steps)),)

    def releases(self, steps: int) -> int:
        """Return how many shares are released in a number of gradient steps."""
        return -(-steps // self.every)

    def plan(self, gradients: Plan) -> Plan:
        """Return the plan of these releases, for gradients under the given one."""
        return replace(
            gradients,
            steps=self.releases(gradients.steps),
            l2_clip=HALF,
            noise_multiplier=self._noise(gradients.expected_batch_size),
        )

    def _noise(self, expected_batch_size: float) -> float:
        if self.noise_multiplier is not None:
            return self.noise_multiplier
        return max(_LEAST_NOISE, expected_batch_size / _SHARE)


@final
class AdaptiveBound:
    """The bound of a run with `AdaptiveClip`, and what moves it.

    Guarantee: every move is one event of ``account.plan``, on a sample of its own; everything else
    here is post-processing. Sensitivity: see `within`.

    Args:
        clip: The options.
        account: Of the run whose gradients are clipped.
        draw: Gives a fresh Poisson sample of the same records at the plan's rate.
        entropy: Source of noise.
        records: Content hash of the records, as for `Account`.

    Raises:
        ConfigError: Under ``add_remove``.
        LedgerError: The run's quantile is in the ledger with another plan.
    """

    def __init__(
        self,
        clip: AdaptiveClip,
        account: Account,
        draw: Callable[[], PoissonBatch],
        entropy: Entropy,
        *,
        records: str | None = None,
    ) -> None:
        _check_relation(account.plan.relation)
        self.clip = clip
        self.account = account.part("quantile", clip.plan(account.plan), records=records)
        self.releases = self.account.steps_charged
        self._gradients = account
        self._draw = draw
        self._noise = FreshNoise(entropy.stream("quantile noise").key())
        self._first = clip.bound or account.plan.l2_clip
        self._bound = self._first
        self._steps = 0

    @property
    def bound(self) -> float:
        """B, public."""
        return self._bound

    @property
    def style(self) -> Flat:
        """The style that clips at B."""
        return Flat(self._bound)

    def resume(self, bound: float, step: int) -> None:
        """Go on from a checkpoint: with its bound, after that many steps."""
        check_clip(bound)
        self._bound = bound
        self._steps = step

    def before_step(self, norms: Norms, transport: Transport | None = None) -> None:
        """Move the bound, if it is time.

        Once the plan's releases are used up, which happens early only where a crash lost some, the
        bound stays where it is.

        Args:
            norms: Gives gradient norms of a batch.
            transport: Carries messages between ranks.
        """
        due = self._steps % self.clip.every == 0
        if due and self.account.steps_left > 0 and self._gradients.steps_left > 0:
            self._move(norms, transport)
        self._steps += 1

    def _move(self, norms: Norms, transport: Transport | None) -> None:
        batch = self._draw()
        check_rows(batch)
        total = within(norms(batch.data), self._bound, batch.ticket)
        released = release_sum(total, self.account, transport, self._noise)
        self.releases += 1
        mean = float(released.tensors["within"]) / self.account.plan.expected_batch_size
        share = min(1.0, max(0.0, HALF + mean))
        moved = self._bound * math.exp(-self.clip.learning_rate * (share - self.clip.quantile))
        self._bound = min(self._first * _WIDEST, max(self._first / _WIDEST, moved))


def within(norms: Float64[Tensor, " rows"], bound: float, ticket: SampleTicket) -> BoundedSum:
    """Return Σ (1[‖g_i‖ ≤ B] − 1/2), as a sum to be released.

    Sensitivity: a record's part is +1/2 or −1/2, and 0 without it, so it moves the sum by 1/2; one
    that becomes another moves it by 1, which the accountant doubles by itself. Sums of halves are
    exact in float64, so there is no rounding to charge. A norm that is not finite counts as above.

    Args:
        norms: Of one sample's gradients, each a function of its own record alone.
        bound: B.
        ticket: The sample's.
    """
    parts = torch.where(norms <= bound, HALF, -HALF)
    return BoundedSum(
        chunks=({"within": parts.sum().reshape(())},), dimension=1, l2_clip=HALF, ticket=ticket
    )


def quantile_samples(
    dataset: Any, rate: float, entropy: Entropy, collate: Collate | None = None
) -> Callable[[], PoissonBatch]:
    """Return a function that draws samples for `AdaptiveBound`, apart from the gradients'.

    Args:
        dataset: Map-style data set, that of the gradients.
        rate: The plan's sampling rate.
        entropy: Secret randomness.
        collate: Merges items; PyTorch's default when None.
    """
    sampler = PoissonSampler(len(dataset), rate, entropy.stream("quantile sampling"))
    loader = PoissonLoader(dataset, sampler, 1, collate=collate)
    return lambda: next(iter(loader))


def _check_relation(relation: Relation) -> None:
    """Refuse ``add_remove``: an indicator jumps where rounding moves a norm across the bound.

    Without one record the rows after it move to other places of their batch, where kernels may
    round them otherwise; many could cross at once. Under the other relations they stay.
    """
    if relation is Relation.ADD_REMOVE:
        raise ConfigError(
            expected="relation zero_out or replace_one for adaptive clipping",
            got="add_remove, where a missing record moves the others' rows, and rounding then "
            "decides which side of the bound they count on",
            fix="use one of these relations, or a fixed bound",
        )


def _require(holds: bool, expected: str, value: object) -> None:
    if not holds:
        raise ConfigError(expected=expected, got=repr(value), fix="change the option")
