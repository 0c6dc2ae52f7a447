"""The options of `dither bench quant`, its progress and its tables."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from dither.bench.harness import Row
from dither.bench.quant import Study, find_data
from dither.bench.quant_stats import (
    POINTS,
    TIMES,
    Amplification,
    Comparison,
    Finding,
    Findings,
    Paired,
    amplifications,
    comparisons,
    standard_error,
)
from dither.cli.allreduce import Mode
from dither.config import BenchConfig
from dither.errors import ConfigError
from dither.report.quant import Point, write_quant_figure
from dither.report.scale import check_format


def mode(config: BenchConfig, cases: tuple[str, ...]) -> Mode:
    """Return what these options ask for.

    Args:
        config: With the name quant.
        cases: Names that were chosen; the usual ones when empty.

    Raises:
        ConfigError: Options out of range, no records, or a figure of no known
            format.
    """
    _check(config)
    figure = config.figure
    if figure is not None:
        check_format(figure)
    study = Study(
        data=find_data(config.data),
        out=config.out,
        full=config.full,
        seeds=config.seeds,
        processes=config.processes,
        hours=config.hours,
    )

    def rows() -> Iterator[Row]:
        with _bar() as bar:
            task = bar.add_task("trainings", total=None, note="")

            def told(done: int, total: int, note: str) -> None:
                bar.update(task, completed=done, total=total, note=note)

            study.told = told
            found = list(study.rows(cases))
        yield from found
        drawn = panels(study.found)
        if figure is not None and drawn:
            write_quant_figure(figure, drawn)

    def table(_: list[Row]) -> RenderableType:
        return Group(*tables(study.found), *_left(study.left))

    return Mode(rows(), more=study.to_json, table=table)


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _check(config: BenchConfig) -> None:
    for name in ("seeds", "processes"):
        value = getattr(config, name)
        if value is not None and not 1 <= value <= 1000:
            raise ConfigError(
                expected=f"--{name} from 1 to 1000", got=repr(value), fix="choose for instance 2"
            )
    if config.hours is not None and not 0.0 < config.hours < math.inf:
        raise ConfigError(
            expected="finite --hours above 0",
            got=repr(config.hours),
            fix="choose for instance --hours 2",
        )
    if config.out is None and (config.full or config.hours is not None):
        raise ConfigError(
            expected="--out FOLDER with --full or --hours, to keep finished trainings in",
            got="none",
            fix="add for instance --out runs/quant; the same command then goes on from it",
        )


def _left(left: int) -> Iterator[str]:
    if left:
        yield f"{left} trainings are left: run the same command again to go on."


def panels(found: Findings) -> dict[str, list[Point]]:
    """Return the points of each panel of the figure; full precision is one of each.

    Args:
        found: All groups.
    """
    made: dict[str, list[Point]] = {}
    for group, finding in found.items():
        if group.schedule == "none" or group.optimizer == "sgd":
            continue
        title = f"{group.case}, {group.optimizer}, {group.recipe}"
        if title not in made:
            whole = found.get(group.beside("none"))
            made[title] = [] if whole is None else [_point(whole)]
        made[title].append(_point(finding))
    return made


def _point(finding: Finding) -> Point:
    error = standard_error(list(finding.accuracy.values()))
    return Point(finding.group.schedule, finding.compute, finding.mean, error)


def tables(found: Findings) -> Iterator[Table]:
    """Yield accuracy by schedule, what the schedule gains, and what privacy adds to the loss.

    Args:
        found: All groups.
    """
    made = comparisons(found)
    if found:
        yield _accuracies(found, made)
    tested = [each for each in made if each.group.schedule == "dpquant"]
    if tested:
        yield _tests(tested)
    amplified = amplifications(found)
    if amplified:
        yield _losses(amplified)


def _numbers(*names: str) -> list[Column]:
    return [Column(name, justify="right") for name in names]


def _accuracies(found: Findings, made: list[Comparison]) -> Table:
    lost = {each.group: each.lost for each in made}
    table = Table(
        Column("case", overflow="fold"),
        *_numbers("compute", "accuracy", "points lost", "95 % interval", "seeds"),
        title="Accuracy on test records, in percent",
        caption="Compute: share of the forward's multiply-adds that ran in low precision, emulated "
        "where kernels are not real (dither bench precision --host). Points lost: against "
        "full precision from the same weights.",
    )
    for group, finding in found.items():
        pair = lost.get(group)
        table.add_row(
            group.name,
            f"{finding.compute:.0%}",
            f"{finding.mean:.2f}",
            "" if pair is None else f"{pair.mean:.2f}",
            "" if pair is None else _interval(pair),
            str(len(finding.accuracy)),
        )
    return table


def _tests(made: list[Comparison]) -> Table:
    columns = [f"{name} {other}" for other in ("static", "random") for name in ("gain over", "p")]
    table = Table(
        Column("dpquant in", overflow="fold"),
        *_numbers("points lost", *columns),
        title=f"The schedule: at most {POINTS:g} points lost?",
        caption="p: two-sided, paired by seed, Student's t, then Wilcoxon's signed ranks. Static "
        "is the mean of its random fixed sets.",
    )
    for each in made:
        cells = [f"{each.lost.mean:.2f} ({_interval(each.lost)})"]
        for other in ("static", "random"):
            pair = each.against.get(other)
            cells += ["", ""] if pair is None else [f"{pair.mean:+.2f}", _p(pair)]
        table.add_row(each.group.name, *cells)
    return table


def _losses(made: list[Amplification]) -> Table:
    table = Table(
        Column("all layers in", overflow="fold"),
        *_numbers("DP loses", "plain loses", "times", "95 % interval"),
        title=f"Does privacy make low precision worse? (yes: {TIMES:g} times)",
        caption="Points of accuracy, against full precision. Interval: bootstrap over seeds.",
    )
    for each in made:
        ends = [f"{end:.2f}" if end is not None else "∞" for end in (each.low, each.high)]
        table.add_row(
            f"{each.case}/{each.optimizer}/{each.recipe}",
            f"{each.private.mean:.2f}",
            f"{each.plain.mean:.2f}",
            "none lost" if each.times is None else f"{each.times:.2f}",
            "" if each.times is None else " to ".join(ends),
        )
    return table


def _interval(pair: Paired) -> str:
    if pair.seeds < 2:
        return "one seed"
    return f"{pair.low:.2f} to {pair.high:.2f}"


def _p(pair: Paired) -> str:
    if pair.p_t is None or pair.p_wilcoxon is None:
        return "no test"
    return f"{pair.p_t:.2g}, {pair.p_wilcoxon:.2g}"
