"""`dither audit ledger`."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from dither.audit.ledger_check import RULES, check_ledger
from dither.cli.ledger import find_ledger
from dither.config import AuditLedgerConfig
from dither.files import write_json
from dither.train.preflight import read_run


def run(config: AuditLedgerConfig) -> int:
    """Check a ledger, print what is wrong, and return 1 if anything is.

    Raises:
        LedgerError: Nothing of the kind is there.
        OutputError: The JSON cannot be written.
    """
    path, run_id = find_ledger(config.where)
    folder = None if run_id is None else config.where
    found = check_ledger(path, folder, _store(config.where, folder))
    facts = {
        "format": 1,
        "ledger": str(path),
        "run": run_id,
        "sound": not found,
        "rules": RULES,
        "findings": [each.to_json() for each in found],
    }
    if config.json == "-":
        print(json.dumps(facts, indent=1))
    else:
        if config.json is not None:
            write_json(Path(config.json), facts)
        console = Console(highlight=False)
        console.print(f"ledger   {escape(str(path))}", soft_wrap=True)
        for rule, text in RULES.items():
            bad = any(each.rule == rule for each in found)
            console.print(f"{'[bold red]BROKEN[/]' if bad else 'ok':<6} {rule}: {text}")
        for each in found:
            console.print(f"[red]{escape(str(each))}[/]", soft_wrap=True)
    return 1 if found else 0


def _store(where: Path, folder: Path | None) -> Path | None:
    if folder is not None:
        return Path(read_run(folder)[1]["store"])
    return where if where.is_dir() else None
