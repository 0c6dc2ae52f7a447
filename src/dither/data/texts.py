"""The columns of a table before any vocabulary or bound of it is known, for private statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import ibis
import pyarrow as pa

from dither.data import pipeline
from dither.data.engines.duckdb import errors_explained, present, settings, sql
from dither.data.reader import TextTable
from dither.data.schema import Categorical, Task

_BATCH_ROWS = 1 << 17


@contextmanager
def ordered_columns(
    tables: Sequence[TextTable], task: Task, work: Path
) -> Iterator[Iterator[pa.RecordBatch]]:
    """Read the rows in a task's scope that have a complete key, all rows of a person together.

    Nothing but the scope and the label is decided here, so the task's other constants may be made
    up. Memory stays bounded; what does not fit is sorted on disk.

    Args:
        tables: Source tables.
        task: Names the columns, the scope and the label.
        work: Folder for what does not fit into memory.

    Yields:
        Batches with ``key`` and ``person`` (text; the key where a row is the unit), ``label``
        (boolean), and by column ``n_<column>`` (float64, NULL where there is no number) or
        ``t_<column>`` (text, NULL where it is blank).
    """
    origins = ", ".join(table.origin for table in tables)
    with errors_explained(origins):
        connection = duckdb.connect(":memory:", config=settings(work))
    try:
        connection.execute("SET enable_progress_bar = false")
        for index, table in enumerate(tables):
            with errors_explained(origins):
                present(connection, table, pipeline.source_name(index))
        query = sql(_columns(tables, task))
        yield _batches(connection, query, origins)
    finally:
        connection.close()


def _batches(
    connection: duckdb.DuckDBPyConnection, query: str, origins: str
) -> Iterator[pa.RecordBatch]:
    with errors_explained(origins):
        yield from connection.sql(query).to_arrow_reader(_BATCH_ROWS)


def _columns(tables: Sequence[TextTable], task: Task) -> ibis.expr.types.Table:
    schema = task.schema
    names = tuple(column.name for column in schema.columns)
    rows = pipeline.staged(pipeline.raw(tables, schema), task, keep=names)
    parts = [rows[f"key_{i}"] for i in range(len(schema.key))]
    whose = [] if schema.person is None else [rows.person]
    complete = [part.notnull() for part in (*whose, *parts)]
    used = rows.filter(rows.in_scope, *complete)
    key = ibis.literal("-").join([used[f"key_{i}"].cast("string") for i in range(len(parts))])
    columns = {}
    for column in schema.columns:
        text = used[f"t_{column.name}"]
        if isinstance(column, Categorical):
            columns[f"t_{column.name}"] = text
        else:
            columns[f"n_{column.name}"] = pipeline.number(text)
    order = (["person"] if whose else []) + [f"key_{i}" for i in range(len(parts))]
    return used.order_by(*order).select(
        key=key,
        person=used.person.cast("string") if whose else key,
        label=used.label,
        **columns,
    )
