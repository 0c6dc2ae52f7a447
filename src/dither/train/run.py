"""A run folder: what is public at its top, what is the operator's in ``private/``."""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import json
import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch

from dither.clipping.clipping import NORM_EDGES
from dither.config import TrainConfig
from dither.data.build_record import read_build_record
from dither.data.quality import read_quality
from dither.data.store import RecordStore, Split
from dither.errors import OutputError
from dither.files import output_errors, publish, staged_folder, write_atomic, write_json
from dither.noise import simd
from dither.privacy.events import Relation
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.train.preflight import check_free, no_run, read_run

FORMAT = 1
_LOCK_SECONDS = 2.0


@dataclass(frozen=True)
class Run:
    """One run's folder and identity.

    Attributes:
        folder: Where it lives.
        id: Its name in the ledger.
        config: Its options.
        plan: Its promise; None without privacy.
        store: The record store's folder.
        probes: Promise of its probes, which are charged apart; None without any.
    """

    folder: Path
    id: str
    config: TrainConfig
    plan: Plan | None
    store: Path
    probes: Plan | None = None

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.folder / "checkpoints"

    @property
    def private(self) -> Path:
        """Folder of what is not released."""
        return self.folder / "private"


def create_run(
    config: TrainConfig,
    plan: Plan | None,
    about_store: Mapping[str, Any],
    store: Path,
    probes: Plan | None = None,
) -> Run:
    """Make the run folder, complete or not at all.

    Raises:
        OutputError: It exists and is not empty, or cannot be written.
    """
    assert config.out is not None  # noqa: S101 - checked with the options
    folder = config.out.absolute()
    check_free(folder)
    run_id = uuid.uuid4().hex
    facts = {
        "format": FORMAT,
        "id": run_id,
        "private": config.private and config.insecure_seed is None,
        "seeded": config.insecure_seed is not None,
        "forced": config.force and bool(about_store["sensitive"]),
        "started": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "config": {**config.public(), "task": about_store["task"]},  # a store's own, never a path
        "plan": None if plan is None else plan.to_json(),
        **({} if probes is None else {"probes": probes.to_json()}),
        "store": dict(about_store),
        "environment": environment(),
    }
    with staged_folder(folder) as work:
        staging = work / "run"
        (staging / "checkpoints").mkdir(parents=True)
        (staging / "private").mkdir(mode=0o700)
        where = {"store": str(store.absolute()), "config": config.to_json()}
        write_json(staging / "private" / "run.json", where)
        write_json(staging / "private" / "norm_edges.json", [*NORM_EDGES, None])
        built = read_build_record(store)
        if built is not None:
            write_json(staging / "private" / "data.json", built.to_json())
        write_json(staging / "run.json", facts)
        publish(staging, folder)
    return Run(folder, run_id, config, plan, store, probes)


def open_run(folder: Path) -> Run:
    """Open an existing run.

    Raises:
        CheckpointError: Not a run folder, or damaged.
    """
    facts, where = read_run(folder)
    try:
        plan, probes = facts["plan"], facts.get("probes")
        return Run(
            folder=folder.absolute(),
            id=facts["id"],
            config=TrainConfig.from_json(where["config"]),
            plan=None if plan is None else Plan.from_json(plan),
            store=Path(where["store"]),
            probes=None if probes is None else Plan.from_json(probes),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise no_run(folder, error) from error


@contextlib.contextmanager
def unstarted_removed(run: Run | None) -> Iterator[None]:
    """Remove the folder of a new run that fails before its first checkpoint.

    Nothing was charged by then, for that checkpoint is of step 0; the same command, mended, finds
    its folder free.

    Args:
        run: Made by this start; None where another rank made it.
    """
    try:
        yield
    except BaseException:
        if run is not None and not any(run.checkpoints.glob("*")):
            shutil.rmtree(run.folder, ignore_errors=True)
        raise


def note_start(run: Run, step: int, ranks: int) -> None:
    """Write down, for the report, where a start of a run begins and on how many ranks.

    Raises:
        OutputError: The disk is full.
    """
    line = {"step": step, "ranks": ranks, "engine": run.config.engine}
    append_lines(run.folder / "starts.jsonl", [line])


@contextlib.contextmanager
def exclusive(run: Run) -> Iterator[None]:
    """Hold the run folder, so that no second process trains in it.

    Waits for a moment, since the system may still be clearing away one that was killed.

    Raises:
        OutputError: Another process does.
    """
    with output_errors(run.folder), (run.folder / ".lock").open("w") as lock:
        deadline = time.monotonic() + _LOCK_SECONDS
        while not _locks(lock):
            if time.monotonic() > deadline:
                raise OutputError(
                    expected=f"{run.folder} free of other processes",
                    got="one that trains in it now",
                    fix="wait for it or end it, then resume",
                )
            time.sleep(_LOCK_SECONDS / 20)
        yield


def _locks(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def append_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Append JSON lines, in one write.

    Raises:
        OutputError: The disk is full.
    """
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    with output_errors(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            before = os.fstat(handle).st_size
            if os.write(handle, text.encode()) != len(text.encode()):
                os.ftruncate(handle, before)
                raise OSError(28, os.strerror(28))
        finally:
            os.close(handle)


def keep_lines(path: Path, last_step: int) -> None:
    """Drop lines of steps after a checkpoint: a crash lost that lineage (it stays charged)."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        with contextlib.suppress(ValueError):  # a line cut short by the crash
            if json.loads(line)["step"] <= last_step:
                kept.append(line)
    write_atomic(path, "".join(kept).encode())


def describe_store(
    store: RecordStore, split: Split, ledger: Ledger, plan: Plan | None
) -> dict[str, Any]:
    """Return what may be published about the records.

    The content hash is a function of the records, so sensitive ones are named by their account.
    Under ``add_remove`` n is private too: only the declared number appears. Where the unit is a
    person, records are counted as persons: how many rows those have is not public.
    """
    manifest = store.manifest
    hidden = plan is not None and plan.relation is Relation.ADD_REMOVE
    public = {p.name: f"{p.value} ({p.source})" for p in manifest.public_inputs}
    if hidden and plan is not None:
        public["n"] = f"{plan.records} (declared by the operator)"
    return {
        "id": f"account {ledger.header.id}" if manifest.sensitive else store.id,
        "task": store.task.name,
        "records": plan.records if hidden and plan is not None else store.units,
        "train_records": plan.records if plan is not None else int(split.train.size),
        "test_records": None if hidden else int(split.test.size),
        "unit": manifest.unit,
        "sensitive": manifest.sensitive,
        "feature_dim": store.feature_dim,
        "rows_per_unit": store.rows_per_unit,
        "public_inputs": public,
        "released_inputs": [vars(constant) for constant in manifest.released_inputs],
        "quality": _quality(store, ledger),
    }


def _quality(store: RecordStore, ledger: Ledger) -> dict[str, Any] | None:
    """Return released counts of rows, where this account was charged for them."""
    found = read_quality(store.path)
    if found is None or found.account != ledger.header.id:
        return None
    return {**vars(found), "positive_share": found.positive_share}


def environment() -> dict[str, Any]:
    """Return versions and host facts, for auditors and benchmarks."""
    packages = ("dither", "torch", "numpy", "dp-accounting", "ibis-framework", "duckdb", "pyarrow")
    return {
        **{name.replace("-", "_"): version(name) for name in packages},
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "simd": simd.active(),
        "threads": torch.get_num_threads(),
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
