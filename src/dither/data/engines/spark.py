"""Spark: one machine's cores or a cluster, the same expressions as SQL of its dialect.

Every run has a session of its own. Rows are read as text by a given schema, validated into a
partitioned Parquet table under the work folder, then sorted by range into another, whose parts in
their order are the store's rows: bounded memory on every worker and on the driver. On a cluster of
several machines, sources and output must lie in folders that driver and workers share.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from dither.data import pipeline
from dither.data.counts import StageCounts
from dither.data.engines.base import Engine, Staged
from dither.data.engines.lines import splittable
from dither.data.engines.spark_errors import errors_explained
from dither.data.engines.spark_session import MEMORY, read_from, spark_session, written_to
from dither.data.reader import TextTable
from dither.data.schema import Task
from dither.errors import OutputError

_PART_BYTES = 32 << 20  # of the staged table, a task of the sort


@final
class Spark(Engine):
    """Runs the pipeline's expressions as Spark SQL.

    Args:
        master: ``local[N]``, ``local-cluster[N,CORES,MB]``, ``spark://HOST:PORT``, ``yarn`` or
            ``k8s://...``. By default what ``spark-submit`` or the program's own session gives, and
            else ``local[*]``.
        memory: Of the driver, which under ``local`` is also the worker; Spark's own notation.
    """

    name = "spark"

    def __init__(self, *, master: str | None = None, memory: str = MEMORY) -> None:
        self._master = master
        self._memory = memory

    @contextmanager
    def stage(self, tables: Sequence[TextTable], task: Task, work: Path) -> Iterator[Staged]:
        """See :meth:`Engine.stage`.

        Raises:
            ConfigError: pyspark or Java is missing, or the master does not answer.
            DataError, OutputError: As every engine.
        """
        origins = ", ".join(table.origin for table in tables)
        start = time.perf_counter()
        with spark_session(work / "spark", master=self._master, memory=self._memory) as session:
            seconds = time.perf_counter() - start
            with errors_explained(origins):
                for index, table in enumerate(tables):
                    _present(session, table, pipeline.source_name(index))
            raw = pipeline.raw(tables, task.schema)
            staged = _StagedParquet(session, task, raw, folder=work / "spark", origins=origins)
            staged.session_seconds = seconds
            staged.write()
            yield staged


@final
class _StagedParquet(Staged):
    def __init__(
        self, session: Any, task: Task, raw: ir.Table, *, folder: Path, origins: str
    ) -> None:
        self._session = session
        self._task = task
        self._raw = raw
        self._folder = folder
        self._origins = origins

    def write(self) -> None:
        """Validate all rows into a Parquet table."""
        where = self._folder / "staged"
        with errors_explained(self._origins):
            rows = self._session.sql(_sql(pipeline.staged(self._raw, self._task)))
            rows.write.parquet(written_to(where))
            parts = _parts(where)
            size = sum(part.stat().st_size for part in parts)
            parallel = int(self._session.sparkContext.defaultParallelism)
            tasks = max(parallel, -(-size // _PART_BYTES))
            self._session.conf.set("spark.sql.shuffle.partitions", str(tasks))
            table = self._session.read.schema(rows.schema).parquet(read_from(where))
            table.createOrReplaceTempView(pipeline.STAGED)

    def counts(self) -> StageCounts:
        """See :meth:`Staged.counts`."""
        row = self._rows(pipeline.counts(self._task))[0]
        return pipeline.read_counts(row, self._task)

    def unknown_codes(self, column: str) -> list[tuple[str, int]]:
        """See :meth:`Staged.unknown_codes`."""
        found = self._rows(pipeline.unknown_codes(self._raw, self._task, column))
        return [(str(row["code"]), int(str(row["rows"]))) for row in found]

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """See :meth:`Staged.batches`."""
        where = self._folder / "records"
        with errors_explained(self._origins):
            ordered = self._session.sql(_sql(pipeline.records(self._task)))
            ordered.write.mode("overwrite").parquet(written_to(where))
            parts = _parts(where)
        for part in parts:  # their numbers follow the order of the sort
            with pq.ParquetFile(part) as file:
                yield from file.iter_batches(rows)

    def _rows(self, expression: ir.Table) -> list[dict[str, object]]:
        with errors_explained(self._origins), warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # pyspark drops its socket unclosed
            return [row.asDict() for row in self._session.sql(_sql(expression)).collect()]


def _parts(folder: Path) -> list[Path]:
    """The files of a table that Spark wrote, in their order.

    Raises:
        OutputError: They are elsewhere.
    """
    parts = sorted(folder.glob("part-*.parquet"))
    if not parts:
        raise OutputError(
            expected=f"what Spark's workers wrote at {folder.parent.parent.parent}",
            got="nothing there",
            fix="choose an --out in a folder that driver and workers share",
        )
    return parts


def _sql(expression: ir.Table) -> str:
    _ = ibis.pyspark  # registers the dialect's options; starts nothing
    return str(ibis.to_sql(expression, dialect="pyspark"))


def _present(session: Any, table: TextTable, name: str) -> None:
    """Make a view of a file in which every column is text; nothing is inferred."""
    if table.format == "parquet":
        frame = session.read.parquet(read_from(table.path))
        frame = frame.select(*[_text(frame, column) for column in table.columns])
    else:
        frame = _csv(session, table)
    frame.createOrReplaceTempView(name)


def _csv(session: Any, table: TextTable) -> Any:
    from pyspark.sql.types import StringType, StructField, StructType  # noqa: PLC0415 - an extra

    whole_lines = splittable(table.path, table.origin)
    fields = [StructField(column, StringType(), nullable=True) for column in table.columns]
    return session.read.schema(StructType(fields)).csv(
        read_from(table.path),
        header=True,
        enforceSchema=True,  # the header was read already; its line is skipped
        encoding="UTF-8",
        mode="FAILFAST",
        sep=",",
        quote='"',
        escape='"',
        unescapedQuoteHandling="RAISE_ERROR",
        multiLine=not whole_lines,
        maxCharsPerColumn=-1,
        ignoreLeadingWhiteSpace=False,
        ignoreTrailingWhiteSpace=False,
        nullValue="",
        emptyValue="",
    )


def _text(frame: Any, name: str) -> Any:
    """A column of a Parquet file as text, spelled as DuckDB spells it."""
    from pyspark.sql import functions as fn  # noqa: PLC0415
    from pyspark.sql.types import DoubleType, FloatType  # noqa: PLC0415

    column = frame["`" + name.replace("`", "``") + "`"]
    text = column.cast("string")
    if isinstance(frame.schema[name].dataType, DoubleType | FloatType):
        whole = (column == fn.floor(column)) & (fn.abs(column) < fn.lit(1e15)) & (column != 0)
        spelled = fn.concat(column.cast("bigint").cast("string"), fn.lit(".0"))
        text = fn.when(whole, spelled).when(fn.isnan(column), fn.lit("nan")).otherwise(text)
    return text.alias(name)
