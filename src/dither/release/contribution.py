"""Releases of one contribution a rank: the unit of privacy is a rank's whole vector."""

from __future__ import annotations

import threading
import warnings
from typing import Any, final

import numpy as np
from jaxtyping import Float, Integer

from dither.errors import ConfigError, DitherWarning, ReleaseError
from dither.noise.blocks import BlockCodec
from dither.noise.codec import message_type
from dither.noise.pool import FreshNoise, NoisePool, is_private
from dither.privacy.account import Account
from dither.privacy.events import Relation, SamplerKind, Unit
from dither.privacy.lattice import Lattice
from dither.privacy.plan import CLIP_RANGE, Plan
from dither.release.arrays import check_arrays, own_memory
from dither.release.release import require_masks
from dither.release.transport import Contribute, FusedTransport, Transport, clipped


def contribution_plan(
    world_size: int,
    *,
    l2_clip: float,
    releases: int,
    delta: float,
    noise_multiplier: float | None = None,
    epsilon: float | None = None,
    **options: Any,
) -> Plan:
    """Return the plan of so many sums of one contribution a rank.

    Each release is a Gaussian mechanism without sampling under ``replace_one``: one rank's
    contribution becomes another in the same ball of radius C, at distance 2C (PRIVACY-REVIEW A6).

    Args:
        world_size: R.
        l2_clip: C, what each contribution is clipped to.
        releases: Largest number of calls.
        delta: δ.
        noise_multiplier: z, noise over C; or
        epsilon: the budget for all releases together.
        **options: Other fields of `Plan`, such as ``trust``.

    Raises:
        ConfigError: Both or neither of z and ε, or a value is out of range.
    """
    if (noise_multiplier is None) == (epsilon is None):
        raise ConfigError(
            expected="either a noise_multiplier or an epsilon for all releases",
            got="neither" if epsilon is None else "both",
            fix="pass one of them: a budget is never guessed",
        )
    _check_promise(l2_clip, releases)
    promise: dict[str, Any] = {
        "relation": Relation.REPLACE_ONE,
        "unit": Unit.RANK,
        "l2_clip": l2_clip,
        "delta": delta,
        "steps": releases,
        "records": world_size,
        **options,
    }
    if epsilon is not None:
        return Plan.calibrate(epsilon=epsilon, batch_size=world_size, **promise)
    assert noise_multiplier is not None  # noqa: S101 - one of the two
    return Plan(
        noise_multiplier=noise_multiplier,
        sampling_rate=1.0,
        sampler=SamplerKind.FULL,
        **promise,
    )


def _check_promise(l2_clip: float, releases: int) -> None:
    """Say what is wrong in the words of sums, before a plan says it in those of training."""
    if not (isinstance(releases, int) and releases >= 1):
        raise ConfigError(
            expected="a whole number of releases, at least 1",
            got=repr(releases),
            fix="pass the largest number of calls that the program will make",
        )
    least, most = CLIP_RANGE
    if not least <= l2_clip <= most:
        raise ConfigError(
            expected=f"clip, an L2 bound in [{least:g}, {most:g}]",
            got=repr(l2_clip),
            fix="choose about the norm of a usual contribution, and scale the data if it is beyond",
        )


@final
class ContributionRelease:
    """Releases sums of one clipped contribution a rank, of vectors up to one dimension.

    Sensitivity: the contribution is scaled by min(1, C/‖x‖), the norm taken in float64 and the
    factor rounded down (`clip_factor`), so it stays in the ball of radius C up to rounding that
    the plan's numeric slack covers; one rank's contribution replaced by another moves the sum by
    at most 2C. Contributions that are not finite count as zero: an error would leave the other
    ranks waiting, and tell them. The lattice is that of the largest dimension, so shorter vectors
    are charged for at least the rounding they do. Each call is charged before its message leaves.

    Args:
        account: The rank's, with a plan of `contribution_plan`.
        transport: Carries messages between ranks.
        noise: Fresh or from a pool.
        dimension: Largest length of a contribution.

    Raises:
        ConfigError: Another kind of plan, or no lattice holds its sums.
        ReleaseError: The trust needs masks, or the noise would not be secret.
    """

    def __init__(
        self,
        account: Account,
        transport: Transport,
        noise: FreshNoise | NoisePool,
        *,
        dimension: int,
    ) -> None:
        plan = account.plan
        _require_contributions(plan)
        require_masks(plan, transport)
        if account.insecure is None and not is_private(noise):
            raise ReleaseError(
                expected="dither's own noise, from the operating system's entropy",
                got="noise that repeats, is shared, or is not dither's",
                fix="pass FreshNoise or NoisePool with a new Key()",
            )
        self.account = account
        self._event = plan.event
        self.dimension = dimension
        self._transport = transport
        self._noise = noise
        self._lattice = bound_lattice(plan, dimension, transport.world_size)
        self._sum = self._carrier()

    @property
    def lattice(self) -> Lattice:
        """The numbers of its messages."""
        return self._lattice

    def __call__(self, values: Float[np.ndarray, " size"], out: Float[np.ndarray, " size"]) -> int:
        """Write the noisy sum of all ranks' clipped contributions to ``out``.

        Args:
            values: Contiguous float32 or float64, as long on all ranks, at most `dimension`.
            out: Float32 or float64 of the same length; may be ``values``.

        Returns:
            How many coordinates were clamped before noise: for the operator only.

        Raises:
            BudgetExhaustedError: The plan has no release left; nothing was sent.
            ReduceError: There is no sum; the release stays charged.
        """
        check_arrays(values, out)
        if values.size > self.dimension:
            raise ConfigError(
                expected=f"at most {self.dimension} values",
                got=str(values.size),
                fix="make a release for the larger dimension",
            )
        values = own_memory(values)
        self.account.charge(self._event)
        saturated, finite = self._sum(values, out)
        if not finite:
            _warn()  # not before: where warnings are errors, the others would wait, and so learn
        return saturated

    def _carrier(self) -> Contribute:
        clip = self.account.plan.l2_clip
        if isinstance(self._transport, FusedTransport):
            return self._transport.contributions(
                lattice=self._lattice, noise=self._noise, clip=clip
            )

        codec = BlockCodec(self._lattice, self._noise)
        block = self._transport.block or self.dimension
        # Kept: fresh memory costs as much as a pass over it.
        memory = np.empty(max(min(block, self.dimension), 1), message_type(self._lattice))
        one_at_a_time = threading.Lock()

        def contribute(values: np.ndarray, out: np.ndarray) -> tuple[int, bool]:
            finite, factor = clipped(values, clip)
            with one_at_a_time, codec.held():
                saturated = self._in_blocks(codec, memory, finite, out, factor)
            return saturated, finite is values

        return contribute

    def _in_blocks(
        self,
        codec: BlockCodec,
        memory: Integer[np.ndarray, " block"],
        values: Float[np.ndarray, " size"],
        out: Float[np.ndarray, " size"],
        factor: float,
    ) -> int:
        saturated = 0
        for start in range(0, max(values.size, 1), memory.size):
            part = values[start : start + memory.size]
            room = memory[: part.size]
            saturated += codec.encode(part, room, factor)
            codec.decode(self._transport.all_reduce(room), out[start : start + part.size])
        return saturated


def bound_lattice(plan: Plan, dimension: int, world_size: int) -> Lattice:
    """Return the lattice of contributions up to a dimension."""
    return plan.bind(plan.l2_clip, dimension, world_size)


def _warn() -> None:
    warnings.warn(
        "this rank's contribution is not finite and counts as zero: the other ranks must not "
        "learn of it, but look at what it computed",
        DitherWarning,
        stacklevel=3,
    )


def _require_contributions(plan: Plan) -> None:
    wanted = (Unit.RANK, Relation.REPLACE_ONE, SamplerKind.FULL)
    found = (plan.unit, plan.relation, plan.sampler)
    if found != wanted:
        raise ConfigError(
            expected=f"a plan with {', '.join(wanted)}, as contribution_plan makes it",
            got=", ".join(found),
            fix="each rank's contribution is the unit here: use contribution_plan(...)",
        )
