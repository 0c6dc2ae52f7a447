"""Find the tables in what a user names: Census zips, plain CSV, Parquet, or a folder of them.

Every column is text here; the pipeline's shared expression does all casting, so that engines
cannot differ by what they infer.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from dither.data.schema import Categorical, Schema
from dither.errors import ConfigError, DataError

_COPY_BYTES = 1 << 20
_SUFFIXES = (".zip", ".csv", ".parquet")
_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True)
class TextTable:
    """One table on disk, all of whose columns an engine presents as text.

    Args:
        path: The file to read.
        format: How it is stored.
        columns: Its header, in order.
        origin: The source's name as a user knows it ("csv_pwy.zip: psam_p56.csv").
    """

    path: Path
    format: Literal["csv", "parquet"]
    columns: tuple[str, ...]
    origin: str


@dataclass(frozen=True)
class Source:
    """A file that a user named: its bare name and the SHA-256 of its bytes."""

    name: str
    sha256: str


def source_files(sources: str | Path | Iterable[str | Path]) -> tuple[Path, ...]:
    """Existing files behind the names given; a folder stands for the tables inside it.

    Raises:
        DataError: A file is missing or none is named.
    """
    named = [sources] if isinstance(sources, (str, Path)) else list(sources)
    files: list[Path] = []
    for path in map(Path, named):
        if path.is_dir():
            files += sorted(p for p in path.iterdir() if _is_table(p.name, *_SUFFIXES))
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(
                expected=f"a file or folder at {path}",
                got="nothing there",
                fix="check the path, or get records with `dither data fetch` or `data synth`",
            )
    if not files:
        raise DataError(
            expected="at least one zip, CSV or Parquet file",
            got="none",
            fix="name the files with --data",
        )
    return tuple(files)


def describe_sources(files: Sequence[Path]) -> tuple[Source, ...]:
    """Names and digests of source files, in an order that does not depend on the caller's.

    Raises:
        DataError: A file cannot be read.
    """
    found = []
    for path in files:
        try:
            with path.open("rb") as stream:
                found.append(Source(path.name, hashlib.file_digest(stream, "sha256").hexdigest()))
        except OSError as error:
            raise DataError(
                expected=f"a readable file at {path}",
                got=(error.strerror or type(error).__name__).lower(),
                fix="check its permissions and the disk",
            ) from error
    return tuple(sorted(found, key=lambda source: (source.name, source.sha256)))


def open_tables(files: Sequence[Path], schema: Schema, work: Path) -> tuple[TextTable, ...]:
    """Unpack zips into ``work`` and read each table's header.

    Args:
        files: Existing source files.
        schema: Tells person tables (which have the key columns) from others in one zip.
        work: Folder for extracted CSV files; bounded memory, unbounded disk.

    Raises:
        DataError: A file is empty, truncated, corrupt, of an unknown kind, or a column is
            missing.
    """
    tables: list[TextTable] = []
    for number, path in enumerate(files):
        kind = _kind(path)
        if kind == "zip":
            tables += _zip_tables(path, schema, work / f"source-{number}")
        elif kind == "parquet":
            tables.append(_parquet_table(path, schema))
        else:
            tables.append(TextTable(path, "csv", _csv_columns(path, path.name), path.name))
    for table in tables:
        resolve_columns(table, schema)
    return tuple(tables)


def resolve_columns(table: TextTable, schema: Schema) -> dict[str, str]:
    """Map the schema's column names to those of a table, following aliases.

    Raises:
        DataError: The table lacks columns; all of them are named.
    """
    names: dict[str, tuple[str, ...]] = {part.name: (part.name,) for part in schema.key}
    names |= {column.name: (column.name, *column.aliases) for column in schema.columns}
    if schema.person is not None:
        names.setdefault(schema.person.name, (schema.person.name,))
    found = {
        name: next((n for n in candidates if n in table.columns), None)
        for name, candidates in names.items()
    }
    missing = [" or ".join(names[name]) for name, actual in found.items() if actual is None]
    if missing:
        alike = {name.strip().casefold() for name in table.columns}
        near = [
            n for n, actual in found.items() if actual is None and n.strip().casefold() in alike
        ]
        others = len(table.columns)
        raise DataError(
            expected=f"columns {', '.join(missing)} in {table.origin}",
            got="names that differ in case or by blanks: " + ", ".join(near)
            if near
            else f"a table without them ({others} other columns)",
            fix="give a table in the layout that the schema describes, or name it there as it is",
        )
    return {name: actual for name, actual in found.items() if actual is not None}


def _is_table(name: str, *suffixes: str) -> bool:
    """Whether a file's name says so; what systems put beside files ("._rows.csv") is none."""
    bare = name.rsplit("/", 1)[-1]
    return bare.lower().endswith(suffixes) and not bare.startswith(".")


def _kind(path: Path) -> str:
    if path.stat().st_size == 0:
        raise DataError(
            expected=f"records in {path.name}", got="an empty file", fix="fetch or write it again"
        )
    suffix = path.suffix.lower().lstrip(".")
    if suffix in {"zip", "csv", "parquet"}:
        return suffix
    raise ConfigError(
        expected="a .zip, .csv or .parquet file",
        got=path.name,
        fix="convert the table, or give the file the suffix of what it holds",
    )


def _zip_tables(path: Path, schema: Schema, folder: Path) -> list[TextTable]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if _is_table(m.filename, ".csv")]
            if not members:
                raise DataError(
                    expected=f"a CSV file inside {path.name}",
                    got=f"{len(archive.infolist())} files, none of them CSV",
                    fix="give the Census zip of person records, csv_p<state>.zip",
                )
            folder.mkdir(parents=True)
            tables = [
                _extract(archive, m, path, folder / f"{i}.csv") for i, m in enumerate(members)
            ]
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            expected=f"a whole zip file at {path.name}",
            got=f"a truncated or corrupt one ({type(error).__name__})",
            fix="delete it and fetch it again",
        ) from error
    keys = {part.name for part in schema.key}
    # A zip of households and persons: only the latter have a person number.
    return [table for table in tables if keys <= set(table.columns)] or tables


def _extract(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, target: Path
) -> TextTable:
    # The member's own name never becomes a path, so a hostile zip cannot write elsewhere.
    with archive.open(member) as packed, target.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked, _COPY_BYTES)
    origin = f"{path.name}: {Path(member.filename).name}"
    return TextTable(target, "csv", _csv_columns(target, origin), origin)


def _csv_columns(path: Path, origin: str) -> tuple[str, ...]:
    with path.open("rb") as stream:
        head = stream.readline(_COPY_BYTES)
    try:
        text = head.removeprefix(codecs.BOM_UTF8).decode("utf-8")
        columns = tuple(next(csv.reader([text]), []))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            expected=f"a CSV header in UTF-8 at {origin}",
            got="bytes that are not text, or a carriage return alone as a line end",
            fix="save the table as CSV in UTF-8 with one kind of line end",
        ) from error
    if not columns:
        raise DataError(
            expected=f"a header of distinct column names in {origin}",
            got="an empty line",
            fix="write the column names on the first line",
        )
    _check_separators(columns, origin)
    return _distinct(columns, origin)


def _check_separators(columns: tuple[str, ...], origin: str) -> None:
    """Refuse what spreadsheets write where a comma is the decimal point."""
    others = [words for mark, words in _OTHER_SEPARATORS.items() if mark in columns[0]]
    if len(columns) == 1 and others:
        raise DataError(
            expected=f"a header with commas between the names in {origin}",
            got=f"one with {others[0]}",
            fix="write the table with commas, and numbers with a decimal point",
        )


def _distinct(columns: tuple[str, ...], origin: str) -> tuple[str, ...]:
    # Engines do not agree on whether names that differ by case are two.
    if len({name.casefold() for name in columns}) != len(columns):
        raise DataError(
            expected=f"a header of distinct column names in {origin}",
            got="the same name twice",
            fix="name each column once, whatever its case",
        )
    return columns


def _parquet_table(path: Path, schema: Schema) -> TextTable:
    try:
        found = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            expected=f"a Parquet file at {path.name}",
            got="a truncated or corrupt one",
            fix="delete it and fetch or write it again",
        ) from error
    table = TextTable(path, "parquet", _distinct(tuple(found.names), path.name), path.name)
    texts = _texts_of(schema)
    for name, actual in resolve_columns(table, schema).items():
        _check_kind(name, found.field(actual).type, path.name, as_text=name in texts)
    return table


def _texts_of(schema: Schema) -> set[str]:
    """Columns whose exact spelling counts: text keys, and vocabularies of words."""
    keys = [*schema.key, *([] if schema.person is None else [schema.person])]
    words = [c.name for c in schema.columns if isinstance(c, Categorical) and not c.numbered]
    return {part.name for part in keys if part.kind == "text"} | set(words)


def _check_kind(name: str, kind: pa.DataType, origin: str, *, as_text: bool) -> None:
    """Refuse values that engines spell differently as text."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    types = pa.types
    exact = (types.is_string, types.is_large_string, types.is_integer, types.is_boolean)
    fine = [*exact, types.is_date, types.is_null]
    if not as_text:
        fine += [types.is_floating, types.is_decimal]
    if not any(test(kind) for test in fine):
        raise DataError(
            expected=f"text or whole numbers in column {name} of {origin}"
            if as_text
            else f"text or numbers in column {name} of {origin}",
            got=f"values of type {kind}",
            fix="write that column as text",
        )
