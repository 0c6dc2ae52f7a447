"""From source files to a record store."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from dither.data.acs import find_task
from dither.data.build_record import BUILD_RECORD, BuildRecord, read_build_record
from dither.data.checks import check
from dither.data.counts import StageCounts
from dither.data.engines import Engine, Staged, find_engine
from dither.data.persons import index_persons
from dither.data.reader import Source, describe_sources, open_tables, source_files
from dither.data.schema import Task
from dither.data.store.manifest import FORMAT_VERSION, Manifest, dither_version, write_manifest
from dither.data.store.store import RecordStore
from dither.data.store.writer import SHARD_ROWS, write_shards
from dither.errors import ConfigError, OutputError
from dither.files import home, locked, output_errors, publish, staged_folder

__all__ = [
    "BuildRecord",
    "Built",
    "Progress",
    "Sources",
    "build_store",
    "build_with_counts",
    "cached_store",
    "read_build_record",
]

Sources = str | Path | Iterable[str | Path]
Progress = Callable[[str, int, int | None], None]
"""Called with a stage ("unpack", "validate", "write"), the rows done, and the rows in all."""

_BATCH_ROWS = 1 << 17


@dataclass(frozen=True)
class Built:
    """A new store and, for the operator's private eyes, what became of the rows.

    Args:
        store: The store.
        record: How it was built.
    """

    store: RecordStore
    record: BuildRecord

    @property
    def counts(self) -> StageCounts:
        """Exact row counts by stage."""
        return self.record.counts

    @property
    def seconds(self) -> dict[str, float]:
        """Time by stage."""
        return self.record.seconds


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
    """Like :func:`build_store`, and returns exact counts and times, which are not released.

    They also stand in the store's folder: :func:`read_build_record`.
    """
    job = _Job(find_task(task), find_engine(engine), on_invalid, sensitive, progress, shard_rows)
    target = Path(out).absolute()
    files = source_files(sources)
    with staged_folder(target) as work:
        record = _build(job, files, _described(job, files), work)
        publish(work / "store", target)
    return Built(RecordStore.open(target, verify=False), record)


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
    described = _described(job, files)
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
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

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

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage's."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    @property
    def is_sensitive(self) -> bool:
        return not self.task.schema.public if self.sensitive is None else self.sensitive


def _described(job: _Job, files: tuple[Path, ...]) -> tuple[Source, ...]:
    with job.timed("hash"):
        return describe_sources(files)


def _build(
    job: _Job, files: tuple[Path, ...], sources: tuple[Source, ...], work: Path
) -> BuildRecord:
    """Write a complete store into ``work / "store"``."""
    folder = work / "store"
    folder.mkdir()
    job.tell("unpack", 0, None)
    with job.timed("unpack"):
        tables = open_tables(files, job.task.schema, work)
    job.tell("validate", 0, None)
    start = time.perf_counter()
    with job.engine.stage(tables, job.task, work) as staged:
        job.seconds["session"] = staged.session_seconds
        job.seconds["validate"] = time.perf_counter() - start - staged.session_seconds
        with job.timed("count"):
            counts = staged.counts()
            origins = ", ".join(table.origin for table in tables)
            check(counts, staged, job.task, origins, strict=job.on_invalid == "error")
        with job.timed("write"):
            manifest, bounded = _write(job, staged, counts.kept, sources, folder)
    counts = dataclasses.replace(counts, bounded=bounded)
    write_manifest(manifest, folder)
    record = BuildRecord(job.engine.name, counts, dict(job.seconds))
    text = json.dumps(record.to_json(), indent=1) + "\n"
    (folder / BUILD_RECORD).write_text(text, encoding="utf-8")
    return record


def _write(
    job: _Job, staged: Staged, kept: int, sources: tuple[Source, ...], folder: Path
) -> tuple[Manifest, int]:
    """Write the shards; return the manifest, and how many rows persons had beyond their bound."""
    with index_persons(job.task.schema, folder) as index:
        batches = _told(index.bounded(staged.batches(_BATCH_ROWS)), job, kept)
        shards, content_hash = write_shards(batches, job.task, folder, job.shard_rows)
        if index.rows_in != kept:
            raise OutputError(
                expected=f"all {kept} records back from the engine {job.engine.name}",
                got=str(index.rows_in),
                fix="let driver and workers share the output folder, and build again",
            )
        job.tell("write", index.rows_out, index.rows_out)
        manifest = Manifest(
            task=job.task,
            records=index.rows_out,
            sensitive=job.is_sensitive,
            shard_rows=job.shard_rows,
            shards=shards,
            content_hash=index.sealed(content_hash),
            sources=tuple((source.name, source.sha256) for source in sources),
            written_by=dither_version(),
            persons=index.written(),
        )
        return manifest, index.dropped


def _told(batches: Iterator[pa.RecordBatch], job: _Job, total: int) -> Iterator[pa.RecordBatch]:
    done = 0
    for batch in batches:
        yield batch
        done += batch.num_rows
        job.tell("write", done, total)


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
