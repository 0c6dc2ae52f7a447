"""Row by row in plain Python: the sequential baseline, and the oracle of the other engines.

Memory is bounded: sorted runs of records go to disk and are merged.
"""

from __future__ import annotations

import heapq
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO, final

import numpy as np
import pyarrow as pa

from dither.data.counts import StageCounts
from dither.data.engines.base import Engine, Staged
from dither.data.engines.reading import rows_of
from dither.data.engines.recode import Recoder, Record
from dither.data.reader import TextTable
from dither.data.schema import Schema, Task
from dither.files import output_errors

RUN_ROWS = 1 << 21
"""Rows that are sorted in memory at a time: some 600 MB."""

_BLOCK = 1 << 13


@final
class Rows(Engine):
    """Runs the rules in one thread.

    Args:
        run_rows: Rows that are sorted in memory at a time; with more, runs go to the work folder.
    """

    name = "rows"

    def __init__(self, *, run_rows: int = RUN_ROWS) -> None:
        self._run_rows = run_rows

    @contextmanager
    def stage(self, tables: Sequence[TextTable], task: Task, work: Path) -> Iterator[Staged]:
        """See :meth:`Engine.stage`."""
        recoder, runs = Recoder(task), _Runs(work / "runs", self._run_rows)
        for table in tables:
            runs.take(recoder.records(table, rows_of(table)))
        runs.rest.sort()
        yield StagedRecords(recoder.counts(), recoder.unknown_codes, runs.merged, task.schema)


class _Runs:
    """Sorted runs of records on disk, and the rest in memory."""

    def __init__(self, folder: Path, run_rows: int) -> None:
        self.rest: list[Record] = []
        self._folder = folder
        self._run_rows = run_rows
        self._files: list[Path] = []

    def take(self, records: Iterable[Record]) -> None:
        """Add records; write a run whenever enough are there."""
        stream = iter(records)
        while block := list(islice(stream, self._run_rows - len(self.rest))):
            self.rest += block
            if len(self.rest) >= self._run_rows:
                self._spill()

    def _spill(self) -> None:
        self.rest.sort()
        with output_errors(self._folder):
            self._folder.mkdir(exist_ok=True)
            path = self._folder / f"{len(self._files)}.run"
            with path.open("wb") as stream:
                for start in range(0, len(self.rest), _BLOCK):
                    pickle.dump(self.rest[start : start + _BLOCK], stream, protocol=5)
        self._files.append(path)
        self.rest = []

    def merged(self) -> Iterator[Record]:
        """All records in order."""
        if not self._files:
            return iter(self.rest)
        return heapq.merge(*map(_run, self._files), self.rest)


def _run(path: Path) -> Iterator[Record]:
    with path.open("rb") as stream:
        while block := _block(stream):
            yield from block


def _block(stream: BinaryIO) -> list[Record]:
    try:
        return pickle.load(stream)  # type: ignore[no-any-return]  # noqa: S301 - our own run
    except EOFError:
        return []


@final
class StagedRecords(Staged):
    """Records that the rules of `dither.data.engines.recode` made.

    Args:
        counts: What became of the rows.
        unknown: Returns the texts that a column's schema does not know.
        ordered: Yields the records in order, anew at each call.
        schema: Fixes the columns.
    """

    def __init__(
        self,
        counts: StageCounts,
        unknown: Callable[[str], list[tuple[str, int]]],
        ordered: Callable[[], Iterator[Record]],
        schema: Schema,
    ) -> None:
        self._counts = counts
        self._unknown = unknown
        self._ordered = ordered
        self._schema = schema

    def counts(self) -> StageCounts:
        """See :meth:`Staged.counts`."""
        return self._counts

    def unknown_codes(self, column: str) -> list[tuple[str, int]]:
        """See :meth:`Staged.unknown_codes`."""
        return self._unknown(column)

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """See :meth:`Staged.batches`."""
        stream = self._ordered()
        while block := list(islice(stream, rows)):
            yield _batch(block, self._schema)


def _batch(block: Sequence[Record], schema: Schema) -> pa.RecordBatch:
    *order, codes, values, labels = zip(*block, strict=True)
    columns: dict[str, pa.Array] = {}
    if schema.person is not None:
        columns["person"] = pa.array(list(map(str, order.pop(0))))
    texts = (map(str, part) for part in order)
    columns["key"] = pa.array(list(map("-".join, zip(*texts, strict=True))))
    if isinstance(codes[0], bytes):
        positions = np.frombuffer(b"".join(codes), dtype=np.uint8).reshape(len(block), -1)
    else:
        positions = np.array(codes, dtype=np.uint16)
    for i in range(len(schema.categorical)):
        columns[f"c_{i}"] = pa.array(np.ascontiguousarray(positions[:, i]))
    numbers = np.array(values, dtype=np.float64).reshape(len(block), -1).astype(np.float32)
    for i in range(len(schema.numeric)):
        columns[f"v_{i}"] = pa.array(np.ascontiguousarray(numbers[:, i]))
    columns["label"] = pa.array(np.array(labels, dtype=np.uint8))
    return pa.record_batch(columns)
