"""Rows of texts out of CSV and Parquet files, one after another."""

from __future__ import annotations

import csv
import datetime as dt
import decimal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dither.data.reader import TextTable
from dither.errors import DataError

_BATCH_ROWS = 1 << 15


def rows_of(table: TextTable) -> Iterator[Sequence[str]]:
    """The rows of a table as texts in the order of its columns; an empty text is a missing value.

    Raises:
        DataError: A row is broken, or the file is corrupt.
    """
    if table.format == "parquet":
        yield from _parquet_rows(table)
        return
    with table.path.open(encoding="utf-8-sig", newline="") as stream:
        yield from csv_rows(stream, table)


def csv_rows(
    stream: Iterable[str], table: TextTable, *, header: bool = True
) -> Iterator[list[str]]:
    """The rows of a CSV text; empty lines are none.

    Args:
        stream: Its lines; a file is opened with ``newline=""``.
        table: Names the columns, and the source in errors.
        header: Whether the first row is one.

    Raises:
        DataError: A row has more or fewer fields than the header, or is not text.
    """
    reader = csv.reader(stream, strict=True)
    width = len(table.columns)
    try:
        if header:
            next(reader, None)
        for row in reader:
            if len(row) == width:
                yield row
            elif row:
                raise broken_row(table.origin, reader.line_num)
    except UnicodeDecodeError as error:
        raise broken_text(table.origin) from error  # decoding runs ahead of the lines
    except csv.Error as error:
        raise broken_row(table.origin, reader.line_num) from error


def broken_row(origin: str, line: int | None = None) -> DataError:
    """The error of a row that is no row of its table; its texts are not quoted."""
    return DataError(
        expected=f"rows of text with as many fields as the header in {origin}",
        got="a broken row" if line is None else f"a broken row at line {line}",
        fix="mend or remove that row, or fetch the file again",
    )


def broken_text(origin: str, line: int | None = None) -> DataError:
    """The error of bytes that are no text; they are not quoted."""
    return DataError(
        expected=f"text in UTF-8 in {origin}",
        got="a broken row of other bytes" + ("" if line is None else f" at line {line}"),
        fix="save the table as UTF-8, or fetch the file again",
    )


def broken_file(origins: str, error: Exception) -> DataError:
    """The error of a file that cannot be read to its end."""
    return DataError(
        expected=f"readable records in {origins}",
        got=f"a file that breaks off or is corrupt ({type(error).__name__})",
        fix="delete it and fetch or write it again",
    )


def _parquet_rows(table: TextTable) -> Iterator[Sequence[str]]:
    try:
        with pq.ParquetFile(table.path) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=list(table.columns)):
                named = [batch.column(name) for name in table.columns]
                yield from zip(*map(_texts, named), strict=True)
    except (pa.ArrowException, OSError) as error:
        raise broken_file(table.origin, error) from error


def _texts(column: pa.Array) -> list[str]:
    spell = _spelling(column.type)
    return ["" if value is None else spell(value) for value in column.to_pylist()]


def _spelling(kind: pa.DataType) -> Callable[[Any], str]:
    """How a value is spelled, as DuckDB would."""
    if pa.types.is_float16(kind) or pa.types.is_float32(kind):
        return lambda value: str(np.float32(value))
    if pa.types.is_boolean(kind):
        return lambda value: "true" if value else "false"
    return _spell


def _spell(value: object) -> str:
    if isinstance(value, decimal.Decimal):
        return f"{value:f}"
    if isinstance(value, dt.date):
        return value.isoformat()
    return repr(value) if isinstance(value, float) else str(value)
