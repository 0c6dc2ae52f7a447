"""Ranks of a bench: processes started by mpiexec, and the lines that rank 0 writes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

from dither.errors import ReduceError

_GRACE = 5.0
_ENDING = (signal.SIGTERM, signal.SIGHUP)  # SIGINT raises by itself
_TOLD = ("bench: ", "dither: MPI_", "expected ")  # how C programs, libdither_mpi and the CLI begin


def why_no_mpi() -> str | None:
    """Return why MPI programs cannot be started here, None where they can."""
    if find_spec("mpi4py") is None:
        return "mpi4py is not installed: pip install 'dither[mpi]' adds it to the run"
    if mpiexec() is None:
        return "no mpiexec beside python or on the PATH: pip install 'dither[mpi]' brings MPICH's"
    return None


def mpiexec() -> str | None:
    """Return the mpiexec of this environment, else the one on the PATH."""
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def lines_under_mpi(
    module: str, arguments: Sequence[str], *, ranks: int, limit: float
) -> Iterator[str]:
    """Start ranks of a module and yield the lines that they write, as they come.

    Args:
        module: Run as a program on every rank; an error on one of them ends all.
        arguments: For it.
        ranks: R.
        limit: Seconds after which the ranks are ended.

    Raises:
        ReduceError: MPI is missing, or a rank failed; with the last line of its errors.
    """
    reason, program = why_no_mpi(), mpiexec()
    if reason is not None or program is None:
        raise ReduceError(
            expected="an MPI library", got=reason or "none", fix="install it, or leave MPI out"
        )
    command = [program, "-n", str(ranks), sys.executable, "-m", "mpi4py", "-m", module, *arguments]
    yield from lines_of(command, limit=limit)


def lines_of(command: Sequence[str], *, limit: float) -> Iterator[str]:
    """Start ranks by a command and yield the lines that they write, as they come.

    Args:
        command: mpiexec or what starts it, with what it starts.
        limit: Seconds after which all is ended.

    Raises:
        ReduceError: It failed, or was late; with the last line of its errors.
    """
    with tempfile.TemporaryFile("w+") as errors, _asked_to_end():
        process = subprocess.Popen(  # noqa: S603 - our own module
            list(command),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        late = threading.Event()

        def stop() -> None:
            late.set()
            _end(process)

        watch = threading.Timer(limit, stop)
        watch.start()
        try:
            yield from _lines(process)
        finally:
            watch.cancel()
            _end(process)
        if late.is_set() or process.returncode:
            raise _failure(errors, f"no end within {limit:g} s" if late.is_set() else None, process)


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    if process.stdout is not None:
        with process.stdout as stream:
            for line in stream:
                yield line.rstrip("\n")
    process.wait()


@contextlib.contextmanager
def _asked_to_end() -> Iterator[None]:
    """Leave by an exception, not at once, when asked to end: ranks have sessions of their own."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return

    def leave(number: int, _: FrameType | None) -> None:
        for each in _ENDING:
            signal.signal(each, signal.SIG_IGN)  # one is enough
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in _ENDING}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)


def _end(process: subprocess.Popen[str]) -> None:
    """End mpiexec, which ends its ranks; then whatever is left of all that it started."""
    if process.poll() is not None:
        return
    started = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE)
    _, left = psutil.wait_procs(started, timeout=_GRACE if process.poll() is None else 1.0)
    for each in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    if process.poll() is None:
        process.kill()
    process.wait()


def _failure(errors: IO[str], late: str | None, process: subprocess.Popen[str]) -> ReduceError:
    errors.seek(0)
    said = [line.strip() for line in errors if line.strip()]
    told = [line for line in said if "Error" in line or line.startswith(_TOLD)]
    told = told or said or ["nothing was said"]
    return ReduceError(
        expected="ranks that finish what they measure",
        got=late or f"exit status {process.returncode}: {told[-1]}",
        fix="look at the message; with more ranks than cores, measure fewer",
    )
