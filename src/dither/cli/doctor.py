"""`dither doctor`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column, Table

from dither.config import DoctorConfig
from dither.doctor.check import Check
from dither.doctor.examine import PARTS, examine, facts


def run(config: DoctorConfig) -> int:
    """Look at this machine, say what was found, and return 1 if dither cannot run on it.

    Raises:
        OutputError: The JSON cannot be written.
    """
    if config.json not in {None, "-"}:
        _try(Path(str(config.json)))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("looking at this machine", total=len(PARTS))
        checks = examine(lambda done, _: bars.update(task, completed=done))
    found = facts(checks)
    if config.json == "-":
        print(json.dumps(found, indent=1))
    else:
        if config.json is not None:
            _write(Path(config.json), found)
        show(checks, Console(highlight=False))
    return 0 if found["able"] else 1


def _try(path: Path) -> None:
    """Find out before anything is looked at whether a file can be written."""
    from dither.files import output_errors  # noqa: PLC0415 - needs a package that may be missing

    with output_errors(path):
        path.touch()


def _write(path: Path, found: dict[str, object]) -> None:
    from dither.files import write_json  # noqa: PLC0415 - as above

    write_json(path, found)


def show(checks: Sequence[Check], console: Console) -> None:
    """Print the checks as a table, and what they come to."""
    table = Table(
        Column("part", no_wrap=True),
        Column("state", no_wrap=True),
        Column("what is there; what rests on it; what to do", overflow="fold"),
        box=box.SIMPLE_HEAD,
    )
    for check in checks:
        lines = [escape(check.found), f"[dim]for {escape(check.means)}[/]"]
        if check.fix:
            lines.append(f"[bold]to mend it: {escape(check.fix)}[/]")
        table.add_row(check.name, f"[{_colour(check)}]{check.state}[/]", "\n".join(lines))
    console.print(table)
    console.print(summary(checks), soft_wrap=True)


def _colour(check: Check) -> str:
    if check.stops:
        return "bold red"
    return {"good": "green", "missing": "yellow", "wrong": "red"}[check.state]


def summary(checks: Sequence[Check]) -> str:
    """Return what it comes to, in one line."""
    stopping = [check.name for check in checks if check.stops]
    if stopping:
        return f"dither cannot run here before this is mended: {', '.join(stopping)}"
    states = Counter(check.state for check in checks)
    if states["wrong"]:
        names = ", ".join(check.name for check in checks if check.state == "wrong")
        return f"dither can run here. Not needed for all of it, and wrong: {names}"
    return f"dither can run here. Not there and not needed for all of it: {states['missing']}"
