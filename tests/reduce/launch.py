"""Groups of real processes, each with a time limit."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
WORKER = "tests.reduce.worker"


def launch(
    transport: str,
    world_size: int,
    job: str,
    out: Path,
    *,
    timeout: float = 60.0,
    limit: float = 120.0,
) -> list[dict[str, Any]]:
    """Run a job on all ranks of a new group; return the reports by rank.

    The last rank never reports where the job is to kill or stop it.
    """
    arguments = ["-m", WORKER, transport, job, str(out), "--timeout", str(timeout)]
    if transport == "mpi":
        command = [mpiexec(), "-n", str(world_size), sys.executable]
        commands = [[*command, *arguments]]
    elif transport == "torchrun":
        run = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
        commands = [[sys.executable, *run, *arguments]]
    else:
        commands = [
            [sys.executable, *arguments, "--rank", str(rank), "--world-size", str(world_size)]
            for rank in range(world_size)
        ]
    with started(commands, out) as processes:
        deadline = time.monotonic() + limit
        if job in {"kill", "stop"}:
            wait(lambda: len(reports(out)) == world_size - 1, deadline)
        else:
            wait(lambda: all(process.poll() is not None for process in processes), deadline)
            assert [process.returncode for process in processes] == [0] * len(processes), log(out)
    return reports(out)


def wait(ready: Callable[[], bool], deadline: float) -> None:
    """Until something is so, or to the deadline."""
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.02)


def reports(out: Path) -> list[dict[str, Any]]:
    """What the ranks wrote down, by rank."""
    found = [json.loads(path.read_text()) for path in out.glob("*.json")]
    return sorted(found, key=lambda report: int(report["rank"]))


def log(out: Path) -> str:
    """What all processes printed, its end."""
    return (out / "log").read_text()[-5000:]


@contextmanager
def started(commands: list[list[str]], out: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run commands side by side; in the end kill what is left of them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (out / "log").open("wb") as output:
        processes = [
            subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            for command in commands
        ]
        try:
            yield processes
        finally:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def mpiexec() -> str:
    if importlib.util.find_spec("mpi4py") is None:
        pytest.skip("mpi4py is not installed: pip install 'dither[mpi]'")
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.is_file() else shutil.which("mpiexec")
    if found is None:
        pytest.skip("there is no mpiexec")
    return found
