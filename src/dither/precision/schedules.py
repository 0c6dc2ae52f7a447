"""Which layers run in low precision, and when: functions of public and released values alone.

Every schedule is a pure function of a public seed, the number of the period and, for `DpQuant`, the
released `Impacts`: post-processing, so it costs no privacy, and a resumed run makes the same
choices. What tells schedules apart is the order in which they take layers; how many they take is
one rule for all (`fill`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from dither.errors import ConfigError
from dither.precision.impacts import Impacts

_CLOSE = 1e-9  # shares are sums of floats


@final
@dataclass(frozen=True)
class Candidates:
    """The layers that may be quantised.

    Attributes:
        names: Their names, in the model's order.
        costs: What each one's forward costs: equal numbers to count layers, multiply-adds to count
            compute, of which an embedding has none. Public: made of shapes.
    """

    names: tuple[str, ...]
    costs: tuple[float, ...]

    def __post_init__(self) -> None:
        fit = len(self.names) == len(self.costs) == len(set(self.names)) > 0
        priced = all(0.0 <= cost < math.inf for cost in self.costs) and any(self.costs)
        if fit and not any(self.costs):
            raise ConfigError(
                expected="a layer whose forward pass multiplies, to take a share of the compute",
                got=f"{len(self.names)} layers that are looked up only, or never run",
                fix="count layers instead: by='layers' (--quantized-by layers)",
            )
        if not (fit and priced):
            raise ConfigError(
                expected="at least one layer with a cost, each with a name of its own",
                got=f"{len(self.names)} layers, costs {list(self.costs)[:4]}",
                fix="quantise a model with Linear, Conv, Embedding or attention layers",
            )

    def share(self, names: Sequence[str]) -> float:
        """Return the part of all cost that these layers have, in [0, 1]."""
        known = dict(zip(self.names, self.costs, strict=True))
        return math.fsum(known[name] for name in names) / math.fsum(self.costs)


@dataclass(frozen=True)
class Schedule(ABC):
    """Chooses layers for each period.

    Attributes:
        kind: Its name in options and reports.
        probes: Whether it follows released impacts.
    """

    kind: ClassVar[str]
    probes: ClassVar[bool] = False

    @abstractmethod
    def choose(
        self,
        period: int,
        candidates: Candidates,
        *,
        seed: int,
        periods: int,
        impacts: Impacts | None = None,
    ) -> tuple[str, ...]:
        """Return the layers to quantise, in the model's order.

        Args:
            period: Counted from 0.
            candidates: All layers.
            seed: Public, of the run; all ranks have the same.
            periods: Number of periods in the whole run.
            impacts: What probes released so far; None before the first.
        """


@final
@dataclass(frozen=True)
class NoLayers(Schedule):
    """Full precision throughout: the baseline."""

    kind: ClassVar[str] = "none"

    def choose(
        self,
        period: int,  # noqa: ARG002
        candidates: Candidates,  # noqa: ARG002
        *,
        seed: int,  # noqa: ARG002
        periods: int,  # noqa: ARG002
        impacts: Impacts | None = None,  # noqa: ARG002
    ) -> tuple[str, ...]:
        """Return none."""
        return ()


@final
@dataclass(frozen=True)
class AllLayers(Schedule):
    """Every layer, always: what naive quantisation does."""

    kind: ClassVar[str] = "all"

    def choose(
        self,
        period: int,  # noqa: ARG002
        candidates: Candidates,
        *,
        seed: int,  # noqa: ARG002
        periods: int,  # noqa: ARG002
        impacts: Impacts | None = None,  # noqa: ARG002
    ) -> tuple[str, ...]:
        """Return all."""
        return candidates.names


@final
@dataclass(frozen=True)
class Static(Schedule):
    """One random set for the whole run.

    Attributes:
        fraction: Share of the cost to quantise, in [0, 1].
    """

    fraction: float
    kind: ClassVar[str] = "static"

    def __post_init__(self) -> None:
        _check_fraction(self.fraction)

    def choose(
        self,
        period: int,  # noqa: ARG002
        candidates: Candidates,
        *,
        seed: int,
        periods: int,  # noqa: ARG002
        impacts: Impacts | None = None,  # noqa: ARG002
    ) -> tuple[str, ...]:
        """Return the run's set."""
        return fill(candidates, shuffled(candidates.names, seed, 0), self.fraction)


@final
@dataclass(frozen=True)
class Rotating(Schedule):
    """Another random set each period, every layer with the same chance: ``random``.

    Attributes:
        fraction: Share of the cost to quantise, in [0, 1].
    """

    fraction: float
    kind: ClassVar[str] = "random"

    def __post_init__(self) -> None:
        _check_fraction(self.fraction)

    def choose(
        self,
        period: int,
        candidates: Candidates,
        *,
        seed: int,
        periods: int,  # noqa: ARG002
        impacts: Impacts | None = None,  # noqa: ARG002
    ) -> tuple[str, ...]:
        """Return this period's set."""
        return fill(candidates, shuffled(candidates.names, seed, period), self.fraction)


@final
@dataclass(frozen=True)
class Ramp(Schedule):
    """As `Rotating`, with a share that moves evenly from period to period.

    It goes from ``start`` to ``fraction``: high precision while there is most to learn, or the
    reverse.

    Attributes:
        fraction: Share of the cost in the last period, in [0, 1].
        start: Share in the first.
    """

    fraction: float
    start: float = 0.0
    kind: ClassVar[str] = "ramp"

    def __post_init__(self) -> None:
        _check_fraction(self.fraction)
        _check_fraction(self.start)

    def share(self, period: int, periods: int) -> float:
        """Return the share of a period; a run of one has the last one's."""
        way = min(1.0, period / (periods - 1)) if periods > 1 else 1.0
        return self.start + way * (self.fraction - self.start)

    def choose(
        self,
        period: int,
        candidates: Candidates,
        *,
        seed: int,
        periods: int,
        impacts: Impacts | None = None,  # noqa: ARG002
    ) -> tuple[str, ...]:
        """Return this period's set."""
        order = shuffled(candidates.names, seed, period)
        return fill(candidates, order, self.share(period, periods))


@final
@dataclass(frozen=True)
class DpQuant(Schedule):
    """DPQuant (Gao et al., ICLR'26): sampled, so that the load rotates, and aware of the loss.

    Layers are drawn one by one without replacement with weights softmax(−β·s), s being the
    `Impacts.scores` of the released moving average (our reading; the paper's details are not
    public). One draw of Gumbel noise a layer gives that order at once (Kool et al. 1903.06059,
    section 3): −β·s + G in descending order. Before the first probe, and where probes saw nothing
    but noise, it is `Rotating`.

    Attributes:
        fraction: Share of the cost to quantise, in [0, 1].
        beta: β ≥ 0, how much a layer's score counts; 0 is `Rotating`.
    """

    fraction: float
    beta: float = 2.0
    kind: ClassVar[str] = "dpquant"
    probes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_fraction(self.fraction)
        if not 0.0 <= self.beta <= 1e6:
            raise ConfigError(
                expected="a beta in [0, 1e6]", got=repr(self.beta), fix="choose about 2"
            )

    def choose(
        self,
        period: int,
        candidates: Candidates,
        *,
        seed: int,
        periods: int,  # noqa: ARG002
        impacts: Impacts | None = None,
    ) -> tuple[str, ...]:
        """Return this period's set.

        Raises:
            ConfigError: Impacts of other layers, or differences that were not released.
        """
        order = gumbel_order(candidates.names, self._logits(candidates, impacts), seed, period)
        return fill(candidates, order, self.fraction)

    def _logits(self, candidates: Candidates, impacts: Impacts | None) -> tuple[float, ...]:
        if impacts is None:
            return (0.0,) * len(candidates.names)
        if not isinstance(impacts, Impacts) or impacts.names != candidates.names:
            raise ConfigError(
                expected=f"released impacts of these {len(candidates.names)} layers",
                got=type(impacts).__name__
                if not isinstance(impacts, Impacts)
                else f"those of {len(impacts.names)} others",
                fix="pass what Probe.release returned for this model",
            )
        return tuple(-self.beta * score for score in impacts.scores())


SCHEDULES: tuple[str, ...] = ("none", "all", "static", "random", "dpquant", "ramp")

_BY_FRACTION: dict[str, Callable[[float], Schedule]] = {
    "static": Static,
    "random": Rotating,
    "dpquant": DpQuant,
    "ramp": Ramp,
}


def parse_schedule(name: str, fraction: float) -> Schedule:
    """Return the schedule of a name.

    Args:
        name: One of `SCHEDULES`.
        fraction: Share of the cost to quantise; ``none`` and ``all`` have their own.

    Raises:
        ConfigError: No such schedule, or a fraction outside [0, 1].
    """
    if name == "none":
        return NoLayers()
    if name == "all":
        return AllLayers()
    if name not in _BY_FRACTION:
        raise ConfigError(
            expected=f"a schedule of {', '.join(SCHEDULES)}", got=repr(name), fix="name one of them"
        )
    return _BY_FRACTION[name](fraction)


def fill(candidates: Candidates, order: Sequence[str], fraction: float) -> tuple[str, ...]:
    """Take layers in an order until their share of the cost is at least the fraction.

    Then those that are not needed to stay there are left out, last in the order first: a large
    layer that came late can make smaller ones before it needless. With equal costs none is.

    Args:
        candidates: All layers.
        order: All names, those to take first in front.
        fraction: In [0, 1].

    Returns:
        The names, in the model's order.
    """
    costs = dict(zip(candidates.names, candidates.costs, strict=True))
    wanted = (fraction - _CLOSE) * math.fsum(candidates.costs)
    taken: dict[str, float] = {}
    for name in order:
        if math.fsum(taken.values()) >= wanted:
            break
        taken[name] = costs[name]
    for name in reversed(list(taken)):
        cost = taken.pop(name)
        if math.fsum(taken.values()) < wanted:
            taken[name] = cost
    return tuple(name for name in candidates.names if name in taken)


def shuffled(names: Sequence[str], seed: int, period: int) -> tuple[str, ...]:
    """Return names in an order that the seed decides, every one with the same chance."""
    return gumbel_order(names, (0.0,) * len(names), seed, period)


def gumbel_order(
    names: Sequence[str], logits: Sequence[float], seed: int, period: int
) -> tuple[str, ...]:
    """Return names as if drawn one by one, without replacement, with weights softmax(logits)."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, period])))
    keys = np.asarray(logits, np.float64) + generator.gumbel(size=len(names))
    return tuple(names[index] for index in np.argsort(-keys, kind="stable"))


def _check_fraction(fraction: float) -> None:
    if not 0.0 <= fraction <= 1.0:
        raise ConfigError(
            expected="a fraction of the layers or of the compute in [0, 1]",
            got=repr(fraction),
            fix="choose 0.75 or 0.9, for instance",
        )
