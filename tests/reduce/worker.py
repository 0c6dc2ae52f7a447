"""One rank of a process group, started by `launch`: runs a job and writes down how it went."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import tests.typecheck
from jaxtyping import install_import_hook

# Shapes and types are checked in these processes too.
install_import_hook("dither", f"{tests.typecheck.__name__}.check")

import numpy as np  # noqa: E402
from tests.reduce.cases import LENGTHS, Case, cases, check_case, run_case  # noqa: E402

from dither.errors import ConfigError, PeerError, ReduceError  # noqa: E402
from dither.reduce.algorithms.common import SubGroup  # noqa: E402
from dither.reduce.endpoint import Buffer, Endpoint  # noqa: E402

# Calls of the victim's transport that go well before it dies.
_LAST_WORDS = 20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("transport")
    parser.add_argument("job")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rank", type=int, default=int(os.environ.get("RANK", "0")))
    parser.add_argument("--world-size", type=int, default=int(os.environ.get("WORLD_SIZE", "1")))
    parser.add_argument("--timeout", type=float, default=60.0)
    options = parser.parse_args()
    (options.out / f"{os.getpid()}.pid").touch()
    endpoint = make_endpoint(options)
    report = {"rank": endpoint.rank, "hosts": endpoint.hosts, **JOBS[options.job](endpoint)}
    part = options.out / f"{endpoint.rank}.part"
    part.write_text(json.dumps(report))
    part.replace(part.with_suffix(".json"))
    if "error" in report:
        sys.stdout.flush()
        os._exit(0)  # MPI_Finalize and gloo's threads may wait for the dead
    endpoint.close()


def make_endpoint(options: argparse.Namespace) -> Endpoint:
    if options.transport == "mpi":
        from dither.reduce.transports.mpi import Mpi

        return Mpi(timeout=options.timeout)
    if options.transport == "shared_memory":
        from dither.reduce.transports.shared_memory import SharedMemory

        endpoint: Endpoint = SharedMemory.join(
            options.out / "group", options.rank, options.world_size, options.timeout
        )
        return endpoint
    import torch.distributed as dist

    from dither.reduce.transports.torch_distributed import TorchDistributed

    where: dict[str, Any] = {}
    if "MASTER_ADDR" not in os.environ:
        where = {"init_method": f"file://{options.out}/store", "rank": options.rank}
        where["world_size"] = options.world_size
    dist.init_process_group("gloo", **where)
    return TorchDistributed(timeout=options.timeout)


def suite(endpoint: Endpoint) -> dict[str, Any]:
    """All cases; where the back end cannot sum a type, that it says so."""
    failures, refused, count = _messages(endpoint), [], 0
    for case in cases(lengths=LENGTHS):
        try:
            failures.append(check_case(endpoint, case))
            count += 1
        except ConfigError:
            refused.append((case.algorithm, case.kind))
    return {"failures": [f for f in failures if f], "count": count, "refused": sorted(set(refused))}


def short(endpoint: Endpoint) -> dict[str, Any]:
    """What slow links can bear."""
    chosen = cases(
        ("hierarchical", "ring", "rabenseifner", "auto"), ("int16", "float32"), (5, 50_000)
    )
    return {"failures": [wrong for case in chosen if (wrong := check_case(endpoint, case))]}


def _messages(endpoint: Endpoint) -> list[str | None]:
    """Order, sizes, read-only messages and overwriting after a send, round a ring."""
    right, left = (endpoint.rank + 1) % endpoint.world_size, endpoint.rank - 1
    left %= endpoint.world_size
    wrong = []
    for size in (0, 1, 3, 70_000, 0, 2_000_000):
        message = np.full(size, endpoint.rank, np.int16)
        message.flags.writeable = False
        out = np.full(size // 2, -1, np.float64)
        endpoint.exchange(right, message, left, np.empty(size, np.int16))
        endpoint.exchange(right, np.full(size // 2, 1.5 + endpoint.rank), left, out)
        if not np.all(out == 1.5 + left):
            wrong.append(size)
    # Different sizes each way, and sends that are overwritten at once.
    mine, theirs = np.arange(endpoint.rank * 10), np.empty(left * 10, np.int64)
    endpoint.exchange(right, mine, left, theirs)
    if endpoint.rank % 2 == 0 and right != endpoint.rank and right % 2:
        for number in range(5):
            mine = np.full(1000, number)
            endpoint.send(right, mine)
            mine[:] = -1
    elif endpoint.rank % 2:
        for number in range(5):
            out = np.empty(1000, np.int64)
            endpoint.receive(left, out)
            wrong += [number] * int(not np.all(out == number))
    if not np.array_equal(theirs, np.arange(left * 10)):
        wrong.append(left)
    return [f"message {number}" for number in wrong]


def kill(endpoint: Endpoint) -> dict[str, Any]:
    """The last rank kills itself in the middle of a sum; how do the others end?"""
    return _lose_last(endpoint, signal.SIGKILL)


def stop(endpoint: Endpoint) -> dict[str, Any]:
    """The last rank stands still in the middle of a sum."""
    return _lose_last(endpoint, signal.SIGSTOP)


def silent(endpoint: Endpoint) -> dict[str, Any]:
    """The last rank never answers, and the others do not catch the error."""
    if endpoint.rank == endpoint.world_size - 1:
        time.sleep(1000.0)
    run_case(endpoint, Case("ring", "int32", 1000))
    return {}


def _lose_last(endpoint: Endpoint, how: signal.Signals) -> dict[str, Any]:
    case = Case("recursive_doubling", "int32", 50_000)
    last = endpoint.rank == endpoint.world_size - 1
    used = Doomed(endpoint, how) if last else endpoint
    while True:
        start = time.monotonic()
        try:
            run_case(used, case)
        except PeerError as error:
            seconds = time.monotonic() - start
            again = ""
            try:
                run_case(used, case)
            except ReduceError as second:
                again = str(second)
            return {"error": str(error), "seconds": seconds, "again": again}


class Doomed(SubGroup):  # type: ignore[misc] # final for users
    """A rank that ends itself after so many messages."""

    def __init__(self, endpoint: Endpoint, how: signal.Signals) -> None:
        super().__init__(endpoint, range(endpoint.world_size))
        self._how = how
        self._left = _LAST_WORDS

    def exchange(self, to: int, message: Buffer, source: int, out: Buffer) -> None:
        self._count()
        super().exchange(to, message, source, out)

    def send(self, to: int, message: Buffer) -> None:
        self._count()
        super().send(to, message)

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), self._how)


def doors(endpoint: Endpoint) -> dict[str, Any]:
    from tests.reduce import door_jobs  # with torch, which the others do without

    return door_jobs.doors(endpoint)


JOBS = {
    "suite": suite,
    "short": short,
    "kill": kill,
    "stop": stop,
    "silent": silent,
    "doors": doors,
}

if __name__ == "__main__":
    main()
