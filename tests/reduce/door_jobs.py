"""What the door tests do on each rank of a real group: `PrivateComm` over MPI, `all_reduce`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from dither.errors import BudgetExhaustedError, ConfigError
from dither.reduce.all_reduce import Work, all_reduce, close_all_reduce
from dither.reduce.endpoint import Endpoint
from dither.reduce.private_comm import PrivateComm

SIZE = 50_000
Z = 0.5


def doors(endpoint: Endpoint) -> dict[str, Any]:
    """Use the door of this endpoint's transport; report sums, ε and refusals."""
    folder = Path(os.environ["DITHER_TEST_FOLDER"])
    trust = os.environ["DITHER_TEST_TRUST"]
    promise = {
        "clip": 1.0,
        "releases": 4,
        "delta": 1e-5,
        "noise_multiplier": Z,
        "trust": trust,
        "ledger": folder,
        "run": "doors",
    }
    if endpoint.kind == "mpi":
        return _mpi(promise)
    return _torch(endpoint, promise)


def _mpi(promise: dict[str, Any]) -> dict[str, Any]:
    from mpi4py import MPI

    refused = []
    with PrivateComm(MPI.COMM_WORLD, timeout=60.0, **promise) as comm:
        values, first, second = np.zeros(SIZE, np.float32), *np.empty((2, SIZE), np.float32)
        comm.Allreduce(values, first)
        request = comm.Iallreduce([values, MPI.FLOAT], second)
        request.Wait()
        in_place = np.zeros((100, 5))
        comm.Allreduce(MPI.IN_PLACE, in_place)
        whole = np.zeros(3, np.int32)
        wrong: list[tuple[Any, ...]] = [(whole, whole), (values, first, MPI.MAX), ([1.0], [2.0])]
        for arguments in wrong:
            try:
                comm.Allreduce(*arguments)
            except ConfigError as error:
                refused.append(str(error))
        comm.Allreduce(values, values)
        left = comm.releases_left
        exhausted = _exhausted(lambda: comm.Allreduce(values, first))
        return _report([first, second], in_place, refused=refused, left=left, exhausted=exhausted)


def _torch(endpoint: Endpoint, promise: dict[str, Any]) -> dict[str, Any]:
    group = None if dist.is_initialized() else endpoint
    refused = []
    first, second = torch.zeros(SIZE), torch.zeros(SIZE)
    assert all_reduce(first, group=group, **promise) is first
    work = all_reduce(second, group=group, async_op=True, **promise)
    assert isinstance(work, Work)
    work.wait()
    in_place = torch.zeros(5, 100, dtype=torch.float64).t()  # strided
    all_reduce(in_place, group=group, **promise)
    for wrong in (torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.bfloat16)):
        try:
            all_reduce(wrong, group=group, **promise)
        except ConfigError as error:
            refused.append(str(error))
    all_reduce(torch.zeros(3), group=group, **promise)
    exhausted = _exhausted(lambda: all_reduce(torch.zeros(3), group=group, **promise))
    close_all_reduce()
    sums = [first.numpy(), second.numpy()]
    return _report(sums, in_place.numpy(), refused=refused, left=0, exhausted=exhausted)


def _exhausted(act: Any) -> bool:
    try:
        act()
    except BudgetExhaustedError:
        return True
    return False


def _report(sums: list[np.ndarray], in_place: np.ndarray, **more: Any) -> dict[str, Any]:
    return {
        "sigma": [float(total.std()) for total in (*sums, in_place)],
        "heads": [total[:8].tolist() for total in sums],
        **more,
    }
