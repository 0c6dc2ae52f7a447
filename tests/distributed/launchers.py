"""Ranks of a command, started as every launcher starts them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests.reduce.launch import mpiexec

ROOT = Path(__file__).resolve().parents[2]
LAUNCHERS = ("dither", "torchrun", "mpi", "slurm")
LIMIT = 240.0


def run_under(
    launcher: str,
    ranks: int,
    command: Sequence[str],
    log: Path,
    *,
    environ: Mapping[str, str] | None = None,
    check: bool = True,
    limit: float = LIMIT,
) -> list[int]:
    """Run a Python program (``python -m module ...``) as ranks; return the exit statuses.

    Slurm's ranks are started as srun would: one process each, told by its variables. There, a rank
    that is still running when another has failed is killed, as srun --kill-on-bad-exit does.
    """
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **(environ or {})}
    with log.open("ab") as output:
        processes = [
            subprocess.Popen(
                words,
                cwd=ROOT,
                env={**quiet, **variables},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            for words, variables in commands(launcher, ranks, list(command))
        ]
        try:
            statuses = [process.wait(limit) for process in processes[:1]]
            for process in processes[1:]:
                if statuses[0] == 0 and check:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(5.0)
                else:
                    process.wait(limit)
        finally:
            for process in processes:
                with suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    statuses = [process.returncode for process in processes]
    assert not check or statuses[0] == 0, log.read_text()[-3000:]
    return statuses


def commands(
    launcher: str, ranks: int, command: list[str]
) -> list[tuple[list[str], dict[str, str]]]:
    """What is started, with which variables."""
    if launcher == "dither":
        start = "import sys; from dither.train.distributed.launch import launch as start; "
        code = f"{start}sys.exit(start(sys.argv[1:], {ranks}))"
        return [([sys.executable, "-c", code, *command], {})]
    if launcher == "torchrun":
        run = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        return [([sys.executable, *run, *command[1:]], {})]
    if launcher == "mpi":
        return [([mpiexec(), "-n", str(ranks), *command], {})]
    job = str(free_port())
    return [(command, slurm(rank, ranks, job)) for rank in range(ranks)]


def slurm(rank: int, ranks: int, job: str) -> dict[str, str]:
    """What srun tells the tasks of a step on one host."""
    return {
        "SLURM_JOB_ID": job,
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_NTASKS": str(ranks),
        "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": str(ranks),
    }


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("localhost", 0))
        return int(door.getsockname()[1])
