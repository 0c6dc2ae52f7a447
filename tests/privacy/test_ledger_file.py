"""The file below the account: durability, locks, full disks, other files."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from tests.privacy.conftest import RUN
from tests.privacy.workers import create_and_charge

from dither.errors import LedgerError, LedgerLockedError, OutputError
from dither.privacy.events import SampledGaussian
from dither.privacy.ledger import Ledger
from dither.privacy.ledger_file import connect, journal_mode

EVENT = SampledGaussian(0.01, 1.0)

HOLD = """
import sqlite3, sys
raw = sqlite3.connect(sys.argv[1], isolation_level=None)
raw.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def network_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pretend that the temporary folder is mounted over NFS."""
    mounts = [
        SimpleNamespace(mountpoint="/", fstype="ext4"),
        SimpleNamespace(mountpoint=str(tmp_path.absolute()), fstype="nfs4"),
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: mounts)
    journal_mode.cache_clear()
    yield
    journal_mode.cache_clear()


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Another process holds the ledger's lock."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield
        finally:
            holder.communicate("")


def test_full_synchrony_is_really_on(ledger: Ledger) -> None:
    with connect(ledger.path, 1.0) as database:
        assert database.execute("PRAGMA synchronous").fetchone() == (2,)
        assert database.execute("PRAGMA fullfsync").fetchone() == (1,)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("ext4", "WAL"),
        ("xfs", "WAL"),
        ("tmpfs", "WAL"),
        ("nfs", "DELETE"),
        ("NFS4", "DELETE"),
        ("lustre", "DELETE"),
        ("cifs", "DELETE"),
        ("fuse.sshfs", "DELETE"),
        ("gpfs", "DELETE"),
        ("beegfs", "DELETE"),
    ],
)
def test_journal_follows_the_nearest_mount(
    kind: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "nfs" if mode == "WAL" else "ext4"
    mounts = [
        SimpleNamespace(mountpoint="/", fstype=other),
        SimpleNamespace(mountpoint="/mnt/records", fstype=kind),
        SimpleNamespace(mountpoint="/mnt", fstype=other),
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: mounts)
    path = Path("/mnt/records/deep/ledger.sqlite")
    journal_mode.cache_clear()
    try:
        assert journal_mode(path) == mode
        assert journal_mode(Path("/mnt/recordsx/ledger.sqlite")) != mode
    finally:
        journal_mode.cache_clear()


def test_journal_follows_links_and_the_mount_on_top(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "far")
    mounts = [
        SimpleNamespace(mountpoint="/", fstype="ext4"),
        SimpleNamespace(mountpoint=str(tmp_path / "far"), fstype="ext4"),
        SimpleNamespace(mountpoint=str(tmp_path / "far"), fstype="nfs4"),
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: mounts)
    journal_mode.cache_clear()
    try:
        assert journal_mode(tmp_path / "home" / "ledger.sqlite") == "DELETE"
        assert journal_mode(tmp_path / "ledger.sqlite") == "WAL"
    finally:
        journal_mode.cache_clear()


@pytest.mark.usefixtures("network_mount")
def test_network_file_systems_get_a_rollback_journal(ledger: Ledger) -> None:
    ledger.charge(RUN, EVENT, 1, limit=3)
    with connect(ledger.path, 1.0) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert database.execute("PRAGMA synchronous").fetchone() == (2,)
    assert not ledger.path.with_name("ledger.sqlite-wal").exists()


def test_a_lock_of_another_process_is_waited_for_then_named(ledger: Ledger) -> None:
    patient = Ledger.open(ledger.path, busy_seconds=0.4)
    with held(ledger.path):
        start = time.monotonic()
        with pytest.raises(LedgerLockedError, match="another process"):
            patient.charge(RUN, EVENT, 1, limit=3)
        assert 0.3 < time.monotonic() - start < 5.0
    assert patient.charge(RUN, EVENT, 1, limit=3) == 1
    assert [entry.count for entry in patient.entries()] == [1]


@pytest.mark.usefixtures("network_mount")
def test_a_lock_without_wal_stops_readers_too(ledger: Ledger) -> None:
    with held(ledger.path), pytest.raises(LedgerLockedError):
        Ledger.open(ledger.path, busy_seconds=0.2)
    Ledger.open(ledger.path)


def test_two_processes_never_exceed_the_limit_together(tmp_path: Path) -> None:
    limit, lease = 60, 3
    path = tmp_path / "ledger.sqlite"
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(2) as pool:
        barrier = manager.Barrier(2)
        jobs = [(path, barrier, RUN, lease, limit)] * 2
        granted = pool.starmap(create_and_charge, jobs, chunksize=1)
    assert sum(map(sum, granted)) == limit
    ledger = Ledger.open(path)
    assert ledger.charged(RUN) == limit
    assert [entry.sequence for entry in ledger.entries()] == list(range(1, limit // lease + 1))


def test_creating_waits_for_another_process_that_creates(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA user_version = 1")  # a file, not yet in WAL mode
    with contextlib.ExitStack() as stack:
        stack.enter_context(held(path))
        threading.Timer(0.5, stack.pop_all().close).start()
        start = time.monotonic()
        Ledger.create(path, store="s", busy_seconds=30.0)
    assert 0.3 < time.monotonic() - start < 20.0


@pytest.mark.full
def test_creating_at_once_never_fails(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(2) as pool:
        barrier = manager.Barrier(2)
        for attempt in range(100):
            jobs = [(tmp_path / f"{attempt}.sqlite", barrier, RUN, 3, 6)] * 2
            assert sum(map(sum, pool.starmap(create_and_charge, jobs, chunksize=1))) == 6


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no file"):
        Ledger.open(tmp_path / "none.sqlite")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"hello\n" * 1000, b"SQLite format 3\x00" + b"x" * 4096])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="a sound ledger"):
        Ledger.open(path)


def test_another_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as raw:
        raw.execute("CREATE TABLE something (x)")
        raw.commit()
    with pytest.raises(LedgerError, match="no such table"):
        Ledger.open(path)


def test_a_damaged_page_is_refused(used: Ledger) -> None:
    with contextlib.closing(sqlite3.connect(used.path)) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(used.path.read_bytes())
    content[4096:] = bytes(len(content) - 4096)
    used.path.write_bytes(content)
    with pytest.raises(LedgerError, match="a sound ledger"):
        Ledger.open(used.path)


def test_a_folder_that_is_not_there_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="to write the ledger"):
        Ledger.create(tmp_path / "none" / "ledger.sqlite", store="s")


def test_odd_names_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "my ledger #1 50%?.sqlite"
    Ledger.create(path, store="s").charge(RUN, EVENT, 1, limit=1)
    assert Ledger.open(path).charged(RUN) == 1
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == [path.name]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 192 KiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small tmpfs takes root")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("ballast", [True, False])
def test_a_full_disk_is_named_and_leaves_the_ledger_whole(small_disk: Path, ballast: bool) -> None:
    ledger = Ledger.create(small_disk / "ledger.sqlite", store="s")
    charged = [ledger.charge(RUN, EVENT, 1, limit=10**6)]
    if ballast:
        _fill(small_disk / "ballast")
    with pytest.raises(OutputError, match="to write the ledger"):
        charged.extend(ledger.charge(RUN, EVENT, 1, limit=10**6) for _ in range(2000))
    (small_disk / "ballast").unlink(missing_ok=True)
    sound = Ledger.open(_moved(ledger.path, small_disk.parent / "copy"))
    assert sound.charged(RUN) == len(charged)
    assert len(sound.entries()) == len(charged)


@pytest.mark.usefixtures("network_mount")
def test_a_full_disk_without_wal_is_named_too(small_disk: Path) -> None:
    test_a_full_disk_is_named_and_leaves_the_ledger_whole(small_disk, ballast=True)


def _fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(512))


def _moved(path: Path, folder: Path) -> Path:
    """The ledger with its journal files, copied to where there is room."""
    folder.mkdir()
    for each in path.parent.iterdir():
        shutil.copy(each, folder)
    return folder / path.name
