r"""A mapper and a reducer in Hadoop-streaming form: lines in, lines out, counters aside.

The mapper reads rows as CSV and writes ``key<TAB>record``; the framework sorts the lines by their
bytes; the reducer writes the records and counts keys that repeat. Counters go to standard error. On
a Hadoop cluster the two are what ``hadoop-streaming`` takes as ``-mapper`` and ``-reducer``, the
job file shipped by ``-files``; by hand::

    python -m dither.data.engines.mapreduce map job.json < rows.csv \
        | LC_ALL=C sort | python -m dither.data.engines.mapreduce reduce job.json

A key is written so that bytes sort as the key does: texts as hexadecimal digits of their UTF-8,
whole numbers with leading zeros, the parts separated by a blank.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Protocol, TextIO, runtime_checkable
from urllib.parse import quote, unquote

from dither.data.counts import StageCounts
from dither.data.engines.reading import csv_rows, rows_of
from dither.data.engines.recode import Recoder, Record
from dither.data.reader import TextTable
from dither.data.schema import KeyColumn, Task
from dither.errors import DitherError

COUNTER = "reporter:counter:dither,"
BROKEN, FULL = 3, 4
"""Exit status where the user's files are broken, or the disk is full."""

ERROR = "dither:error:"
"""Begins a line on standard error that tells an error of the user's files."""


@runtime_checkable
class Sink(Protocol):
    """Takes text, as an open file does."""

    def write(self, text: str, /) -> object:
        """Take this text."""


@dataclass(frozen=True)
class Job:
    """What mapper and reducer must know.

    Args:
        task: What to keep and how to label it.
        columns: Of the rows, in order.
        origin: The rows' source, as a user knows it.
        header: Where a header is among the rows: the ``first`` one; ``none``; or ``any`` row that
            equals it, for a mapper of Hadoop's does not know whether it reads a file's beginning.
    """

    task: Task
    columns: tuple[str, ...]
    origin: str
    header: str = "any"

    def write(self, path: Path) -> Path:
        """Write the job file."""
        facts = {"columns": self.columns, "origin": self.origin, "header": self.header}
        value = {"task": self.task.to_json(), **facts}
        path.write_text(json.dumps(value), encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read a job file."""
        value = json.loads(path.read_text(encoding="utf-8"))
        columns = tuple(value["columns"])
        return cls(Task.from_json(value["task"]), columns, value["origin"], value["header"])

    @property
    def order(self) -> tuple[KeyColumn, ...]:
        """What rows are ordered by."""
        schema = self.task.schema
        return (*(() if schema.person is None else (schema.person,)), *schema.key)


def map_rows(job: Job, rows: Iterable[str], out: Sink, err: Sink) -> None:
    """Write a line for each valid record in scope, and the counts.

    Args:
        job: The job.
        rows: Lines of CSV, line ends kept; a header, where the job says that there is one, is
            skipped.
        out: Where records go.
        err: Where counters go.

    Raises:
        DataError: A row is broken.
    """
    table = TextTable(Path("-"), "csv", job.columns, job.origin)
    recoder = Recoder(job.task)
    texts = csv_rows(rows, table, header=job.header == "first")
    if job.header == "any":
        columns = list(job.columns)
        texts = (row for row in texts if row != columns)
    for record in recoder.records(table, texts):
        out.write(encode(record, job))
    for name, number in _tallies(recoder, job.task).items():
        err.write(f"{COUNTER}{name},{number}\n")


def reduce_lines(lines: Iterable[str], out: Sink, err: Sink) -> None:
    """Write the records of sorted lines, and count those that repeat a key."""
    repeated = 0
    for _, group in groupby(lines, key=lambda line: line.partition("\t")[0]):
        for place, line in enumerate(group):
            repeated += place > 0
            out.write(line)
    err.write(f"{COUNTER}repeated,{repeated}\n")


def encode(record: Record, job: Job) -> str:
    """A record as a line that sorts by its key."""
    *order, codes, values, label = record
    key = " ".join(
        f"{part:09d}" if kind.kind == "integer" else str(part).encode().hex()
        for part, kind in zip(order, job.order, strict=True)
    )
    return f"{key}\t{json.dumps([list(codes), values, int(label)], separators=(',', ':'))}\n"


def decode(line: str, job: Job, *, wide: bool) -> Record:
    """The record of a line.

    Args:
        line: As `encode` wrote it.
        job: The job.
        wide: Whether a code takes more than a byte.
    """
    key, _, rest = line.partition("\t")
    codes, values, label = json.loads(rest)
    order = [
        int(part) if kind.kind == "integer" else bytes.fromhex(part).decode()
        for part, kind in zip(key.split(" "), job.order, strict=True)
    ]
    return (*order, tuple(codes) if wide else bytes(codes), tuple(values), label)


def _tallies(recoder: Recoder, task: Task) -> dict[str, int]:
    counts = recoder.counts()
    found = {
        name: getattr(counts, name) for name in ("read", "in_scope", "kept", "positives", "keyless")
    }
    found |= {f"year {quote(year)}": 1 for year in counts.vintages}
    for column in task.schema.columns:
        name = quote(column.name)
        found[f"unknown {name}"] = counts.unknown[column.name]
        found[f"missing {name}"] = counts.missing[column.name]
        for text, rows in recoder.unknown_codes(column.name):
            found[f"text {name} {quote(text, safe='')}"] = rows
    return found


def counts_of(lines: Iterable[str], task: Task) -> tuple[StageCounts, dict[str, Counter[str]]]:
    """Counts, and unknown texts by column, of what mappers wrote on standard error."""
    totals: Counter[str] = Counter()
    for line in lines:
        if line.startswith(COUNTER):
            name, _, number = line.removeprefix(COUNTER).rpartition(",")
            totals[name] += int(number)
    names = {column.name: quote(column.name) for column in task.schema.columns}
    years = sorted(unquote(name.removeprefix("year ")) for name in totals if name[:5] == "year ")
    texts = {name: Counter[str]() for name in names}
    for column, quoted in names.items():
        start = f"text {quoted} "
        found = {n: total for n, total in totals.items() if n.startswith(start)}
        texts[column].update({unquote(n.removeprefix(start)): t for n, t in found.items()})
    counts = StageCounts(
        read=totals["read"],
        in_scope=totals["in_scope"],
        kept=totals["kept"],
        positives=totals["positives"],
        keyless=totals["keyless"],
        unknown={name: totals[f"unknown {quoted}"] for name, quoted in names.items()},
        missing={name: totals[f"missing {quoted}"] for name, quoted in names.items()},
        vintages=tuple(years[:1] + years[1:][-1:]),
    )
    return counts, texts


def write_csv(table: TextTable, out: Sink) -> None:
    """Write a table's rows as CSV, without a header: what a mapper reads of a Parquet file."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows(rows_of(table))


def _lines(stream: TextIO) -> Iterator[str]:
    yield from stream


def _main(verb: str, path: str, *more: str) -> int:
    stdin = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", newline="")
    out = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", newline="\n", write_through=False)
    try:
        job = Job.read(Path(path))
        if verb == "map":
            map_rows(job, stdin, out, sys.stderr)
        elif verb == "reduce":
            reduce_lines(_lines(stdin), out, sys.stderr)
        else:
            write_csv(TextTable(Path(more[0]), "parquet", job.columns, job.origin), out)
        out.flush()
    except DitherError as error:
        told = [error.expected, error.got, error.fix]
        sys.stderr.write(f"{ERROR}{json.dumps(told)}\n")
        return BROKEN
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return FULL
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
