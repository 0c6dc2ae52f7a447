"""Schema-faithful generated person records, seeded, any number of rows in constant memory."""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from dither.data.acs import ACS
from dither.data.schema import Categorical
from dither.data.synth_model import Persons, draw_persons
from dither.errors import ConfigError, OutputError
from dither.files import output_errors

CHUNK_ROWS = 1 << 17
# The year from which the Census calls the state's column STATE.
_STATE_SINCE = 2023


def write_synthetic(
    path: str | Path,
    rows: int,
    *,
    seed: int = 0,
    year: int = 2024,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write generated ACS-like person records.

    The same arguments give the same records on every machine, and the first rows of a longer
    file are those of a shorter one up to whole chunks. Universes are those of the dictionary
    (no employment status under 16, and so on); the label follows a published logistic model.

    Args:
        path: ``.csv`` and ``.zip`` have the Census layout, ``.parquet`` has integer columns.
        rows: Exact number of persons.
        seed: Of the generator; generated persons are no secret.
        year: The survey year that keys begin with.
        progress: Is told the rows written and the rows in all.

    Raises:
        ConfigError: ``rows`` < 1 or an unknown suffix.
        OutputError: ``path`` exists or cannot be written, or the disk is full; nothing is left.
    """
    target = Path(path)
    kind = target.suffix.lower()
    if rows < 1 or kind not in {".csv", ".zip", ".parquet"} or not 2000 <= year <= 2100:
        raise ConfigError(
            expected="at least 1 row, a year in 2000-2100, and a .csv, .zip or .parquet file",
            got=f"{rows} rows, year {year}, {target.name}",
            fix="change the number of rows, the year or the suffix",
        )
    chunks = _told(_chunks(rows, seed, year, text=kind != ".parquet"), rows, progress)
    with _replacing(target) as draft:
        if kind == ".parquet":
            _write_parquet(chunks, draft)
        elif kind == ".csv":
            with draft.open("wb") as stream:
                _write_csv(chunks, stream)
        else:
            _write_zip(chunks, draft, f"psam_p{target.stem}.csv")
    return target


def _chunks(rows: int, seed: int, year: int, *, text: bool) -> Iterator[pa.RecordBatch]:
    for index, start in enumerate(range(0, rows, CHUNK_ROWS)):
        rng = np.random.default_rng([seed, index])
        # Whole chunks are drawn, so that a shorter file is a beginning of a longer one.
        persons = draw_persons(rng, CHUNK_ROWS, 1 + start)
        batch = _texts(persons, year) if text else _integers(persons, year)
        yield batch.slice(0, min(CHUNK_ROWS, rows - start))


def _told(
    chunks: Iterator[pa.RecordBatch], rows: int, progress: Callable[[int, int], None] | None
) -> Iterator[pa.RecordBatch]:
    done = 0
    for chunk in chunks:
        yield chunk
        done += chunk.num_rows
        if progress is not None:
            progress(done, rows)


def _serial(persons: Persons, year: int) -> pa.Array:
    kinds = pa.array([f"{year}HU", f"{year}GQ"]).take(pa.array(persons.group_quarters.astype(int)))
    digits = pa.compute.utf8_lpad(pa.array(persons.household).cast(pa.string()), 7, "0")
    return pa.compute.binary_join_element_wise(kinds, digits, "")


def _texts(persons: Persons, year: int) -> pa.RecordBatch:
    """Columns as a Census CSV spells them: codes with leading zeros, blanks empty."""
    columns = {
        "RT": pa.array(["P"] * len(persons.weight)),
        "SERIALNO": _serial(persons, year),
        "SPORDER": _padded(persons.person, 2),
        "PUMA": _padded(persons.puma, 5),
        "PWGTP": _padded(persons.weight, 1),
        "AGEP": _padded(persons.columns["AGEP"], 1),
    }
    for column in _coded():
        codes = pa.array([None, *column.codes], type=pa.string())
        columns[_published(column, year)] = codes.take(pa.array(persons.columns[column.name]))
    return pa.record_batch(columns)


def _integers(persons: Persons, year: int) -> pa.RecordBatch:
    """Columns as small integers with NULL for blanks; the state stays text."""
    columns = {
        "SERIALNO": _serial(persons, year),
        "SPORDER": pa.array(persons.person.astype(np.int8)),
        "PUMA": _padded(persons.puma, 5),
        "PWGTP": pa.array(persons.weight.astype(np.int16)),
        "AGEP": pa.array(persons.columns["AGEP"].astype(np.int8)),
    }
    for column in _coded():
        kind = pa.string() if column.name == "ST" else pa.int8()
        known = column.codes if column.name == "ST" else [int(code) for code in column.codes]
        codes = pa.array([None, *known], type=kind)
        columns[_published(column, year)] = codes.take(pa.array(persons.columns[column.name]))
    return pa.record_batch(columns)


def _coded() -> list[Categorical]:
    return [column for column in ACS.columns if isinstance(column, Categorical)]


def _published(column: Categorical, year: int) -> str:
    return "STATE" if column.name == "ST" and year >= _STATE_SINCE else column.name


def _padded(values: np.ndarray, width: int) -> pa.Array:
    return pa.compute.utf8_lpad(pa.array(values).cast(pa.string()), width, "0")


def _write_csv(chunks: Iterator[pa.RecordBatch], stream: IO[bytes] | io.BufferedIOBase) -> None:
    first = next(chunks)
    options = pa.csv.WriteOptions(quoting_style="none", quoting_header="none")
    with pa.csv.CSVWriter(stream, first.schema, write_options=options) as writer:
        writer.write_batch(first)
        for chunk in chunks:
            writer.write_batch(chunk)


def _write_zip(chunks: Iterator[pa.RecordBatch], path: Path, member: str) -> None:
    # A fixed date: the same arguments give the same bytes.
    entry = zipfile.ZipInfo(member)
    entry.compress_type = zipfile.ZIP_DEFLATED
    with (
        zipfile.ZipFile(path, "w", compresslevel=1) as archive,
        archive.open(entry, "w", force_zip64=True) as stream,
    ):
        _write_csv(chunks, stream)


def _write_parquet(chunks: Iterator[pa.RecordBatch], path: Path) -> None:
    first = next(chunks)
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        writer.write_batch(first)
        for chunk in chunks:
            writer.write_batch(chunk)


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A draft beside the target that takes its place when it is whole, and else vanishes."""
    with output_errors(target):
        if target.exists():
            raise OutputError(
                expected=f"no file yet at {target}",
                got="one",
                fix="choose another --out, or remove it",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{target.name}.", suffix=".part", dir=target.parent
        )
        os.close(handle)
        draft = Path(name)
        try:
            yield draft
            with draft.open("rb") as stream:
                os.fsync(stream.fileno())
            draft.chmod(0o644)
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
