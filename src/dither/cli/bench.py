"""`dither bench`."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from dither.bench.harness import Row, result
from dither.cli import allreduce, bench_data, precision, scaling
from dither.cli.bench_options import refuse_misplaced
from dither.cli.words import amount
from dither.config import BenchConfig
from dither.errors import ConfigError
from dither.files import output_errors, write_json

_BENCHES = {
    "noise": "noise, encoding and masks against PyTorch's normal_ and add_, one thread",
    "train": "a private training step against a plain one",
    "allreduce": "private sums over two ranks of this host against MPICH's and gloo's",
    "mpi": "unmodified MPI programs under dither mpirun against the same ones bare, two ranks",
    "scaling": "distributed training, both engines, on one and two processes of one thread",
    "data": "census records from CSV to a store: DuckDB, Spark and map-reduce against row by row",
    "clip": "private steps of ordinary models against plain ones and Opacus, memory too; 2 threads",
    "precision": "private steps on bf16 and int8 kernels against float32 ones; --host: what it has",
    "quant": "accuracy of low-precision schedules under DP: MNIST, CIFAR-10 16x16 and ACS, about "
    "30 minutes of 2 cores",
}


def run(config: BenchConfig) -> None:
    """Run a bench, show its rows as they come, and write its JSON.

    Raises:
        ConfigError: No bench or case of that name, or an option that is another bench's.
        OutputError: The JSON cannot be written; said before anything is measured.
    """
    if config.name == "list":
        for name, text in _BENCHES.items():
            print(f"{name:<12} {text}")
        return
    if config.name not in _BENCHES:
        raise ConfigError(
            expected=f"a bench of {', '.join(_BENCHES)}",
            got=repr(config.name),
            fix="see dither bench list",
        )
    refuse_misplaced(config)
    found = _mode(config)
    target = None if config.json in {None, "-"} else Path(str(config.json))
    if target is not None:
        with output_errors(target):
            target.touch()
    console = Console(stderr=True, highlight=False)
    rows: list[Row] = []
    for row in found.rows:
        figure = row.detail if row.ratio is None else f"{row.ratio:.2f} x"
        metric = "" if row.metric == "time" else f" {row.metric}"
        console.print(f"{row.case}{metric}, {row.baseline_name}: {figure}", markup=False)
        rows.append(row)
    _write(config, {**result(config.name, rows), **found.more()}, target)
    if config.json != "-":
        Console(highlight=False).print(found.table(rows) if found.table else _table(rows))


def _mode(config: BenchConfig) -> allreduce.Mode:
    bench = importlib.import_module(f"dither.bench.{config.name}")
    names = getattr(bench, "NAMES", ())
    if config.name == "allreduce":
        asked = allreduce.mode(config)
        if asked is not None:
            return asked
    if config.name == "scaling":
        return scaling.mode(config, _cases(config, names), _table)
    if config.name == "data":
        return bench_data.mode(config, _cases(config, names), _table)
    if config.name == "quant":
        quant = importlib.import_module("dither.cli.quant")
        found_mode: allreduce.Mode = quant.mode(config, _cases(config, names))
        return found_mode
    if config.name == "precision":
        return precision.mode(config, _cases(config, names), _table)
    options = {"cases": _cases(config, names)} if config.cases else {}
    return allreduce.Mode(bench.rows(full=config.full, **options))


def _write(config: BenchConfig, value: dict[str, Any], target: Path | None) -> None:
    if config.json == "-":
        json.dump(value, sys.stdout, indent=1)
        print()
    elif target is not None:
        write_json(target, value)


def _cases(config: BenchConfig, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names that were chosen; ``mlp`` chooses all its variants."""
    families = {name.split("/")[0] for name in names}
    unknown = [case for case in config.cases if case not in {*names, *families}]
    if unknown:
        raise ConfigError(
            expected=f"cases of {', '.join(names)}" if names else "no --cases with this bench",
            got=", ".join(unknown),
            fix="choose of these" if names else "leave --cases out",
        )
    return tuple(name for name in names if {name, name.split("/")[0]} & {*config.cases})


def _table(rows: list[Row]) -> Table:
    table = Table(
        Column("case", overflow="fold"),
        Column("ours", justify="right"),
        Column("baseline", justify="right"),
        Column("ratio", justify="right"),
        Column("quartiles", justify="right"),
        Column("target", justify="right"),
        caption="Below 1 is better than the baseline. The ratio is the median of pairs.",
    )
    for row in rows:
        table.add_row(
            row.case if row.metric == "time" else f"{row.case} {row.metric}",
            amount(row.ours, row.unit),
            f"{amount(row.baseline, row.unit)} {row.baseline_name}".strip(),
            "not run" if row.ratio is None else f"{row.ratio:.2f}",
            "" if row.ratio is None else f"{row.ratio_low:.2f}-{row.ratio_high:.2f}",
            "" if row.target is None else f"{row.target:.2f}",
        )
    return table
