"""What `dither bench scaling` measures, and the rows that come of it."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dither.bench.harness import Row, not_measured, summarise
from dither.train.distributed.projection import RANKS

BATCH = 8192
ENGINES = ("ddp", "reduce")
SPEED_UP_TARGET = 0.59  # 1.7 times as fast on two processes
PRIVATE_OVER_PLAIN_TARGET = 1.1
REDUCE_OVER_DDP_TARGET = 1.0

Times = Mapping[str, Sequence[float]]  # seconds a step by contender, one for each round


@dataclass(frozen=True)
class Contender:
    """One way to train.

    Attributes:
        engine: ddp or reduce.
        private: Whether it is DP-SGD, else plain SGD.
        processes: 1 or 2, of one thread each.
        of: Where not 0: one process alone computes the share that one of so many ranks would.
    """

    engine: str
    private: bool
    processes: int
    of: int = 0

    @property
    def name(self) -> str:
        """For instance ddp/2, plain-reduce/1, reduce/1-of-64."""
        plain = "" if self.private else "plain-"
        share = f"-of-{self.of}" if self.of else ""
        return f"{plain}{self.engine}/{self.processes}{share}"


@dataclass(frozen=True)
class ScalingCase:
    """One row: a ratio, or a ratio of ratios.

    Attributes:
        name: Of the row.
        over: Contenders; the first over the second, and if there are four, that over the third over
            the fourth.
        target: Largest ratio that is promised.
    """

    name: str
    over: tuple[Contender, ...]
    target: float | None = None

    @property
    def baseline_name(self) -> str:
        """What stands below the line."""
        return "one process" if len(self.over) > 2 else self.over[1].name


def _speed_up(engine: str, *, private: bool) -> ScalingCase:
    two, one = Contender(engine, private, 2), Contender(engine, private, 1)
    return ScalingCase(two.name, (two, one), SPEED_UP_TARGET if private else None)


def _private_over_plain(engine: str) -> ScalingCase:
    sides = [Contender(engine, private, count) for count in (2, 1) for private in (True, False)]
    return ScalingCase(f"private-over-plain/{engine}/2", tuple(sides), PRIVATE_OVER_PLAIN_TARGET)


CASES: tuple[ScalingCase, ...] = (
    *(_speed_up(engine, private=True) for engine in ENGINES),
    *(_private_over_plain(engine) for engine in ENGINES),
    ScalingCase(
        "reduce-over-ddp/2",
        (Contender("reduce", True, 2), Contender("ddp", True, 2)),
        REDUCE_OVER_DDP_TARGET,
    ),
    *(_speed_up(engine, private=False) for engine in ENGINES),
)
NAMES = tuple(case.name for case in CASES)


def contenders(cases: Collection[ScalingCase]) -> tuple[Contender, ...]:
    """Return all that these cases need, each once."""
    return tuple(dict.fromkeys(part for case in cases for part in case.over))


def shares(engine: str) -> tuple[Contender, ...]:
    """Return the single ranks' shares whose times the projection is made of, the whole one too."""
    return tuple(Contender(engine, private=True, processes=1, of=of) for of in (0, 2, *RANKS))


def rows_of(case: ScalingCase, times: Times, steps: float, detail: str) -> Row:
    """Return the row of a case.

    Args:
        case: The case.
        times: Seconds a step.
        steps: Steps of an epoch.
        detail: Sizes, types, settings.
    """
    parts = [list(times[part.name]) for part in case.over]
    if len(parts) == 2:
        ours, baseline = ([steps * second for second in part] for part in parts)
        unit, metric = "s", "time"
    else:
        ours, baseline = _over(*parts[:2]), _over(*parts[2:])
        unit, metric = "", "ratio"
    return summarise(
        case.name,
        unit,
        ours=ours,
        baseline=baseline,
        baseline_name=case.baseline_name,
        detail=detail,
        metric=metric,
        target=case.target,
    )


def _over(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def rows_without(cases: Collection[ScalingCase], reason: str) -> Iterator[Row]:
    """Yield rows of what could not be measured."""
    for case in cases:
        yield replace(not_measured(case.name, case.baseline_name, reason), target=case.target)


@dataclass(frozen=True)
class Line:
    """A line of the table: an epoch by engine and number of processes.

    Attributes:
        engine: ddp or reduce.
        private: Whether it is DP-SGD.
        processes: Of one thread each.
        seconds: An epoch's, median.
        speed_up: Over one process of the same engine, where that was measured.
        steps: Steps that the model was trained for.
        auroc: Held out, then.
        cost: Of an epoch, at the price of a core hour that was given.
    """

    engine: str
    private: bool
    processes: int
    seconds: float
    speed_up: float | None
    steps: int
    auroc: float | None
    cost: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dict(vars(self))


def table(
    chosen: Collection[Contender],
    times: Times,
    *,
    steps: float,
    trained: int,
    auroc: Mapping[str, float],
    price: float | None,
) -> list[Line]:
    """Return the table, one process before two.

    Args:
        chosen: Contenders.
        times: Seconds a step.
        steps: Steps of an epoch.
        trained: Steps that each model was trained for.
        auroc: By contender.
        price: Of a core hour.
    """
    lines = []
    for part in sorted(chosen, key=lambda p: (not p.private, p.engine, p.processes)):
        epoch = steps * statistics.median(times[part.name])
        alone = times.get(Contender(part.engine, part.private, 1).name)
        lines.append(
            Line(
                engine=part.engine,
                private=part.private,
                processes=part.processes,
                seconds=epoch,
                speed_up=None if alone is None else steps * statistics.median(alone) / epoch,
                steps=trained,
                auroc=auroc.get(part.name),
                cost=None if price is None else price * part.processes * epoch / 3600.0,
            )
        )
    return lines
