"""`dither audit mutants`."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from dither.audit.mutants.catalogue import ALL
from dither.audit.mutants.mutant import ENTRIES, Outcome
from dither.audit.mutants.runner import checkout, choose, run_mutants
from dither.cli.audit_common import check_outputs
from dither.config import AuditMutantsConfig
from dither.files import write_json


def run(config: AuditMutantsConfig) -> None:
    """Run mutants, show them as they end, and exit with 1 where one is alive.

    Raises:
        ConfigError: No checkout, no such mutant, or one whose place has changed.
        OutputError: The JSON cannot be written; said before anything runs.
    """
    mutants = choose(ALL, config.names, entry=config.entry, fast=config.fast)
    root = checkout()
    target = None if config.json in {None, "-"} else Path(str(config.json))
    check_outputs(config.json, None)
    console = Console(stderr=True, highlight=False)
    outcomes: list[Outcome] = []
    start = time.monotonic()
    with console.status("starting") as status:

        def told(now: str) -> None:
            status.update(f"{len(outcomes)} of {len(mutants)} mutants, now {now}")

        for outcome in run_mutants(mutants, root, told=told):
            outcomes.append(outcome)
            if not outcome.killed:
                console.print(f"[bold red]alive[/] {outcome.mutant.name}: {outcome.why}")
    console.print(_table(outcomes))
    alive = sum(not outcome.killed for outcome in outcomes)
    seconds = time.monotonic() - start
    console.print(f"{len(outcomes) - alive} killed, {alive} alive, in {seconds:.0f} s")
    found = {"mutants": [outcome.to_json() for outcome in outcomes], "seconds": round(seconds, 1)}
    if target is not None:
        write_json(target, found)
    elif config.json is not None:
        print(json.dumps(found, indent=1))
    if alive:
        raise SystemExit(1)


def _table(outcomes: list[Outcome]) -> Table:
    table = Table(
        Column("entry", justify="right"),
        Column("mutant", overflow="fold"),
        Column("killed by", overflow="fold"),
        Column("seconds", justify="right"),
        "",
        title="Privacy mutants",
    )
    for one in sorted(outcomes, key=lambda o: (o.mutant.entry or 99, o.mutant.name)):
        table.add_row(
            str(one.mutant.entry) if one.mutant.entry in ENTRIES else "-",
            one.mutant.name,
            one.mutant.by.removeprefix("tests/"),
            f"{one.seconds:.1f}",
            "killed" if one.killed else "[bold red]alive[/]",
        )
    return table
