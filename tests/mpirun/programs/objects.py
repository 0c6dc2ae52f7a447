"""mpi4py's lower-case calls: Python objects, pickled and sent as messages."""

from __future__ import annotations

import sys
from pathlib import Path

from mpi4py import MPI

comm = MPI.COMM_WORLD
total = comm.allreduce(comm.Get_rank() + 1)
everything = comm.allgather({"rank": comm.Get_rank()})
Path(f"{sys.argv[1]}.{comm.Get_rank()}").write_text(
    f"allreduce {total}\nallgather {len(everything)}\nend\n"
)
