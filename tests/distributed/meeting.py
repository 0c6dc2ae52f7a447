"""One rank of a test: ``python -m tests.distributed.meeting JOB FOLDER [TRANSPORT]``.

It finds its place by its launcher's variables and writes what it found to FOLDER/RANK.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from dither.errors import PeerError, ReduceError
from dither.privacy.trust import LOCAL
from dither.train.distributed.carrier import cluster_secret, open_carrier
from dither.train.distributed.world import World, join

TIMEOUT = 3.0


def talk(world: World) -> dict[str, Any]:
    """Everything that works, once."""
    told = world.broadcast(f"from {world.rank}".encode()).decode()
    heard = [text.decode() for text in world.gather(f"rank {world.rank}".encode() * world.rank)]
    carrier = open_carrier(world, LOCAL, authentication=cluster_secret(None))
    total = carrier.all_reduce(np.arange(5, dtype=np.int32) + world.rank)
    group = world.process_group()
    tensor = torch.ones(2)
    dist.all_reduce(tensor, group=group)
    assert world.process_group() is group
    problem = ""
    try:
        world.act("be odd", lambda: 1 // world.rank)
    except ZeroDivisionError:
        problem = "own"
    except ReduceError as error:
        problem = error.got
    return {
        "told": told,
        "heard": heard,
        "sum": total.tolist(),
        "carrier": type(carrier).__name__,
        "ones": tensor.tolist(),
        "problem": problem,
        "hosts": list(world.hosts),
    }


def die(world: World) -> dict[str, Any]:
    """The last rank is killed; the others notice."""
    if world.rank == world.world_size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return noticed(lambda: world.gather(b"still there?"))


def stop(world: World) -> dict[str, Any]:
    """The last rank stands still in the middle of a sum; the others notice in time."""
    carrier = open_carrier(world, LOCAL)
    carrier.all_reduce(np.ones(3, np.int32))
    if world.rank == world.world_size - 1:
        time.sleep(600.0)
    return noticed(lambda: carrier.all_reduce(np.ones(3, np.int32)))


def noticed(call: Callable[[], object]) -> dict[str, Any]:
    start = time.monotonic()
    try:
        call()
    except PeerError as error:
        return {"error": str(error), "seconds": time.monotonic() - start}
    return {"error": None}


def main(job: str, folder: Path, transport: Any = "auto") -> None:
    with join(transport=transport, timeout=TIMEOUT) as world:
        found = {"talk": talk, "die": die, "stop": stop}[job](world)
        (folder / f"{world.rank}.json").write_text(json.dumps(found))
        if job != "talk":
            if world.place.launcher == "mpi":
                time.sleep(0.3)
            os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
