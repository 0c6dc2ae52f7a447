"""A table in words: what is public about it, what was released, and what is still open."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dither.data.acs import find_task
from dither.data.describe import read_description
from dither.data.schema import Categorical, Task
from dither.data.statistics import read_statement, released_path
from dither.data.store.manifest import public_inputs
from dither.errors import DataError


def describe(task: str) -> dict[str, Any]:
    """Return every constant of a task, each with where it is from.

    Args:
        task: Name of a task, or a description file, whose constants may still be open.

    Returns:
        ``name``, ``unit``, ``rows_per_unit``, ``columns`` (name to kind and use), ``public`` and
        ``released`` (constant to value and origin), ``open`` (what `dither data statistics` is to
        release, and its cost).

    Raises:
        ConfigError: There is no such task, or the description is wrong.
    """
    if not task.endswith(".toml"):
        return _of_task(find_task(task), ())
    description = read_description(task)
    names = description.open_constants
    if not names or released_path(description.path).is_file():
        statement = read_statement(description.path)
        extra = () if statement is None else statement.constants
        found = _of_task(find_task(task), names)
        return {**found, "statistics": {c.name: c.value for c in extra if not c.wanted}}
    found = _of_task(description.skeleton(), names)
    asked = {r.name: r.statistic for r in description.requests}
    costs = {n: {"epsilon": s.epsilon, "delta": getattr(s, "delta", 0.0)} for n, s in asked.items()}
    return {**found, "open": costs}


def _of_task(task: Task, hidden: tuple[str, ...]) -> dict[str, Any]:
    schema = task.schema
    columns = {
        column.name: {
            "kind": "codes" if isinstance(column, Categorical) else "number",
            "use": "feature" if column in schema.features else "scope or label only",
        }
        for column in schema.columns
    }
    constants = [c for c in public_inputs(task, 0) if c.name != "n" and c.name not in hidden]
    return {
        "name": task.name,
        "unit": schema.unit,
        "rows_per_unit": schema.rows_per_person,
        "columns": columns,
        "public": {c.name: f"{c.value} ({c.source})" for c in constants},
        "released": {c.name: vars(c) for c in task.released},
        "open": {},
    }


def draft(table: Path) -> str:
    """Return a first description of a table, from its header alone: no record is read.

    Raises:
        DataError: The file is no CSV or Parquet table.
    """
    names = _header(table)
    first, last, title = map(_quoted, (names[0], names[-1], table.stem))
    columns = "\n".join(f'{_quoted(n)} = {{ codes = ["?"] }} # or bounds = [0, 1]' for n in names)
    return f"""# A draft from the header of {table.name}: put public constants for every "?".
name = {title}
source = "where bounds and codes are published"
key = [{first}] # the columns that together name a row
# person = "..." # whose a row is, if somebody may have several, and then
# rows_per_person = 8 # how many of them are used at most
label = {{ column = {last}, codes = ["1"] }}

[columns]
{columns}
"""


def _quoted(name: str) -> str:
    """A name as a TOML text."""
    return json.dumps(name, ensure_ascii=False)


def _header(table: Path) -> list[str]:
    try:
        if table.suffix.lower() == ".parquet":
            names = list(pq.read_schema(table).names)
        else:
            with table.open(newline="", encoding="utf-8-sig") as stream:
                names = next(csv.reader(stream), [])
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise DataError(
            expected=f"a CSV or Parquet table at {table}",
            got=getattr(error, "strerror", None) or type(error).__name__,
            fix="name one file of the table",
        ) from error
    if not names:
        raise DataError(
            expected=f"a header in {table}", got="an empty line", fix="write the column names there"
        )
    return names
