"""What a run with low precision is told: formats, schedule, periods, probe, and what that costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal, final

from dither.errors import ConfigError
from dither.precision.probe import ProbeOptions
from dither.precision.recipe import Recipe, parse_recipe
from dither.precision.relation import check_relation
from dither.precision.schedules import DpQuant, Schedule
from dither.privacy.events import Event, Gaussian, Relation, SampledGaussian
from dither.privacy.plan import Plan

By = Literal["compute", "layers"]


@final
@dataclass(frozen=True)
class Dynamic:
    """Low precision that moves from layer to layer (DPQuant).

    Attributes:
        recipe: Formats of weights, activations and gradients.
        schedule: Which layers run so, and when.
        by: What the schedule's fraction is a share of: the forward's multiply-adds or the number of
            layers.
        rotate_every: Steps between two choices; an epoch (n over the expected batch size) by
            default.
        probe: How a schedule that follows the loss learns of it; unused by the others.
        seed: Of the schedule's own draws, public; a fresh one by default. It decides no noise.
    """

    recipe: Recipe
    schedule: Schedule = field(default_factory=lambda: DpQuant(0.75))
    by: By = "compute"
    rotate_every: int | None = None
    probe: ProbeOptions = field(default_factory=ProbeOptions)
    seed: int | None = None

    def __post_init__(self) -> None:
        every, seed = self.rotate_every, self.seed
        recipe, schedule, probe = _any(self.recipe), _any(self.schedule), _any(self.probe)
        if not isinstance(recipe, Recipe):
            raise _wrong("a Recipe such as parse_recipe('int8')", recipe)
        if not isinstance(probe, ProbeOptions):
            raise _wrong("ProbeOptions(...) for the probe", probe)
        if not isinstance(schedule, Schedule):
            raise _wrong("a Schedule such as DpQuant(0.75)", schedule)
        if self.by not in {"compute", "layers"}:
            raise _wrong("by compute or by layers", self.by)
        if not (every is None or (type(every) is int and every >= 1)):
            raise _wrong("a whole rotate_every >= 1", every)
        if not (seed is None or (type(seed) is int and 0 <= seed < 2**63)):
            raise _wrong("a seed in [0, 2^63)", seed)

    @classmethod
    def of(cls, given: object) -> Dynamic:
        """Return options as they were given: whole, a `Recipe`, or a recipe's name.

        Raises:
            ConfigError: No such recipe, or something else.
        """
        if isinstance(given, Dynamic):
            return given
        if isinstance(given, Recipe):
            return cls(given)
        if isinstance(given, str):
            return cls(parse_recipe(given))
        raise _wrong("the name of a recipe, a Recipe or Dynamic(...)", given)

    def period(self, *, records: int, batch_size: float) -> int:
        """Return steps between two choices."""
        # q·n may lie a rounding below the batch size that q was made of.
        return self.rotate_every or max(1, math.ceil(records / batch_size - 1e-6))

    def probe_period(self, *, records: int, batch_size: float) -> int:
        """Return steps between two probes.

        Raises:
            ConfigError: It is no whole number of periods: choices follow probes.
        """
        period = self.period(records=records, batch_size=batch_size)
        every = self.probe.every or period
        if every % period:
            raise ConfigError(
                expected=f"a probe every whole number of periods of {period} steps",
                got=f"one every {every} steps",
                fix=f"set --probe-every to {period * max(1, round(every / period))}",
            )
        return every

    def releases(self, *, records: int, batch_size: float, steps: int) -> int:
        """Return how many probes there are in a number of steps; 0 for schedules without."""
        if not self.schedule.probes:
            return 0
        return -(-steps // self.probe_period(records=records, batch_size=batch_size))

    def beside(
        self,
        *,
        epsilon: float,
        delta: float,
        records: int,
        batch_size: float,
        steps: int,
        relation: Relation = Relation.ZERO_OUT,
    ) -> tuple[tuple[Event, int], ...]:
        """Return what all probes cost: ``Plan.calibrate(..., beside=...)`` makes room for it.

        Args:
            epsilon: ε of the whole run; the probes' noise follows from their share of it.
            delta: δ.
            records: n, declared number of training records.
            batch_size: Expected batch size of the gradients, and of the probes' samples.
            steps: Number of gradient steps.
            relation: Neighbouring relation.

        Raises:
            ConfigError: Under ``add_remove``, or the share is too small.
        """
        check_relation(relation)
        count = self.releases(records=records, batch_size=batch_size, steps=steps)
        if count == 0:
            return ()
        rate = batch_size / records
        z = self.probe.noise(
            epsilon=epsilon, delta=delta, rate=rate, releases=count, relation=relation
        )
        event: Event = Gaussian(z) if rate == 1.0 else SampledGaussian(rate, z)
        return ((event, count),)

    def probe_plan(self, gradients: Plan, epsilon: float | None = None) -> Plan | None:
        """Return the probes' own plan, beside gradients under the given one; None without probes.

        Args:
            gradients: The plan of the gradients.
            epsilon: ε of the whole run, as for `beside`; by default that of the gradients alone,
                which is less.

        Raises:
            ConfigError: Under ``add_remove``, or the share is too small.
        """
        check_relation(gradients.relation)
        size = gradients.expected_batch_size
        count = self.releases(records=gradients.records, batch_size=size, steps=gradients.steps)
        if count == 0:
            return None
        z = self.probe.noise(
            epsilon=gradients.epsilon() if epsilon is None else epsilon,
            delta=gradients.delta,
            rate=gradients.sampling_rate,
            releases=count,
            relation=gradients.relation,
        )
        return replace(gradients, steps=count, l2_clip=self.probe.clip, noise_multiplier=z)


def _any(value: object) -> object:
    """Return a value whose type nobody has looked at yet."""
    return value


def _wrong(expected: str, got: object) -> ConfigError:
    return ConfigError(expected=expected, got=repr(got), fix="change the option")
