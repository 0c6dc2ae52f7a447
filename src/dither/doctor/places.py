"""Where record stores and ledgers lie: DITHER_HOME, its file system, its free space."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from dither.doctor.check import Check, first_line
from dither.errors import DitherError
from dither.files import home
from dither.privacy.ledger_file import connect, journal_mode

_SCARCE = 1 << 30  # bytes
_JOURNALS = {"WAL": "a write-ahead log", "DELETE": "a rollback journal, as on network file systems"}
_LEDGER = "ledger.sqlite"
_BUSY = 5.0  # seconds
_ELSEWHERE = "set DITHER_HOME to a folder on a disk of this host that you may write to"


def checks() -> Iterator[Check]:
    """Look at the folder, at a ledger in it, and at the space. Nothing is left behind."""
    place = home().absolute()
    folder = _nearest(place)
    trouble = _refusal(place, folder)
    yield _home(place, trouble)
    if not trouble:
        yield _ledgers(place, folder)
        yield _space(folder)


def _nearest(place: Path) -> Path:
    """Return the place, or the innermost thing above it that is there."""
    return next(path for path in [place, *place.parents] if os.path.lexists(path))


def _refusal(place: Path, folder: Path) -> str:
    """Return why nothing can be written there; empty where it can."""
    if not folder.is_dir():
        return f"{folder} is {'not a folder' if folder.exists() else 'a broken link'}"
    if folder != place:
        # Nothing is made above it, not for a moment: it is not dither's.
        return "" if os.access(folder, os.W_OK | os.X_OK) else f"{folder} cannot be written"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"dither")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"it cannot be written: {(error.strerror or type(error).__name__).lower()}"
    return ""


def _home(place: Path, trouble: str) -> Check:
    means = "record stores, their ledgers, accounts of MPI ranks"
    named = "DITHER_HOME" if os.environ.get("DITHER_HOME") else "the user's data folder"
    if trouble:
        found = f"{place} ({named}): {trouble}"
        return Check("home", "wrong", found, means, _ELSEWHERE, needed=True)
    there = "there and writable" if place.is_dir() else "not there yet; it can be made"
    return Check("home", "good", f"{place} ({named}), {there}", means, needed=True)


def _ledgers(place: Path, folder: Path) -> Check:
    """Write a ledger's file where it would lie, if dither's home is there."""
    means = "charges before each release, durable"
    kind = file_system(folder)
    mode = journal_mode(place / _LEDGER)
    journal = (
        "a write-ahead log" if mode == "WAL" else "a rollback journal, for network file systems"
    )
    if folder != place:
        return Check("ledgers", "good", f"on {kind}: {journal}", means, needed=True)
    try:
        seconds = _charge(place)
    except (DitherError, OSError) as error:
        found = f"on {kind}, {journal}: {first_line(str(error))}"
        return Check("ledgers", "wrong", found, means, _ELSEWHERE, needed=True)
    found = f"on {kind}: {journal}; one durable write took {seconds * 1e3:.3g} ms"
    return Check("ledgers", "good", found, means, needed=True)


def _charge(place: Path) -> float:
    """Return how long a durable write into a ledger's kind of file takes."""
    with (
        tempfile.TemporaryDirectory(prefix=".doctor-", dir=place) as work,
        connect(Path(work) / _LEDGER, _BUSY, create=True) as database,
    ):
        database.execute("CREATE TABLE entry (seq INTEGER PRIMARY KEY)")
        start = time.perf_counter()
        database.execute("INSERT INTO entry VALUES (1)")
        return time.perf_counter() - start


def _space(folder: Path) -> Check:
    disk = shutil.disk_usage(folder)
    good = disk.free >= _SCARCE
    return Check(
        "disk",
        "good" if good else "wrong",
        f"{disk.free / 1e9:.3g} GB free of {disk.total / 1e9:.3g} GB",
        "room for stores and ledgers",
        None if good else "free space, or set DITHER_HOME to a folder on a larger disk",
    )


def file_system(folder: Path) -> str:
    """Return the kind of the file system that a folder really lies on, links followed."""
    real = folder.resolve()
    mounts = sorted(psutil.disk_partitions(all=True), key=lambda m: len(m.mountpoint))
    kinds = [mount.fstype for mount in mounts if real.is_relative_to(mount.mountpoint)]
    return kinds[-1] if kinds else "an unknown file system"
