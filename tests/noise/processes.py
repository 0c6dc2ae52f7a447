"""Forked children with a time limit, and what the kernel says of a process's memory."""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_NEW_PID_NAMESPACE = 0x20000000


def in_child(work: Callable[[], bytes], seconds: float = 60.0) -> bytes:
    """Run in a forked child and return its bytes; what it raises fails the test."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forks beside threads are the point
        child = os.fork()
    if child == 0:
        _be_child(work, read, write)
    os.close(write)
    try:
        content = _read_all(read, time.monotonic() + seconds)
    except TimeoutError:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.close(read)
        _, status = os.waitpid(child, 0)
    assert status == 0
    return content


def _be_child(work: Callable[[], bytes], read: int, write: int) -> None:
    code = 1
    try:
        os.close(read)
        with os.fdopen(write, "wb") as pipe:
            pipe.write(work())
        code = 0
    except BaseException:  # noqa: BLE001 - a child must not go on as a second pytest
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _read_all(read: int, deadline: float) -> bytes:
    content = b""
    while True:
        ready, _, _ = select.select([read], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError("the child did not end in time")
        piece = os.read(read, 1 << 20)
        if not piece:
            return content
        content += piece


def new_pid_namespace() -> None:
    """Give the children to come ids of their own, from 1 on. Call in a child only."""
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_PID_NAMESPACE):
        raise PermissionError(ctypes.get_errno(), "unshare")


def needs_pid_namespaces() -> None:
    """Skip where a test may not make them."""

    def attempt() -> bytes:
        try:
            new_pid_namespace()
        except (OSError, AttributeError) as error:
            return str(error).encode()
        return b""

    refused = in_child(attempt)
    if refused:
        pytest.skip(f"no new process id namespace here: {refused.decode()}")


@dataclass(frozen=True)
class Mapping:
    """A piece of a process's address space.

    Attributes:
        flags: The kernel's two-letter VmFlags: ``dd`` kept out of dumps, ``wf`` wiped on fork,
            ``lo`` locked.
    """

    start: int
    size: int
    writable: bool
    flags: frozenset[str]


def mappings(pid: int | str = "self") -> list[Mapping]:
    """Read /proc/PID/smaps; skips where there is none."""
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    except OSError as error:
        pytest.skip(f"no readable smaps here: {error}")
    return list(_parse(lines))


def _parse(lines: list[str]) -> Iterator[Mapping]:
    start = end = 0
    writable = False
    for line in lines:
        first, _, rest = line.partition(" ")
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            writable = rest.startswith("rw")
        elif first == "VmFlags:":
            yield Mapping(start, end - start, writable, frozenset(rest.split()))


def wiped_on_fork(pid: int | str = "self") -> list[Mapping]:
    """The mappings that a forked child sees as zeros: the core's keys and pools."""
    gc.collect()  # of this process, whose dropped ones may still wait for it
    return [m for m in mappings(pid) if "wf" in m.flags]


def content(mapping: Mapping, pid: int | str = "self") -> bytes:
    """Read a mapping's bytes; empty where the kernel refuses."""
    try:
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(mapping.start)
            pieces = []
            left = mapping.size
            while left and (piece := memory.read(left)):
                pieces.append(piece)
                left -= len(piece)
            return b"".join(pieces)
    except OSError:
        return b""


def threads() -> int:
    """How many threads this process has."""
    folder = Path("/proc/self/task")
    if not folder.is_dir():
        pytest.skip("no /proc/self/task here")
    return len(list(folder.iterdir()))
