"""Ranks that are real processes of one gloo group, each with a time limit."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as _c10d

LIMIT = 240.0


def in_group(world_size: int, work: Callable[..., Any], folder: Path, *given: Any) -> list[Any]:
    """Run ``work(rank, *given)`` on every rank of a new gloo group; what each returned, by rank.

    An error of a rank is raised here, with its trace in words.
    """
    folder.mkdir(exist_ok=True, parents=True)
    context = multiprocessing.get_context("spawn")
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        processes = [
            context.Process(target=_rank, args=(rank, world_size, work, folder, given))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
    for process in processes:
        process.join(LIMIT)
    late = [process.pid for process in processes if process.is_alive()]
    for process in processes:
        process.kill()
        process.join()
    assert not late, f"{len(late)} of {world_size} ranks did not end"
    found = [pickle.loads((folder / f"report-{r}").read_bytes()) for r in range(world_size)]  # noqa: S301
    for rank, (failed, result) in enumerate(found):
        assert not failed, f"rank {rank}: {result}"
    return [result for _, result in found]


def _rank(
    rank: int, world_size: int, work: Callable[..., Any], folder: Path, given: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            store=_c10d.FileStore(str(folder / "store"), world_size),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=60),
        )
        report = False, work(rank, *given)
    except BaseException:  # noqa: BLE001 - the parent judges
        report = True, traceback.format_exc()
    (folder / f"{rank}.part").write_bytes(pickle.dumps(report))
    (folder / f"{rank}.part").rename(folder / f"report-{rank}")
    if not report[0]:
        dist.barrier()
        dist.destroy_process_group()
    os._exit(0)
