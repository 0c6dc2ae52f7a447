"""`dither audit allreduce`."""

from __future__ import annotations

import time

import numpy as np
from rich.console import Console, Group
from rich.table import Column, Table

from dither.audit.allreduce import Attacks, attack_allreduce
from dither.cli.audit_common import check_outputs, hand_out
from dither.config import AuditAllreduceConfig
from dither.errors import ConfigError
from dither.report.attacks import write_allreduce_figure


def run(config: AuditAllreduceConfig) -> None:
    """Attack sums; exit with 1 where a promise is broken or an attack misses a planted defect.

    Raises:
        ConfigError: Options out of range.
        OutputError: Results cannot be written; said before anything is attacked.
    """
    if not config.ranks or min(config.ranks) < 2 or config.games < 1:
        raise ConfigError(
            expected="--ranks of at least 2 each, and at least one of --games",
            got=f"{' '.join(map(str, config.ranks)) or 'none'}; {config.games}",
            fix="leave them out for 2, 8, 64 and 1024 ranks and 4096 games",
        )
    check_outputs(config.json, config.out)
    console = Console(stderr=True, highlight=False)
    generator = np.random.default_rng(config.seed)
    start = time.perf_counter()
    with console.status("starting") as status:
        found = attack_allreduce(
            config.ranks, config.games, generator=generator, tell=status.update
        )
    facts = {**found.to_json(), "seconds": round(time.perf_counter() - start, 1)}
    hand_out(
        facts,
        name=config.json,
        out=config.out,
        stem="audit-allreduce",
        figure=write_allreduce_figure,
    )
    if config.json != "-":
        Console(highlight=False).print(Group(_games(found), _noise(found), _defects(found)))
    for finding in found.findings:
        console.print(f"[bold red]found:[/] {finding}")
    for missed in found.blind:
        console.print(f"[bold red]missed, though put in on purpose:[/] {missed}")
    if found.findings or found.blind:
        raise SystemExit(1)


def _games(found: Attacks) -> Table:
    table = Table(
        Column("ranks", justify="right"),
        "trust",
        "observer",
        "inference",
        Column("advantage", justify="right"),
        Column("ceiling", justify="right"),
        "",
        title="What one rank's contribution shows",
        caption="Advantage with its 99.999 % interval; ceiling: of whoever sees this noise. "
        "Where the trust promises nothing against an observer, that is said.",
    )
    for row in found.rows:
        said = "within" if row.within else "[bold red]above[/]"
        table.add_row(
            str(row.ranks),
            row.trust,
            row.observer,
            row.inference,
            f"{row.advantage:.3f} ({row.low:.3f} to {row.high:.3f})",
            f"{row.ceiling:.3f}",
            said if row.promised else f"{said}, no promise",
        )
    return table


def _noise(found: Attacks) -> Table:
    table = Table("noise", "what was looked for", Column("found", justify="right"), "")
    for reuse in found.reuse:
        table.add_row(
            reuse.case,
            "numbers used twice",
            f"{reuse.score:.1f} σ, threshold {reuse.threshold:.1f}",
            "repeats" if reuse.found else "fresh",
        )
    for parity in found.parity:
        table.add_row(
            parity.case,
            f"parity; {parity.coordinates:,} coordinates moved by one step",
            f"even {parity.even:.4f}; advantage {parity.advantage:.2f}",
            "leaks" if parity.leaks else "hidden",
        )
    return table


def _defects(found: Attacks) -> Table:
    table = Table(
        "encrypted sums: defect", "safeguard", Column("advantage", justify="right"), "values"
    )
    for one in found.defects:
        table.add_row(
            one.defect,
            "on" if one.safeguard else "off",
            f"{one.advantage:.3f} ({one.low:.3f} to {one.high:.3f})",
            "read" if one.reproduced else "hidden",
        )
    return table
