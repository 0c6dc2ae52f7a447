"""Ranks of a bench: processes started by mpiexec, and the lines that rank 0 writes."""

from __future__ import annotations

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
from typing import IO

from dither.errors import ReduceError

_GRACE = 5.0
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
    with tempfile.TemporaryFile("w+") as errors:
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


def _end(process: subprocess.Popen[str]) -> None:
    """End mpiexec, which ends its ranks; if it does not, end all that it started."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
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
