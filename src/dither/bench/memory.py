"""Peak memory of training steps, each contender in a process of its own.

The system only tells a process's largest resident size since its start. Before the steps, pages are
therefore held until the present size is that largest one: whatever the steps add then shows, to the
page, however short it lives, and nothing has to be sampled. The C library gives freed tensors back
at once there, so that the figure is of live memory and not of what the allocator happened to keep.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import torch

from dither.bench.clip_models import CASES, ClipCase
from dither.bench.clip_steps import plain_run, private_run
from dither.memory import resident

STEPS = 4
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # glibc's


def peak_growth(work: Callable[[], object]) -> int:
    """Return by how many bytes the process grows at most beyond its size before the work."""
    ballast: list[bytearray] = []
    size = resident()
    while size.present < size.peak:
        ballast.append(bytearray(b"\1") * (size.peak - size.present))
        size = resident()
    work()
    grown = resident().peak - size.peak
    ballast.clear()
    return grown


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
