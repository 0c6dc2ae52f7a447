"""`dither bench`."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from dither.bench.harness import Row, result
from dither.config import BenchConfig
from dither.errors import ConfigError
from dither.files import output_errors, write_json

_BENCHES = {
    "noise": "noise, encoding and masks against PyTorch's normal_ and add_, one thread",
    "train": "a private training step against a plain one",
}


def run(config: BenchConfig) -> None:
    """Run a bench, show its rows as they come, and write its JSON.

    Raises:
        ConfigError: No bench of that name.
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
    target = None if config.json in {None, "-"} else Path(str(config.json))
    if target is not None:
        with output_errors(target):
            target.touch()
    console = Console(stderr=True, highlight=False)
    rows: list[Row] = []
    for row in importlib.import_module(f"dither.bench.{config.name}").rows(full=config.full):
        console.print(f"{row.case}: {row.ratio:.2f} x {row.baseline_name}")
        rows.append(row)
    value = result(config.name, rows)
    if config.json == "-":
        json.dump(value, sys.stdout, indent=1)
        print()
    elif target is not None:
        write_json(target, value)
    if config.json != "-":
        Console(highlight=False).print(_table(rows))


def _table(rows: list[Row]) -> Table:
    table = Table(
        Column("case", overflow="fold"),
        Column("ours", justify="right"),
        Column("baseline", justify="right"),
        Column("ratio", justify="right"),
        Column("quartiles", justify="right"),
        caption="Below 1 is faster than the baseline. The ratio is the median of pairs.",
    )
    for row in rows:
        table.add_row(
            row.case,
            _time(row.ours, row.unit),
            f"{_time(row.baseline, row.unit)} {row.baseline_name}",
            f"{row.ratio:.2f}",
            f"{row.ratio_low:.2f}-{row.ratio_high:.2f}",
        )
    return table


def _time(value: float, unit: str) -> str:
    for scale, prefix in ((1.0, ""), (1e-3, "m"), (1e-6, "µ")):
        if value >= scale:
            return f"{value / scale:.3g} {prefix}{unit}"
    return f"{value * 1e9:.3g} n{unit}"
