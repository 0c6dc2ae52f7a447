"""How much each layer minds low precision, as released: the only thing a schedule may follow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from dither.errors import CheckpointError, ConfigError
from dither.release.release import Released

RELEASED = "impacts"  # name of the probe's tensor


@final
@dataclass(frozen=True)
class Impacts:
    """An exponential moving average of released loss differences, one a layer.

    It is made of what `dither.release` let out, so all that follows from it is post-processing.

    Attributes:
        names: Layers.
        values: d̄, mean rise of the loss where that layer alone is quantised, each example's vector
            clipped to C_p; in units of the loss.
        noise: Standard deviation of the noise in each value; public.
        probes: Releases that it is made of.
    """

    names: tuple[str, ...]
    values: tuple[float, ...]
    noise: float
    probes: int

    def __post_init__(self) -> None:
        if len(self.names) != len(self.values) or not all(map(math.isfinite, self.values)):
            raise ConfigError(
                expected=f"one finite value for each of {len(self.names)} layers",
                got=f"{len(self.values)} values",
                fix="pass on what Probe.release returned",
            )

    def after(self, released: object, scale: float, noise: float, weight: float) -> Impacts:
        """Return the average after another release.

        The first is taken whole; then d̄ ← weight·d + (1 − weight)·d̄.

        Args:
            released: A probe's `Released`.
            scale: Turns the sum into a mean.
            noise: Standard deviation of the noise in that mean.
            weight: Of the newest, in (0, 1].
        """
        if not isinstance(released, Released):
            raise ConfigError(
                expected="a sum that dither.release let out, charged and with its noise",
                got=type(released).__name__,
                fix="pass what release_sum returned; exact differences must not be looked at",
            )
        found = [value * scale for value in released.tensors[RELEASED].tolist()]
        new = weight if self.probes else 1.0
        values = tuple(new * a + (1.0 - new) * b for a, b in zip(found, self.values, strict=True))
        mixed = math.hypot(new * noise, (1.0 - new) * self.noise)
        return Impacts(self.names, values, mixed, self.probes + 1)

    @classmethod
    def none_yet(cls, names: Sequence[str]) -> Impacts:
        """Return the average before the first release."""
        return cls(tuple(names), (0.0,) * len(names), 0.0, 0)

    def scores(self) -> tuple[float, ...]:
        """Return how far each layer is from the mean of all, in standard deviations over layers.

        What noise alone would spread is taken off: scores are shrunk by the share of the variance
        over layers that is not the noise's, and zero where all of it may be. So a schedule that
        follows them becomes a random one where the probe saw nothing.
        """
        mean = math.fsum(self.values) / max(1, len(self.values))
        centred = [value - mean for value in self.values]
        variance = math.fsum(value * value for value in centred) / max(1, len(centred) - 1)
        if variance <= self.noise**2:
            return (0.0,) * len(centred)
        seen = 1.0 - self.noise**2 / variance
        return tuple(seen * value / math.sqrt(variance) for value in centred)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "names": list(self.names),
            "values": list(self.values),
            "noise": self.noise,
            "probes": self.probes,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Impacts:
        """Rebuild it from a checkpoint.

        Raises:
            CheckpointError: It is not what `to_json` gave.
        """
        try:
            return cls(
                tuple(str(name) for name in values["names"]),
                tuple(float(value) for value in values["values"]),
                float(values["noise"]),
                int(values["probes"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                expected="the released impacts of a run",
                got=f"{type(error).__name__}: {error}",
                fix="resume from another checkpoint of the run",
            ) from error
