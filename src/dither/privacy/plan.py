"""What is promised: one frozen plan, all of it public, and the only owner of σ."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from dither.errors import ConfigError, DitherWarning
from dither.privacy.accountant import check_delta, epsilon, epsilon_rdp
from dither.privacy.calibrate import noise_multiplier
from dither.privacy.events import Event, Gaussian, Relation, SampledGaussian, SamplerKind, Unit
from dither.privacy.lattice import Lattice, fine_step_exponent, make_lattice
from dither.privacy.trust import CENTRAL, Trust, parse_trust

# Gradients are float32: far below, their squares vanish and clipping would not see them.
CLIP_RANGE = (1e-9, 1e9)


_NOISE_RANGE = (0.03, 1e6)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A promise of (ε, δ)-differential privacy for a run of noisy steps.

    Everything here is public and everything that can change ε is here; options that only change
    speed live elsewhere. `bind` turns the promise into the numbers of an encoder.

    Attributes:
        records: n, the declared (public) number of training records.
        sampling_rate: q in (0, 1]; the expected batch size q·n is public and divides the sum.
        steps: Largest number of releases.
        l2_clip: C > 0, bound on one unit's contribution to a sum, in gradient units.
        noise_multiplier: z > 0, noise over the *charged* sensitivity.
        delta: δ in (0, 1).
        relation: Neighbouring relation.
        unit: Unit of privacy.
        sampler: How batches are drawn; the sampler that runs must be of this kind.
        trust: Who must not learn what.
        numeric_slack: Share of C added to the sensitivity for floating-point effects of the
            clipped sum (PRIVACY-REVIEW A4): removing one record changes how all others round.
        lattice_slack: Largest share of C that rounding to the fine lattice may add.
    """

    records: int
    sampling_rate: float
    steps: int
    l2_clip: float
    noise_multiplier: float
    delta: float
    relation: Relation = Relation.ZERO_OUT
    unit: Unit = Unit.RECORD
    sampler: SamplerKind = SamplerKind.POISSON
    trust: Trust = CENTRAL
    numeric_slack: float = 2e-3
    lattice_slack: float = 1e-3

    def __post_init__(self) -> None:
        _check_at_least("records", self.records, 1)
        _check_at_least("steps", self.steps, 1)
        check_clip(self.l2_clip)
        _check_positive("numeric_slack", self.numeric_slack)
        _check_positive("lattice_slack", self.lattice_slack)
        check_delta(self.delta)
        if (self.sampler is SamplerKind.FULL) != (self.sampling_rate == 1.0):
            raise ConfigError(
                expected="sampler full exactly when every record is in every batch",
                got=f"sampler {self.sampler} at rate {self.sampling_rate!r}",
                fix="use a rate below 1 with poisson, or rate 1 with full",
            )
        _ = self.event  # checks rate and noise multiplier
        if not _NOISE_RANGE[0] <= self.noise_multiplier <= _NOISE_RANGE[1]:
            raise ConfigError(
                expected=f"a noise multiplier in [{_NOISE_RANGE[0]:g}, {_NOISE_RANGE[1]:g}]",
                got=repr(self.noise_multiplier),
                fix="choose about 1; less noise than this range would protect nothing",
            )
        if self.delta >= 1.0 / self.records:
            _warn(
                f"delta {self.delta:g} is not below 1/n = {1 / self.records:.3g}: publishing "
                "whole records at random would satisfy such a delta"
            )

    @classmethod
    def calibrate(
        cls,
        *,
        epsilon: float,
        records: int,
        batch_size: float,
        steps: int,
        delta: float,
        l2_clip: float = 1.0,
        relation: Relation = Relation.ZERO_OUT,
        beside: tuple[tuple[Event, int], ...] = (),
        **options: Any,
    ) -> Plan:
        """Return the plan whose ε is the given one, found through its noise multiplier.

        Args:
            epsilon: Budget ε > 0.
            records: n, declared number of training records.
            batch_size: *Expected* batch size, at most n.
            steps: Number of releases.
            delta: δ.
            l2_clip: Clip bound C.
            relation: Neighbouring relation.
            beside: Other releases of the run, each with its count, that ε covers too: those of
                adaptive clipping (`AdaptiveClip.beside`). They are charged by plans of their own,
                so this plan's `epsilon` is below the budget by their part.
            **options: Other fields of `Plan`.

        Raises:
            ConfigError: A value is out of range.

        Example:
            >>> plan = Plan.calibrate(
            ...     epsilon=8.0, records=60_000, batch_size=512, steps=100, delta=1e-6
            ... )
            >>> plan.epsilon() <= 8.0
            True
        """
        _check_at_least("records", records, 1)
        _check_at_least("steps", steps, 1)
        check_delta(delta)
        if not 0 < batch_size <= records:
            raise ConfigError(
                expected=f"an expected batch size in (0, {records}], so a sampling rate in (0, 1]",
                got=repr(batch_size),
                fix="choose a batch size no larger than the number of training records",
            )
        rate = batch_size / records
        if epsilon > 10.0:
            _warn(f"epsilon {epsilon:g} is above 10: it promises very little to one record")
        z = noise_multiplier(
            epsilon, delta=delta, rate=rate, steps=steps, relation=relation, beside=beside
        )
        sampler = SamplerKind.FULL if rate == 1.0 else SamplerKind.POISSON
        return cls(
            records=records,
            sampling_rate=rate,
            steps=steps,
            l2_clip=l2_clip,
            noise_multiplier=z,
            delta=delta,
            relation=relation,
            sampler=sampler,
            **options,
        )

    @property
    def event(self) -> Event:
        """The exact event of one step, as the accountant composes it."""
        if self.sampler is SamplerKind.FULL:
            return Gaussian(self.noise_multiplier)
        return SampledGaussian(self.sampling_rate, self.noise_multiplier)

    @property
    def expected_batch_size(self) -> float:
        """q·n, the public divisor of a noisy sum."""
        return self.sampling_rate * self.records

    def epsilon(self, steps: int | None = None) -> float:
        """Return ε after a number of steps, of the whole plan by default."""
        count = self.steps if steps is None else steps
        return epsilon([(self.event, count)], self.delta, self.relation)

    def epsilon_rdp(self, steps: int | None = None) -> float | None:
        """Return ε by RDP, a looser cross-check; None where RDP does not apply."""
        count = self.steps if steps is None else steps
        return epsilon_rdp([(self.event, count)], self.delta, self.relation)

    def bind(self, l2_sensitivity: float, dimension: int, world_size: int = 1) -> Lattice:
        """Return the encoder's numbers for sums of this sensitivity and dimension.

        Sensitivity argument. Two neighbouring sums differ by at most C in exact arithmetic and by
        at most C + slack·C as computed; each of the d coordinates moves at most γ more when
        rounded to the fine lattice, so the integer vectors differ by at most C + γ√d + slack·C in
        units of the data. One rank holds the record, so this does not grow with R. Under
        ``replace_one`` the distance is at most twice that, which the accountant doubles itself.
        σ := z·(C + γ√d + slack·C) hence makes the event exactly z, whatever γ is.

        Args:
            l2_sensitivity: C of the sum at hand; must be the plan's clip bound.
            dimension: d, number of coordinates of the whole sum.
            world_size: R, number of ranks that add noise.

        Raises:
            ConfigError: The sum was not clipped to the plan's bound, or the lattice cannot hold it.
        """
        if l2_sensitivity != self.l2_clip:
            raise ConfigError(
                expected=f"a sum clipped to the plan's bound, l2_clip = {self.l2_clip!r}",
                got=f"a sum of sensitivity {l2_sensitivity!r}",
                fix="clip with the plan's l2_clip, or plan with the clipping's bound",
            )
        exponent = fine_step_exponent(l2_sensitivity, dimension, self.lattice_slack)
        rounding = math.ldexp(math.sqrt(dimension), exponent)
        charged = l2_sensitivity * (1.0 + self.numeric_slack) + rounding
        sigma = self.noise_multiplier * charged * self.trust.rank_share(world_size)
        return make_lattice(
            step_exponent=exponent,
            sigma=sigma,
            largest=self._largest_batch(world_size) * l2_sensitivity,
            world_size=world_size,
        )

    def _largest_batch(self, world_size: int) -> float:
        """Return how many contributions one rank's sum may hold before coordinates saturate.

        Ranks have shards of about one size, so each expects its part of the batch. Where shards
        are uneven a coordinate saturates sooner, which costs accuracy and no privacy.
        """
        if self.unit is Unit.RANK:  # one call, one contribution
            return 1.0
        expected = self.expected_batch_size / world_size
        return expected + 10.0 * math.sqrt(expected) + 10.0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "trust": str(self.trust)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Plan:
        """Rebuild a plan from `to_json`.

        Raises:
            ConfigError: Fields are missing, unknown or out of range.
        """
        absent = sorted(field.name for field in fields(cls) if field.name not in values)
        if absent:  # a default in place of a promise would be another promise
            raise ConfigError(
                expected="the fields of a plan",
                got=f"none of the name {', '.join(absent)}",
                fix="use the plan file that dither wrote, unchanged",
            )
        try:
            return cls(
                **{
                    **values,
                    "relation": Relation(values["relation"]),
                    "unit": Unit(values["unit"]),
                    "sampler": SamplerKind(values["sampler"]),
                    "trust": parse_trust(values["trust"]),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                expected="the fields of a plan",
                got=f"{type(error).__name__}: {error}",
                fix="use the plan file that dither wrote, unchanged",
            ) from error

    def digest(self) -> str:
        """Return a SHA-256 hex digest that changes when any promise changes."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def with_noise_multiplier(self, noise_multiplier: float) -> Plan:
        """Return the same plan with another z."""
        return replace(self, noise_multiplier=noise_multiplier)


def check_clip(l2_clip: float) -> None:
    """Refuse a clip bound that float32 gradients cannot be held to.

    Raises:
        ConfigError: It is not finite, or outside [1e-9, 1e9].
    """
    if not CLIP_RANGE[0] <= l2_clip <= CLIP_RANGE[1]:
        raise ConfigError(
            expected=f"an l2_clip in [{CLIP_RANGE[0]:g}, {CLIP_RANGE[1]:g}]",
            got=repr(l2_clip),
            fix="choose 1, or scale the loss: squares of float32 must not underflow or overflow",
        )


def _warn(text: str) -> None:
    warnings.warn(text, DitherWarning, stacklevel=4)


def _check_at_least(name: str, value: int, least: int) -> None:
    if not (isinstance(value, int) and value >= least):  # a NaN is not below anything
        raise ConfigError(
            expected=f"a whole number of {name}, at least {least}",
            got=repr(value),
            fix=f"choose {name} of {least} or more",
        )


def _check_positive(name: str, value: float) -> None:
    if not (value > 0.0 and math.isfinite(value)):
        raise ConfigError(
            expected=f"a finite {name} above 0", got=repr(value), fix=f"choose a positive {name}"
        )
