"""`dither mpirun`. What loads the accountant is loaded last: mistakes answer at once."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from dither.errors import DitherError, OutputError
from dither.files import write_atomic, write_json
from dither.mpirun.options import MpirunConfig
from dither.mpirun.start import look


def run(config: MpirunConfig) -> int:
    """Run the program, report, and return the exit status.

    That is the program's own, but 3 if it ended with 0 though a rank never reached MPI_Init through
    dither: what that rank did was not protected, or the program did not use MPI at all.

    Raises:
        ConfigError: An option, the program or MPI is missing or wrong; nothing was started.
        OutputError: A report cannot be written; said before anything is started.
    """
    console = Console(stderr=True, highlight=False)
    found = look(config)
    named = None if config.json in {None, "-"} else Path(str(config.json))
    for target in (named, config.report):
        if target is not None:
            _require_writable(target)
    launch = importlib.import_module("dither.mpirun.launch").launch
    facts = launch(
        config, found, told=lambda line: console.print(line, style="dim", soft_wrap=True)
    )
    try:
        _write(config, facts, named, console)
    except DitherError as error:  # the program's own end must show, too
        if facts.exit_status == 0:
            raise
        console.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
    return int(facts.exit_status)


def _require_writable(target: Path) -> None:
    new = not target.exists()
    try:
        target.touch()
        if new:  # nothing is left of a start that fails
            target.unlink()
    except OSError as error:
        raise OutputError(
            expected=f"to write the report {target}",
            got=(error.strerror or type(error).__name__).lower(),
            fix="give --json or --report a file in a folder that is there and may be written to",
        ) from error


def _write(config: MpirunConfig, facts: Any, named: Path | None, console: Console) -> None:
    report = importlib.import_module("dither.mpirun.report")
    found = report.report(facts)
    if config.report is None:
        console.print(report.text(found), end="", markup=False, soft_wrap=True)
    else:
        write_atomic(config.report, report.text(found).encode())
        for line in report.warnings(found):
            console.print(f"dither:{line}", markup=False, soft_wrap=True)
    if named is not None:
        write_json(named, found)
    elif config.json == "-":
        print(json.dumps(found, indent=1, allow_nan=False))
