"""DuckDB: one machine, all cores, memory bounded by spilling to disk."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import ibis
import ibis.expr.types as ir
import pyarrow as pa

from dither.data import pipeline
from dither.data.counts import StageCounts
from dither.data.engines.base import Engine, Staged
from dither.data.engines.reading import broken_row, broken_text
from dither.data.reader import TextTable
from dither.data.schema import Task
from dither.errors import DataError, DitherError, OutputError

# Faults of this code, not of the user's files.
_PROGRAMMING_ERRORS = (
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.ParserException,
    duckdb.SyntaxException,
)


MEMORY_LIMIT = 1_200_000_000
"""Bytes: with what Python and Arrow hold beside it, a build stays below 2 GB."""


class DuckDB(Engine):
    """Runs the pipeline's expressions as SQL.

    Args:
        memory_limit: Bytes that DuckDB may hold; more goes to the work folder.
        threads: Worker threads; all cores by default.
    """

    name = "duckdb"

    def __init__(self, *, memory_limit: int = MEMORY_LIMIT, threads: int | None = None) -> None:
        self._memory_limit = memory_limit
        self._threads = threads or os.cpu_count() or 1

    @contextmanager
    def stage(self, tables: Sequence[TextTable], task: Task, work: Path) -> Iterator[Staged]:
        """See :meth:`Engine.stage`."""
        origins = ", ".join(table.origin for table in tables)
        with errors_explained(origins):
            connection = duckdb.connect(
                ":memory:", config=settings(work, self._memory_limit, self._threads)
            )
        try:
            connection.execute("SET enable_progress_bar = false")  # it writes to stdout
            with errors_explained(origins):
                for index, table in enumerate(tables):
                    present(connection, table, pipeline.source_name(index))
                raw = pipeline.raw(tables, task.schema)
                query = sql(pipeline.staged(raw, task))
                connection.execute(f"CREATE TABLE {pipeline.STAGED} AS {query}")
            yield _StagedTable(connection, task, raw, origins)
        finally:
            connection.close()


class _StagedTable(Staged):
    def __init__(
        self, connection: duckdb.DuckDBPyConnection, task: Task, raw: ir.Table, origins: str
    ) -> None:
        self._connection = connection
        self._task = task
        self._raw = raw
        self._origins = origins

    def counts(self) -> StageCounts:
        row = self._rows(pipeline.counts(self._task))[0]
        return pipeline.read_counts(row, self._task)

    def unknown_codes(self, column: str) -> list[tuple[str, int]]:
        found = self._rows(pipeline.unknown_codes(self._raw, self._task, column))
        return [(str(row["code"]), int(str(row["rows"]))) for row in found]

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        with errors_explained(self._origins):
            result = self._connection.sql(sql(pipeline.records(self._task)))
            yield from result.to_arrow_reader(rows)

    def _rows(self, expression: ir.Table) -> list[dict[str, object]]:
        with errors_explained(self._origins):
            result = self._connection.execute(sql(expression))
            names = [column[0] for column in result.description]
            return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def settings(
    work: Path, memory_limit: int = MEMORY_LIMIT, threads: int | None = None
) -> dict[str, str | bool | int | float | list[str]]:
    """What a connection is opened with: bounded memory, spilling into a folder.

    Args:
        work: Where rows go that memory does not hold.
        memory_limit: Bytes that DuckDB may hold.
        threads: Worker threads; all cores by default.
    """
    return {
        "memory_limit": f"{memory_limit}B",
        "threads": threads or os.cpu_count() or 1,
        "temp_directory": str(work / "spill"),
        "preserve_insertion_order": False,
        "autoinstall_known_extensions": False,
    }


def sql(expression: ir.Table) -> str:
    """An expression in DuckDB's SQL."""
    return str(ibis.to_sql(expression, dialect="duckdb"))


def _quoted(name: str, mark: str = '"') -> str:
    return mark + name.replace(mark, mark * 2) + mark


def present(connection: duckdb.DuckDBPyConnection, table: TextTable, name: str) -> None:
    """Make a view of a file in which every column is text; nothing is inferred."""
    path = _quoted(str(table.path), "'")
    if table.format == "parquet":
        columns = ", ".join(f"{_text(_quoted(c))} AS {_quoted(c)}" for c in table.columns)
        relation = f"SELECT {columns} FROM read_parquet({path})"  # noqa: S608 (all quoted)
    else:
        types = ", ".join(f"{_quoted(c, chr(39))}: 'VARCHAR'" for c in table.columns)
        options = (
            "auto_detect=false, header=true, delim=',', quote='\"', escape='\"', strict_mode=true"
        )
        relation = f"SELECT * FROM read_csv({path}, {options}, columns={{{types}}})"  # noqa: S608
    connection.execute(f"CREATE TEMP VIEW {name} AS {relation}")


def _text(column: str) -> str:
    """A column as text; a decimal below 1 has its 0 before the point, as everywhere else."""
    text = f"CAST({column} AS VARCHAR)"
    pointed = f"regexp_replace({text}, '^(-?)[.]', '\\10.')"
    return f"CASE WHEN starts_with(typeof({column}), 'DECIMAL') THEN {pointed} ELSE {text} END"


@contextmanager
def errors_explained(origins: str) -> Iterator[None]:
    """Turn DuckDB's complaints about files and disks into errors that quote no record."""
    try:
        yield
    except _PROGRAMMING_ERRORS:
        raise
    except duckdb.Error as error:
        raise _explained(error, origins) from None  # the cause quotes the record


def _explained(error: duckdb.Error, origins: str) -> DitherError:
    # DuckDB quotes the offending record; only its line number may leave.
    text = str(error)
    full = re.search(r"No space left|max_temp_directory_size|disk space|Could not write", text)
    if full or isinstance(error, duckdb.OutOfMemoryException):
        return OutputError(
            expected="room on the disk for spilled rows",
            got="a full disk" if full else "neither memory nor disk left",
            fix="free space or choose an output folder on a larger disk",
        )
    line = re.search(r"[Ll]ine:? (\d+)", text)
    if "invalid state" in text:
        return DataError(
            expected=f"rows with as many fields as the header in {origins}",
            got="a broken row: line ends of more than one kind, or one in the middle of a field",
            fix="end all lines alike, and put fields that hold a line end into quotes",
        )
    if "nvalid unicode" in text:
        return broken_text(origins, int(line[1]) if line else None)
    if "CSV" in text or line:
        return broken_row(origins, int(line[1]) if line else None)
    return DataError(
        expected=f"readable records in {origins}",
        got=f"a file that breaks off or is corrupt ({type(error).__name__})",
        fix="delete it and fetch or write it again",
    )
