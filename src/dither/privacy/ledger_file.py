"""The SQLite file behind the ledger: schema, durability, hashes, and errors in plain words."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from dither.errors import LedgerError, LedgerLockedError, OutputError

SCHEMA = (
    (
        "CREATE TABLE header (id INTEGER PRIMARY KEY CHECK (id = 1), value TEXT NOT NULL,"
        " hash TEXT NOT NULL)"
    ),
    (
        "CREATE TABLE entry (seq INTEGER PRIMARY KEY, time TEXT NOT NULL, run TEXT NOT NULL,"
        " kind TEXT NOT NULL, event TEXT NOT NULL, count INTEGER NOT NULL CHECK (count >= 0),"
        " detail TEXT NOT NULL, hash TEXT NOT NULL)"
    ),
    "CREATE INDEX entry_run ON entry (run)",
    (
        "CREATE TRIGGER header_fixed BEFORE UPDATE ON header"
        " BEGIN SELECT RAISE(ABORT, 'the header is fixed'); END"
    ),
    (
        "CREATE TRIGGER entry_fixed BEFORE UPDATE ON entry"
        " BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
    ),
    (
        "CREATE TRIGGER entry_kept BEFORE DELETE ON entry"
        " BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
    ),
)

# SQLite's WAL needs shared memory that these do not give: there, a rollback journal.
_NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "9p", "afs"}
    | {"fuse.sshfs", "fuse.glusterfs", "fuse.ceph-fuse", "virtiofs", "panfs", "pvfs2", "orangefs"}
)


@contextlib.contextmanager
def connect(
    path: Path, busy_seconds: float, *, create: bool = False
) -> Iterator[sqlite3.Connection]:
    """Open the file for one operation, with full durability.

    Raises:
        LedgerError: Not a ledger, or damaged.
        LedgerLockedError: Held by another process for longer than ``busy_seconds``.
        OutputError: The disk is full or not writable.
    """
    if not create and not path.is_file():
        raise LedgerError(
            expected=f"a ledger at {path}",
            got="no file",
            fix="name the store's ledger, or restore it: what was spent must stay known",
        )
    mode = "rwc" if create else "rw"
    try:
        database = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=busy_seconds,
            isolation_level=None,
        )
        with contextlib.closing(database):
            _set_journal(database, journal_mode(path), busy_seconds)
            database.execute("PRAGMA synchronous=FULL")
            database.execute("PRAGMA fullfsync=ON")
            yield database
    except sqlite3.Error as error:
        raise _explain(error, path) from error


def _set_journal(database: sqlite3.Connection, mode: str, busy_seconds: float) -> None:
    # SQLite does not wait for a lock here, as it does elsewhere: two processes that create one
    # ledger at once meet at the switch to WAL.
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            database.execute(f"PRAGMA journal_mode={mode}")
        except sqlite3.OperationalError as error:
            if not _is_locked(error) or time.monotonic() >= deadline:
                raise
            time.sleep(0.005)
        else:
            return


@functools.lru_cache(maxsize=64)
def journal_mode(path: Path) -> str:
    """Return ``WAL`` on local file systems and ``DELETE`` (rollback journal) on network ones.

    Links are followed; of several mounts at one place the last covers the others.
    """
    folder = path.resolve().parent
    mounts = reversed(psutil.disk_partitions(all=True))
    for mount in sorted(mounts, key=lambda m: len(m.mountpoint), reverse=True):
        if folder.is_relative_to(mount.mountpoint):
            return "DELETE" if mount.fstype.lower() in _NETWORK_FILE_SYSTEMS else "WAL"
    return "DELETE"


def header_hash(values: dict[str, Any]) -> str:
    """Return the hash that starts the chain."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def entry_hash(previous: str, row: tuple[Any, ...]) -> str:
    """Return the hash of an entry and, through ``previous``, of all before it."""
    return hashlib.sha256(json.dumps([previous, *row]).encode()).hexdigest()


def _is_locked(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", 0)
    return (code & 0xFF) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def _explain(error: sqlite3.Error, path: Path) -> Exception:
    code = getattr(error, "sqlite_errorcode", None)
    if _is_locked(error):
        return LedgerLockedError(
            expected=f"the ledger {path} to be free for a moment",
            got="a lock that another process keeps",
            fix="wait for the other run to write, or end it; then try again",
        )
    if code is not None and code & 0xFF in {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
    }:
        return OutputError(
            expected=f"to write the ledger {path}",
            got=f"{error}",
            fix="free disk space or permissions; nothing was released for this charge",
        )
    return LedgerError(
        expected=f"a sound ledger at {path}",
        got=f"{error}",
        fix="restore the ledger from a backup; until then nothing may be released",
    )
