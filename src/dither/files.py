"""Files and folders that are whole or not there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

from dither.errors import OutputError


def write_atomic(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file through a temporary sibling, durably.

    Raises:
        OutputError: Disk full or not writable; the old file, if any, is untouched.
    """
    with output_errors(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(mode)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN, no infinity), atomically."""
    write_atomic(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """A temporary sibling of ``out`` that vanishes with whatever is still in it.

    Folders that killed builds of the same output left behind are removed first.

    Args:
        out: The final place; must not exist, or be an empty folder.

    Raises:
        OutputError: ``out`` is not empty, cannot be written, or the disk fills up inside the
            ``with`` block.
    """
    with output_errors(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputError(
                expected=f"no files yet at {out}",
                got="a folder that is not empty" if out.is_dir() else "a file",
                fix="choose another --out, or remove it",
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        work = Path(tempfile.mkdtemp(prefix=_prefix(out), suffix=".part", dir=out.parent))
        try:
            with (work / "lock").open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def publish(folder: Path, out: Path) -> None:
    """Make a finished folder durable and move it to its final place in one step.

    Raises:
        OSError: The disk is full, or ``out`` has been filled meanwhile.
    """
    for path in [*folder.iterdir(), folder]:
        _sync(path)
    folder.rename(out)
    _sync(out.parent)


@contextmanager
def output_errors(out: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into an :class:`OutputError`."""
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        raise OutputError(
            expected=f"a place to write at {out}",
            got="a full disk" if full else (error.strerror or type(error).__name__).lower(),
            fix="free space or choose an --out on a larger disk"
            if full
            else "choose an --out in a folder that you may write to",
        ) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file lock, so that two processes do not build the same thing at once."""
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("ab")
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _prefix(out: Path) -> str:
    return f".{out.name}."


def _sweep(out: Path) -> None:
    for stale in out.parent.glob(f"{_prefix(out)}*.part"):
        # A live build holds its lock; the kernel drops a dead one's.
        try:
            with (stale / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(stale, ignore_errors=True)
        except OSError:
            continue


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def home() -> Path:
    """Return where dither keeps what is the user's: ``$DITHER_HOME`` or the user's data folder."""
    chosen = os.environ.get("DITHER_HOME")
    return Path(chosen) if chosen else Path(platformdirs.user_data_dir("dither"))
