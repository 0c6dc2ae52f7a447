"""What a bench starts ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dither.bench.launch import lines_of
from dither.errors import ReduceError

BENCH = """
import sys
from dither.bench.launch import lines_of
for line in lines_of(sys.argv[1:], limit=100):
    print(line, flush=True)
"""
# Stands for mpiexec: a rank in a session of its own.
LAUNCHER = """
import signal, subprocess, sys
if sys.argv[1] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
rank = subprocess.Popen(["sleep", "300"], start_new_session=True)
print(rank.pid, flush=True)
rank.wait()
"""


def gone(number: int, seconds: float) -> bool:
    try:
        psutil.Process(number).wait(seconds)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return psutil.Process(number).status() == psutil.STATUS_ZOMBIE
    return True


@pytest.mark.parametrize(
    ("number", "launcher"),
    [
        (signal.SIGTERM, "plain"),
        pytest.param(signal.SIGTERM, "deaf", marks=pytest.mark.full),
        (signal.SIGINT, "plain"),
        (signal.SIGHUP, "plain"),
    ],
)
def test_a_bench_that_is_asked_to_end_ends_its_ranks(number: int, launcher: str) -> None:
    bench = subprocess.Popen(
        [sys.executable, "-c", BENCH, sys.executable, "-c", LAUNCHER, launcher],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    with bench:
        assert bench.stdout is not None
        rank = int(bench.stdout.readline())
        parent = psutil.Process(rank).ppid()
        os.kill(bench.pid, number)
        bench.wait(30)
    try:
        assert gone(rank, 5)
        assert gone(parent, 5)
    finally:
        for each in (rank, parent):
            if psutil.pid_exists(each):
                os.kill(each, signal.SIGKILL)
    assert bench.returncode != 0


def test_ranks_that_are_late_end(tmp_path: Path) -> None:
    told: list[str] = []
    start = time.monotonic()
    with pytest.raises(ReduceError, match="no end within 2 s"):
        told.extend(lines_of([sys.executable, "-c", LAUNCHER, "plain"], limit=2))
    assert time.monotonic() - start < 20
    assert gone(int(told[0]), 5)


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert list(lines_of([sys.executable, "-c", "print('one')"], limit=30)) == ["one"]
    assert signal.getsignal(signal.SIGTERM) == before
