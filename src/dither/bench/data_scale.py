"""Time and memory of DuckDB builds against the number of rows, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from dither.bench.harness import Row
from dither.data.build import build_with_counts
from dither.data.synth import write_synthetic
from dither.errors import DataError
from dither.files import output_errors
from dither.memory import resident

MEMORY_TARGET = 2_000_000_000
LINEAR_TARGET = 1.25
"""Largest ratio of the time a row at the largest size to that at the smallest."""

_TASK = "unemployment"


@dataclass(frozen=True)
class Point:
    """One build.

    Attributes:
        persons: Rows of the CSV file.
        records: Of the store.
        seconds: From file to store.
        peak_bytes: Largest resident size of the process, Python and all libraries with it.
        csv_bytes: Size of the file.
    """

    persons: int
    records: int
    seconds: float
    peak_bytes: int
    csv_bytes: int


def measure_scale(folder: Path, sizes: Sequence[int]) -> list[Point]:
    """Generate persons and build their store with DuckDB, size by size.

    Args:
        folder: For files; each is removed before the next is written.
        sizes: Persons, ascending.

    Raises:
        RuntimeError: A build failed.
    """
    points = []
    for persons in sizes:
        source = write_synthetic(folder / f"{persons}.csv", persons, seed=0)
        points.append(_in_child(source, folder / "scale-store", persons))
        source.unlink()
    return points


def scale_rows(points: Sequence[Point]) -> Iterator[Row]:
    """The memory of each size, and how time grows between the smallest and the largest."""
    for point in points:
        speed = f"{point.seconds:.1f} s, {point.persons / point.seconds:,.0f} rows/s"
        yield _single(
            f"scale/{point.persons}",
            metric="memory",
            unit="B",
            ours=point.peak_bytes,
            baseline=MEMORY_TARGET,
            baseline_name="2 GB",
            detail=f"{point.csv_bytes / 1e6:,.0f} MB of CSV in {speed}",
            target=1.0,
        )
    first, last = points[0], points[-1]
    yield _single(
        "scale",
        metric="time a row",
        unit="s",
        ours=last.seconds / last.persons,
        baseline=first.seconds / first.persons,
        baseline_name=f"at {first.persons:,}",
        detail=f"at {last.persons:,} persons",
        target=LINEAR_TARGET,
    )


def _single(case: str, *, ours: float, baseline: float, **words: Any) -> Row:
    """The row of one pair."""
    ratio = ours / baseline
    return Row(
        case=case,
        ours=ours,
        baseline=baseline,
        ratio=ratio,
        ratio_low=ratio,
        ratio_high=ratio,
        pairs=1,
        **words,
    )


def _in_child(source: Path, out: Path, persons: int) -> Point:
    command = [sys.executable, "-m", __name__, str(source), str(out), str(persons)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(f"the build of {persons} persons: {said[-1]}")
    return Point(**json.loads(done.stdout.splitlines()[-1]))


def export_csv(parquet: Path, path: Path) -> Path:
    """Write a Parquet file as CSV in the layout of the Census: nothing quoted, blanks empty.

    Raises:
        DataError: The file is corrupt, or holds texts that need quotes.
    """
    options = pa.csv.WriteOptions(quoting_style="none", quoting_header="none")
    with output_errors(path):
        try:
            with pq.ParquetFile(parquet) as file:
                schema = file.schema_arrow
                with pa.csv.CSVWriter(path, schema, write_options=options) as writer:
                    for batch in file.iter_batches(1 << 17):
                        writer.write_batch(batch)
        except pa.ArrowException as error:
            raise DataError(
                expected=f"census records in the Parquet file {parquet.name}",
                got=f"what CSV cannot hold, or a corrupt file ({type(error).__name__})",
                fix="give the published file",
            ) from error
    return path


def _main(source: str, out: str, persons: str) -> None:
    start = time.perf_counter()
    built = build_with_counts(source, _TASK, out, engine="duckdb")
    seconds = time.perf_counter() - start
    point = Point(
        persons=int(persons),
        records=len(built.store),
        seconds=seconds,
        peak_bytes=resident().peak,
        csv_bytes=Path(source).stat().st_size,
    )
    for path in built.store.path.iterdir():
        path.unlink()
    built.store.path.rmdir()
    sys.stdout.write(json.dumps(vars(point)) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
