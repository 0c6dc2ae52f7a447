"""Files that are whole or not there."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dither.errors import OutputError


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file through a temporary sibling, durably.

    Raises:
        OutputError: Disk full or not writable; the old file, if any, is untouched.
    """
    with explain_output(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN, no infinity), atomically."""
    write_atomic(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def explain_output(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into an `OutputError`."""
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        raise OutputError(
            expected=f"to write {path}",
            got="a full disk" if full else (error.strerror or str(error)),
            fix="free some space" if full else "choose a folder that you may write to",
        ) from error
