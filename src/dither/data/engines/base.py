"""What an engine is: something that runs the pipeline over text tables, in bounded memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa

from dither.data.counts import StageCounts
from dither.data.reader import TextTable
from dither.data.schema import Task


class Staged(ABC):
    """Source rows, validated and recoded, that wait to be counted and read in key order.

    Attributes:
        session_seconds: What the engine's own start took, before it read anything.
    """

    session_seconds: float = 0.0

    @abstractmethod
    def counts(self) -> StageCounts:
        """Exact row counts by stage."""

    @abstractmethod
    def unknown_codes(self, column: str) -> list[tuple[str, int]]:
        """Texts that a column's schema does not know, with row counts, most frequent first."""

    @abstractmethod
    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """Valid records in scope, in key order, at most about ``rows`` at a time.

        Columns: ``key`` (string), ``c_<i>`` (positions of the i-th categorical feature, any
        integer type), ``v_<i>`` (float32), ``label`` (0 or 1); and ``person`` (string) where the
        schema has one, whose rows then stand together.
        """


class Engine(ABC):
    """A way to run the pipeline; all engines yield equal stores.

    Attributes:
        name: What ``--engine`` calls it.
    """

    name: str

    @abstractmethod
    def stage(
        self, tables: Sequence[TextTable], task: Task, work: Path
    ) -> AbstractContextManager[Staged]:
        """Read the tables and validate every row.

        Args:
            tables: Where the rows are.
            task: What to keep and how to label it.
            work: A folder for spills that the caller removes afterwards.

        Raises:
            DataError: A table cannot be read.
            OutputError: The disk under ``work`` is full.
        """
