"""From source files to a record store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from dither.data.acs import find_task
from dither.data.counts import StageCounts
from dither.data.engines import Engine, Staged, find_engine
from dither.data.reader import Source, describe_sources, open_tables, source_files
from dither.data.schema import Task
from dither.data.store.manifest import FORMAT_VERSION, Manifest, dither_version, write_manifest
from dither.data.store.store import RecordStore
from dither.data.store.writer import SHARD_ROWS, write_shards
from dither.errors import ConfigError, DataError
from dither.files import home, locked, output_errors, publish, staged_folder

Sources = str | Path | Iterable[str | Path]
Progress = Callable[[str, int, int | None], None]
"""Called with a stage ("unpack", "validate", "write"), the rows done, and the rows in all."""

_BATCH_ROWS = 1 << 17
_CODES_SHOWN = 5


@dataclass(frozen=True)
class Built:
    """A new store and, for the operator's private eyes, what became of the rows."""

    store: RecordStore
    counts: StageCounts


def build_store(
    sources: Sources,
    task: str | Task,
    out: str | Path,
    *,
    engine: str | Engine = "duckdb",
    on_invalid: str = "error",
    sensitive: bool | None = None,
    progress: Progress | None = None,
) -> RecordStore:
    """Read, validate, filter and recode records into a store at ``out``.

    Args:
        sources: Census zips, CSV or Parquet files, or folders of them.
        task: A task or its name.
        out: A folder that does not exist yet or is empty.
        engine: What runs the pipeline.
        on_invalid: Whether a row with an unknown code or a missing value is an "error", or is
            left out ("drop"). Leaving out depends on that row alone, so it does not weaken the
            guarantee.
        sensitive: Whether unprotected use must be refused later; by default yes, unless the
            schema's tables are published ones.
        progress: Is told how far the build is.

    Raises:
        ConfigError: Unknown task, engine or option.
        DataError: The sources are not what the task's schema describes.
        OutputError: ``out`` is not empty, cannot be written, or the disk is full. Nothing is
            left behind.
    """
    built = build_with_counts(
        sources,
        task,
        out,
        engine=engine,
        on_invalid=on_invalid,
        sensitive=sensitive,
        progress=progress,
    )
    return built.store


def build_with_counts(
    sources: Sources,
    task: str | Task,
    out: str | Path,
    *,
    engine: str | Engine = "duckdb",
    on_invalid: str = "error",
    sensitive: bool | None = None,
    progress: Progress | None = None,
    shard_rows: int = SHARD_ROWS,
) -> Built:
    """Like :func:`build_store`, and returns the exact counts by stage, which are not released."""
    job = _Job(find_task(task), find_engine(engine), on_invalid, sensitive, progress, shard_rows)
    target = Path(out).absolute()
    files = source_files(sources)
    with staged_folder(target) as work:
        counts = _build(job, files, describe_sources(files), work)
        publish(work / "store", target)
    return Built(RecordStore.open(target, verify=False), counts)


def cached_store(
    sources: Sources,
    task: str | Task,
    *,
    engine: str | Engine = "duckdb",
    on_invalid: str = "error",
    sensitive: bool | None = None,
    progress: Progress | None = None,
) -> RecordStore:
    """The store of these records and this task under dither's home, built at first use.

    It lies at ``<home>/stores/<task>-<content hash>``, where home is ``$DITHER_HOME`` or the
    user's data folder. Because the name is the content, every run on the same records shares
    one store, and so one ledger, even if the records came as CSV once and as Parquet later:
    budgets spent on the same records add up by themselves. Stores of overlapping but different
    records (another task, one more state) have ledgers of their own; give such runs a common
    ``--ledger``.

    Safe when several processes ask at the same time: one builds, the others wait.

    Raises:
        ConfigError, DataError, OutputError: As :func:`build_store`; also where the existing
            store was declared sensitive, or not, unlike ``sensitive``.
    """
    job = _Job(find_task(task), find_engine(engine), on_invalid, sensitive, progress, SHARD_ROWS)
    files = source_files(sources)
    described = describe_sources(files)
    stores = home() / "stores"
    index = stores / "index" / _cache_key(job, described)
    with locked(stores / "lock"):
        if index.is_file():
            known = stores / index.read_text(encoding="utf-8").strip()
            if known.is_dir():
                return _agreed(RecordStore.open(known), sensitive)
        with staged_folder(stores / job.task.name) as work:
            _build(job, files, described, work)
            built = RecordStore.open(work / "store", verify=False)
            target = stores / f"{job.task.name}-{built.id[:16]}"
            if not target.is_dir():
                publish(work / "store", target)
            index.parent.mkdir(exist_ok=True)
            _write_index(index, target.name)
    return _agreed(RecordStore.open(target, verify=False), sensitive)


@dataclass(frozen=True)
class _Job:
    task: Task
    engine: Engine
    on_invalid: str
    sensitive: bool | None
    progress: Progress | None
    shard_rows: int

    def __post_init__(self) -> None:
        if self.on_invalid not in {"error", "drop"}:
            raise ConfigError(
                expected='on_invalid to be "error" or "drop"',
                got=repr(self.on_invalid),
                fix="choose one of these",
            )

    def tell(self, stage: str, done: int, total: int | None) -> None:
        if self.progress is not None:
            self.progress(stage, done, total)

    @property
    def is_sensitive(self) -> bool:
        return not self.task.schema.public if self.sensitive is None else self.sensitive


def _build(
    job: _Job, files: tuple[Path, ...], sources: tuple[Source, ...], work: Path
) -> StageCounts:
    """Write a complete store into ``work / "store"``."""
    folder = work / "store"
    folder.mkdir()
    job.tell("unpack", 0, None)
    tables = open_tables(files, job.task.schema, work)
    job.tell("validate", 0, None)
    with job.engine.stage(tables, job.task, work) as staged:
        counts = staged.counts()
        _check(counts, staged, job, ", ".join(table.origin for table in tables))
        batches = _told(staged.batches(_BATCH_ROWS), job, counts.kept)
        shards, content_hash = write_shards(batches, job.task, folder, job.shard_rows)
    manifest = Manifest(
        task=job.task,
        records=counts.kept,
        sensitive=job.is_sensitive,
        shard_rows=job.shard_rows,
        shards=shards,
        content_hash=content_hash,
        sources=tuple((source.name, source.sha256) for source in sources),
        written_by=dither_version(),
    )
    write_manifest(manifest, folder)
    return counts


def _told(batches: Iterator[pa.RecordBatch], job: _Job, total: int) -> Iterator[pa.RecordBatch]:
    done = 0
    for batch in batches:
        yield batch
        done += batch.num_rows
        job.tell("write", done, total)


def _check(counts: StageCounts, staged: Staged, job: _Job, origins: str) -> None:
    """Refuse records that cannot make a store of this task."""
    if counts.read == 0:
        raise DataError(
            expected=f"records in {origins}",
            got="none",
            fix="give person records; a housing file or a bare header holds none",
        )
    if len(counts.vintages) > 1:
        raise DataError(
            expected="records of one year",
            got=f"years {counts.vintages[0]} to {counts.vintages[-1]}",
            fix="build one store for each year",
        )
    if job.on_invalid == "error":
        _check_rows(counts, staged)
    if counts.kept == 0:
        raise DataError(
            expected=f"records in the scope of task {job.task.name}",
            got=f"none among those of {origins}",
            fix="check that these are the right records for the task",
        )
    if counts.positives in {0, counts.kept}:
        raise DataError(
            expected="records of both classes",
            got=f"only label {int(counts.positives > 0)} for task {job.task.name}",
            fix="give more records, or another task",
        )


def _check_rows(counts: StageCounts, staged: Staged) -> None:
    drop = 'mend them, or leave such rows out with on_invalid="drop" (--on-invalid drop)'
    if counts.keyless:
        raise DataError(
            expected="a complete key in every row", got=f"{counts.keyless} rows without", fix=drop
        )
    for column, rows in counts.unknown.items():
        if rows:
            found = staged.unknown_codes(column)
            codes = ", ".join(repr(code[:20]) for code, _ in found[:_CODES_SHOWN])
            more = f" and {len(found) - _CODES_SHOWN} more" if len(found) > _CODES_SHOWN else ""
            raise DataError(
                expected=f"codes or numbers of column {column} as in the published dictionary",
                got=f"{codes}{more} in {rows} rows",
                fix=drop,
            )
    for column, rows in counts.missing.items():
        if rows:
            raise DataError(
                expected=f"a value of column {column} in every row",
                got=f"none in {rows} rows",
                fix=drop,
            )


def _cache_key(job: _Job, sources: tuple[Source, ...]) -> str:
    digests = sorted(source.sha256 for source in sources)
    parts = [FORMAT_VERSION, digests, job.task.to_json(), job.on_invalid]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _write_index(index: Path, name: str) -> None:
    with output_errors(index):
        draft = index.with_suffix(".part")
        draft.write_text(name + "\n", encoding="utf-8")
        draft.replace(index)


def _agreed(store: RecordStore, sensitive: bool | None) -> RecordStore:
    if sensitive is not None and sensitive != store.manifest.sensitive:
        raise ConfigError(
            expected=f"sensitive={store.manifest.sensitive}, as the store {store.path} was built",
            got=f"sensitive={sensitive}",
            fix="build a store of your own with `dither data build --out`, or keep the declaration",
        )
    return store
