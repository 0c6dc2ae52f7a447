"""Peak memory of training steps, each contender in a process of its own.

The system only tells a process's largest resident size since its start. Before the steps, pages are
therefore held until the present size is that largest one: whatever the steps add then shows, to the
page, however short it lives, and nothing has to be sampled. The C library gives freed tensors back
at once there, so that the figure is of live memory and not of what the allocator happened to keep.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from dither.bench.clip_models import CASES, ClipCase
from dither.bench.clip_steps import plain_run, private_run
from dither.train.run import peak_rss_bytes

STEPS = 4
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # glibc's


def peak_growth(work: Callable[[], object]) -> int:
    """Return by how many bytes the process grows at most beyond its size before the work."""
    ballast: list[bytearray] = []
    present, largest = _resident()
    while present < largest:
        ballast.append(bytearray(b"\1") * (largest - present))
        present, largest = _resident()
    work()
    grown = _resident()[1] - largest
    ballast.clear()
    return grown


def _resident() -> tuple[int, int]:
    """Return the resident bytes of this process, now and at most so far.

    From /proc where there is one: ``ru_maxrss`` also counts what the parent held at the fork.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return psutil.Process().memory_info().rss, peak_rss_bytes()
    values = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", status.read_text(), re.MULTILINE))
    return int(values["VmRSS"]) * 1024, int(values["VmHWM"]) * 1024


def peak_in_child(case: str, side: str, threads: int) -> int:
    """Return the peak of some steps in a fresh process.

    Args:
        case: Name of a case of `dither bench clip`.
        side: ``private`` or ``plain``.
        threads: CPU threads.

    Returns:
        Largest resident bytes during the steps beyond those before the first, when model and batch
        exist and libraries have run once on something small. The private side's noise pool and
        books are its own: they count.

    Raises:
        RuntimeError: The process failed, or was ended for want of memory.
    """
    command = [sys.executable, "-m", __name__, case, side, str(threads)]
    environment = {**os.environ, **_GIVE_BACK}
    done = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(f"the {side} process: {said[-1]}")
    return int(done.stdout)


def peak_of_steps(case: ClipCase, side: str) -> int:
    """Return the peak of some steps in this process, which has made none of this model before."""
    model, data = case.build(), case.batch(case.batch_size)

    def private() -> None:
        with private_run(case, model, data) as run:
            for _ in range(STEPS):
                run.step()

    def plain() -> None:
        step = plain_run(case, model, data)
        for _ in range(STEPS):
            step()

    return peak_growth({"private": private, "plain": plain}[side])


def _warm_up() -> None:
    """Load what libraries load once, on either side."""
    small = CASES[0]
    data = small.batch(8)
    plain_run(small, small.build(), data)()
    with private_run(small, small.build(), data) as run:
        run.step()


def _main(name: str, side: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    _warm_up()
    case = next(case for case in CASES if case.name == name)
    sys.stdout.write(f"{peak_of_steps(case, side)}\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
