"""The options of `dither bench allreduce`: tuning, simulation, hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from dither.bench.harness import Row
from dither.cli.words import amount
from dither.config import BenchConfig
from dither.errors import ConfigError


@dataclass(frozen=True)
class Mode:
    """What a bench is to do.

    Attributes:
        rows: Its rows, as they come.
        more: Returns what its JSON has besides, when all rows came.
        table: Shows the rows; None for the usual table.
    """

    rows: Iterable[Row]
    more: Callable[[], dict[str, Any]] = dict
    table: Callable[[list[Row]], RenderableType] | None = None


def mode(config: BenchConfig) -> Mode | None:
    """Return what these options ask for; None where there are none.

    Raises:
        ConfigError: Options that contradict each other, or out of range.
    """
    given = {"tune": config.tune or None, "simulate": config.simulate, "hosts": config.hosts}
    asked = [name for name, value in given.items() if value is not None]
    if len(asked) > 1 or (asked and config.cases):
        raise ConfigError(
            expected="one of --cases, --tune, --simulate and --hosts",
            got=" and ".join(
                f"--{name}" for name in [*asked, *(["cases"] if config.cases else [])]
            ),
            fix="run them one after the other",
        )
    if config.figure is not None and asked != ["simulate"]:
        raise ConfigError(
            expected="--figure together with --simulate",
            got="--figure alone",
            fix="add for instance --simulate 8192",
        )
    makers = {"tune": _tune, "simulate": _simulate, "hosts": _hosts}
    return makers[asked[0]](config) if asked else None


def _tune(config: BenchConfig) -> Mode:
    from dither.bench.allreduce_tune import tune  # noqa: PLC0415 - loads PyTorch
    from dither.reduce.algorithms.auto import table_path  # noqa: PLC0415

    return Mode(tune(full=config.full), more=lambda: {"table": str(table_path())})


def _hosts(config: BenchConfig) -> Mode:
    from dither.bench import allreduce_hosts  # noqa: PLC0415 - loads PyTorch

    count = config.hosts or 0
    if not (2 <= count <= 16 and 1.0 <= config.mbit <= 1e5):
        raise ConfigError(
            expected="2 to 16 --hosts with 1 to 100000 --mbit",
            got=f"{config.hosts} hosts, {config.mbit:g} Mbit/s",
            fix="choose for instance --hosts 4 --mbit 200",
        )
    return Mode(allreduce_hosts.rows(count=count, mbit=config.mbit, full=config.full))


def _simulate(config: BenchConfig) -> Mode:
    from dither.bench.allreduce_scale import scale  # noqa: PLC0415 - loads PyTorch
    from dither.reduce.simulate import Simulation, world_sizes  # noqa: PLC0415
    from dither.report.scale import (  # noqa: PLC0415
        check_format,
        error_figure_path,
        write_error_figure,
        write_scale_figure,
    )

    largest, figure = config.simulate or 0, config.figure
    world_sizes(largest)
    if figure is not None:
        check_format(figure)
    found: list[Simulation] = []

    def rows() -> Iterator[Row]:
        simulation, all_rows = scale(largest)
        found.append(simulation)
        yield from all_rows
        if figure is not None:
            write_scale_figure(simulation, figure)
            write_error_figure(simulation, error_figure_path(figure))

    return Mode(
        rows(),
        more=lambda: {"simulation": found[0].to_json()},
        table=lambda _: scale_tables(found[0]),
    )


def scale_tables(simulation: Any) -> RenderableType:
    """Return error and times by the number of ranks, and where the networks' figures come from."""
    sizes = sorted({point.world_size for point in simulation.errors})
    kinds = ("central", "distributed", "local")
    errors = Table(
        "ranks",
        *(f"{kind}" for kind in kinds),
        title="Error of the sum in units of zC: measured (theory)",
        caption="Every rank's noise drawn separately and summed on the wire's lattice.",
    )
    for size in sizes:
        points = [point for point in simulation.errors if point.world_size == size]
        cells = (next(p for p in points if p.trust.startswith(kind)) for kind in kinds)
        errors.add_row(str(size), *(f"{p.rms:.3f} ({p.theory:.3f})" for p in cells))
    names = list(dict.fromkeys(point.protection for point in simulation.times))
    parts: list[RenderableType] = [errors]
    for network in simulation.networks:
        heads = (name.replace("/", "\n") for name in names)
        table = Table("ranks", *heads, title=f"Reckoned time, {network.name}")
        for size in sizes:
            times = {
                point.protection: point.seconds
                for point in simulation.times
                if (point.network, point.world_size) == (network.name, size)
            }
            table.add_row(str(size), *(amount(times[name], "s") for name in names))
        table.caption = f"{simulation.message} numbers. {network.source}."
        parts.append(table)
    return Group(*parts)
