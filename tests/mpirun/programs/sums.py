"""What mpi4py programs do with buffers: sums, in place, under way, persistent, of parts."""

from __future__ import annotations

import json
import sys
from array import array
from pathlib import Path

from mpi4py import MPI

COMM = MPI.COMM_WORLD
RANK = COMM.Get_rank()
TOLD: dict[str, object] = {}


def plain() -> None:
    for code in "fdilq":
        total = array(code, [0] * 4)
        COMM.Allreduce(array(code, [1, -2, 3, RANK]), total, op=MPI.SUM)
        TOLD[f"allreduce {code}"] = list(total)
    inside = array("d", [0.5, RANK])
    COMM.Allreduce(MPI.IN_PLACE, inside)
    TOLD["in place"] = list(inside)
    COMM.Allreduce(array("d"), array("d"))
    TOLD["nothing"] = True


def to_a_root() -> None:
    total = array("d", [9.0, 9.0]) if RANK == 0 else None
    COMM.Reduce(array("d", [1.0, RANK]), total, op=MPI.SUM, root=0)
    TOLD["reduce"] = None if total is None else list(total)


def under_way() -> None:
    totals = [array("d", [0.0] * 3) for _ in range(3)]
    values = [array("d", [i, RANK, 1.0]) for i in range(3)]
    requests = [COMM.Iallreduce(values[i], totals[i]) for i in range(3)]
    MPI.Request.Waitall(requests[::-1])
    TOLD["iallreduce"] = [list(total) for total in totals]


def kept() -> None:
    values, total = array("d", [0.0]), array("d", [0.0])
    request = COMM.Allreduce_init(values, total)
    sums = []
    for turn in range(3):
        values[0] = turn + RANK
        request.Start()
        request.Wait()
        sums.append(total[0])
    request.Free()
    TOLD["persistent"] = sums


def of_parts() -> None:
    part = COMM.Split(RANK % 2, RANK)
    total = array("i", [0])
    part.Allreduce(array("i", [RANK + 1]), total)
    TOLD["split"] = [part.Get_size(), total[0]]
    part.Free()


def refused() -> None:
    try:
        COMM.Allreduce(array("d", [1.0]), array("d", [0.0]), op=MPI.MAX)
    except MPI.Exception as error:
        TOLD["refused"] = str(error)


for step in (plain, to_a_root, under_way, kept, of_parts, refused):
    step()
Path(f"{sys.argv[1]}.{RANK}").write_text(f"json {json.dumps(TOLD)}\nend\n")
