"""The options of `dither bench data`, and its tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Column, Table

from dither.bench.harness import Row
from dither.cli.allreduce import Mode
from dither.cli.words import amount
from dither.config import BenchConfig
from dither.errors import ConfigError


def mode(
    config: BenchConfig,
    cases: Sequence[str],
    rows_table: Callable[[list[Row]], RenderableType],
) -> Mode:
    """Return what these options ask for.

    Args:
        config: With the name data.
        cases: Names that were chosen; all when empty.
        rows_table: The usual table of a bench.

    Raises:
        ConfigError: No such records, or a figure of no known format.
    """
    from dither.bench.data import DataBench  # noqa: PLC0415 - loads PyTorch
    from dither.report.data_scale import write_data_scale_figure  # noqa: PLC0415
    from dither.report.scale import check_format  # noqa: PLC0415

    _check(config, cases)
    figure = config.figure
    if figure is not None:
        check_format(figure)
    bench = DataBench(data=config.data, full=config.full)

    def rows() -> Iterator[Row]:
        yield from bench.rows(cases)
        if figure is not None and bench.scale:
            points = [(p.persons, p.seconds, p.peak_bytes) for p in bench.scale]
            write_data_scale_figure(figure, points)

    return Mode(
        rows(),
        more=bench.to_json,
        table=lambda found: Group(rows_table(found), *tables(bench.engines)),
    )


def tables(engines: dict[str, dict[str, object]]) -> Iterator[Table]:
    """Yield the table of stages by engine.

    Args:
        engines: As `DataBench.engines`.
    """
    if not engines:
        return
    names = ("session", "hash", "unpack", "validate", "count", "write")
    table = Table(
        "engine",
        *(Column(name, justify="right") for name in (*names, "rows/s")),
        title="The last build of each engine, by stage",
        caption="Session: Spark's start, counted apart. Rows/s: of all rows read, without it.",
    )
    for engine, facts in engines.items():
        stages = facts["stages"]
        last = stages[-1] if isinstance(stages, list) else {}
        rate = float(str(facts["rows_per_second"]))
        table.add_row(engine, *(amount(last.get(n, 0.0), "s") for n in names), f"{rate:,.0f}")
    yield table


def _check(config: BenchConfig, cases: Sequence[str]) -> None:
    if config.data is not None and not config.data.exists():
        raise ConfigError(
            expected=f"census records at {config.data}",
            got="no such file or folder",
            fix="get some with dither data fetch, or leave --data out",
        )
    if config.figure is not None and not (config.full or "scale" in cases):
        raise ConfigError(
            expected="--figure together with --full or --cases scale",
            got="--figure alone",
            fix="add --full: the figure is of time and memory by rows",
        )
