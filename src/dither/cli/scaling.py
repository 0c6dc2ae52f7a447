"""The options of `dither bench scaling`, and its tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Column, Table

from dither.bench.harness import Row
from dither.bench.scaling_cases import Line
from dither.cli.allreduce import Mode
from dither.cli.words import amount
from dither.config import BenchConfig
from dither.errors import ConfigError
from dither.train.distributed.projection import Projected


def mode(
    config: BenchConfig,
    cases: Sequence[str],
    rows_table: Callable[[list[Row]], RenderableType],
) -> Mode:
    """Return what these options ask for.

    Args:
        config: With the name scaling.
        cases: Names that were chosen; all when empty.
        rows_table: The usual table of a bench.

    Raises:
        ConfigError: Options out of range, or a figure of no known format.
    """
    from dither.bench.scaling import Scaling, effort  # noqa: PLC0415 - loads PyTorch
    from dither.report.scale import check_format  # noqa: PLC0415
    from dither.report.scaling import write_scaling_figure  # noqa: PLC0415

    _check(config)
    figure = config.figure
    if figure is not None:
        check_format(figure)
    rounds, steps = effort(full=config.full)
    bench = Scaling(data=config.data, price=config.price, rounds=rounds, steps=steps)

    def rows() -> Iterator[Row]:
        yield from bench.rows(cases)
        if figure is not None and bench.projected:
            write_scaling_figure(
                figure, measured=bench.measured, projected=bench.projected, epoch=bench.epoch
            )

    return Mode(
        rows(),
        more=bench.to_json,
        table=lambda found: Group(
            rows_table(found),
            *tables(bench.lines, bench.projected, bench.epoch, priced=config.price is not None),
        ),
    )


def _check(config: BenchConfig) -> None:
    if config.price is not None and not 0.0 < config.price < float("inf"):
        raise ConfigError(
            expected="a finite --price above 0, of an hour of one core",
            got=repr(config.price),
            fix="give for instance --price 0.05, or leave it out",
        )
    if config.data is not None and not config.data.exists():
        raise ConfigError(
            expected=f"census records at {config.data}",
            got="no such file or folder",
            fix="get some with dither data fetch, or leave --data out",
        )


def tables(
    lines: Sequence[Line],
    projected: Mapping[str, Sequence[Projected]],
    epoch: float,
    *,
    priced: bool,
) -> Iterator[Table]:
    """Yield the table of epochs, and what is projected for more ranks.

    Args:
        lines: One for each engine and number of processes.
        projected: Steps on more ranks, by engine.
        epoch: Steps of an epoch.
        priced: Whether a price was given.
    """
    if lines:
        yield _epochs(lines, priced=priced)
    if any(projected.values()):
        yield _projection(projected, epoch)


def _epochs(lines: Sequence[Line], *, priced: bool) -> Table:
    numbers = [
        Column(name, justify="right") for name in ("processes", "an epoch", "speed-up", "AUROC")
    ]
    cost = [Column("cost", justify="right")] if priced else []
    table = Table(
        "engine",
        "training",
        *numbers,
        *cost,
        title="An epoch, by engine and processes of one thread",
        caption=f"Held-out AUROC after {lines[0].steps} steps; private with z = 1. Cost: of an "
        "epoch, processes times hours times the price of a core hour."
        if priced
        else f"Held-out AUROC after {lines[0].steps} steps; private with z = 1.",
    )
    for line in lines:
        table.add_row(
            line.engine,
            "private" if line.private else "plain",
            str(line.processes),
            amount(line.seconds, "s"),
            "" if line.speed_up is None else f"{line.speed_up:.2f}",
            "" if line.auroc is None else f"{line.auroc:.3f}",
            *(["" if line.cost is None else f"{line.cost:.3g}"] if priced else []),
        )
    return table


def _projection(projected: Mapping[str, Sequence[Projected]], epoch: float) -> Table:
    heads = ("ranks", "an epoch", "computing", "summing")
    table = Table(
        "engine",
        "network",
        *(Column(name, justify="right") for name in heads),
        "algorithm",
        title="Projected: private",
        caption="Computing was measured here, a rank's share alone; sums are the cost model's; no "
        "overlap. Networks are assumed.",
    )
    for engine, points in projected.items():
        for point in points:
            times = (point.seconds, point.computing, point.summing)
            table.add_row(
                engine,
                point.network,
                str(point.ranks),
                *(amount(epoch * seconds, "s") for seconds in times),
                point.algorithm,
            )
    return table
