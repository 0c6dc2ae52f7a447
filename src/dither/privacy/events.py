"""What one release costs, as a value: the only currency of plans, ledgers and accountants."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum

import dp_accounting
from dp_accounting import DpEvent

from dither.errors import ConfigError, LedgerError


class Relation(StrEnum):
    """When two data sets count as neighbours.

    ``zero_out``: one record's contribution becomes zero, while n, row numbers, splits and shards
    stay (and so may be public). ``add_remove``: one record more or fewer; n must be declared and
    nothing may follow row numbers. ``replace_one``: one record becomes another, at distance 2C.
    """

    ZERO_OUT = "zero_out"
    ADD_REMOVE = "add_remove"
    REPLACE_ONE = "replace_one"

    def to_dp_accounting(self) -> dp_accounting.NeighboringRelation:
        """Return dp-accounting's name for it.

        dp-accounting calls zero-out ``REPLACE_SPECIAL``. Its PLD doubles the sensitivity under
        ``REPLACE_ONE`` by itself, so events always carry noise over C, never over 2C.
        """
        relations = dp_accounting.NeighboringRelation
        return {
            Relation.ZERO_OUT: relations.REPLACE_SPECIAL,
            Relation.ADD_REMOVE: relations.ADD_OR_REMOVE_ONE,
            Relation.REPLACE_ONE: relations.REPLACE_ONE,
        }[self]


class Unit(StrEnum):
    """Whose presence is hidden: one record, one person (all their records), one rank's message."""

    RECORD = "record"
    PERSON = "person"
    RANK = "rank"


class SamplerKind(StrEnum):
    """How a batch was drawn. Only what is listed here can be charged."""

    POISSON = "poisson"
    FULL = "full"


@dataclass(frozen=True)
class SampledGaussian:
    """One Gaussian release on one fresh Poisson sample.

    Attributes:
        rate: Probability with which every record entered the sample.
        noise_multiplier: z, noise standard deviation over L2 sensitivity to one record.
    """

    rate: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        _check_rate(self.rate)
        _check_noise(self.noise_multiplier)

    def to_dp_event(self) -> DpEvent:
        """Return dp-accounting's event."""
        gaussian = dp_accounting.GaussianDpEvent(self.noise_multiplier)
        return dp_accounting.PoissonSampledDpEvent(self.rate, gaussian)


@dataclass(frozen=True)
class Gaussian:
    """One Gaussian release that looks at every record.

    Attributes:
        noise_multiplier: z, noise standard deviation over L2 sensitivity to one record.
    """

    noise_multiplier: float

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)

    def to_dp_event(self) -> DpEvent:
        """Return dp-accounting's event."""
        return dp_accounting.GaussianDpEvent(self.noise_multiplier)


@dataclass(frozen=True)
class ApproximateDP:
    """One release of a mechanism of which no more is known than that it is (ε, δ)-private.

    So it is charged as the worst mechanism of that kind: one that with probability δ tells all,
    and else is randomised response at ε (Kairouz, Oh and Viswanath 1311.0776), whose privacy loss
    bounds that of every other. Who charges it vouches for (ε, δ) towards one *unit* under the
    account's *relation*; nothing is doubled here.

    Attributes:
        epsilon: ε > 0 of the release.
        delta: δ in [0, 1); 0 for pure ε, as of Laplace noise.
    """

    epsilon: float
    delta: float = 0.0

    def __post_init__(self) -> None:
        if not (self.epsilon > 0.0 and math.isfinite(self.epsilon)):
            raise ConfigError(
                expected="a finite epsilon above 0 for a release",
                got=repr(self.epsilon),
                fix="give a positive budget, for instance 0.1",
            )
        if not 0.0 <= self.delta < 1.0:
            raise ConfigError(
                expected="a delta in [0, 1) for a release",
                got=repr(self.delta),
                fix="choose 0, or well below one over the number of records",
            )

    def to_dp_event(self) -> DpEvent:
        """Return what dp-accounting's accountants refuse: they have no event for it."""
        return dp_accounting.UnsupportedDpEvent()


@dataclass(frozen=True)
class NonPrivate:
    """A release without protection: ε = ∞.

    Attributes:
        reason: Why it happened, for the auditor.
    """

    reason: str

    def to_dp_event(self) -> DpEvent:
        """Return dp-accounting's event."""
        return dp_accounting.NonPrivateDpEvent()


Event = SampledGaussian | Gaussian | ApproximateDP | NonPrivate

_KINDS: dict[
    str, type[SampledGaussian] | type[Gaussian] | type[ApproximateDP] | type[NonPrivate]
] = {
    "sampled_gaussian": SampledGaussian,
    "gaussian": Gaussian,
    "approximate_dp": ApproximateDP,
    "non_private": NonPrivate,
}


def event_to_json(event: Event) -> dict[str, float | str]:
    """Return the event as plain JSON values; floats survive the round trip exactly."""
    kind = next(name for name, cls in _KINDS.items() if type(event) is cls)
    return {"kind": kind, **asdict(event)}


def event_from_json(values: Mapping[str, object]) -> Event:
    """Rebuild an event.

    Raises:
        LedgerError: The values are not an event that this version knows.
    """
    fields = {name: value for name, value in values.items() if name != "kind"}
    try:
        return _KINDS[str(values["kind"])](**fields)  # type: ignore[arg-type]
    except (KeyError, TypeError, ConfigError) as error:
        raise LedgerError(
            expected=f"an event of one of the kinds {sorted(_KINDS)}",
            got=repr(dict(values)),
            fix="read this ledger with the version of dither that wrote it",
        ) from error


def on_one_sample(*noise_multipliers: float) -> float:
    """Combine several Gaussian releases on the same sample into one noise multiplier.

    Two releases on one Poisson sample are not two sampled events: the sample is drawn once. Jointly
    they are one Gaussian with 1/z² = Σ 1/z_i², then sampled once.
    """
    for value in noise_multipliers:
        _check_noise(value)
    return 1.0 / math.sqrt(math.fsum(value**-2 for value in noise_multipliers))


def _check_rate(rate: float) -> None:
    if not 0.0 < rate <= 1.0:
        raise ConfigError(
            expected="a sampling rate in (0, 1]",
            got=repr(rate),
            fix="choose an expected batch size between 1 and the number of records",
        )


def _check_noise(noise_multiplier: float) -> None:
    if not (noise_multiplier > 0.0 and math.isfinite(noise_multiplier)):
        raise ConfigError(
            expected="a finite noise multiplier above 0",
            got=repr(noise_multiplier),
            fix="give epsilon and let the plan calibrate it, or give a positive number",
        )
