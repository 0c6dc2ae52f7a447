"""`dither bench allreduce --hosts`: algorithms between hosts whose links are narrow.

Hosts are network namespaces of this machine, joined by a switch. Ranks talk by gloo; those of one
host have shared memory besides. As the links are slow, the machine's cores hardly matter.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch.distributed as dist

from dither.bench.allreduce_cases import MIB, size_name
from dither.bench.harness import Row, not_measured, summarise
from dither.bench.namespaces import Host, hosts, why_not
from dither.errors import ReduceError
from dither.reduce.algorithms.registry import sum_over
from dither.reduce.endpoint import Endpoint
from dither.reduce.small import gather
from dither.reduce.transports.hybrid import Hybrid
from dither.reduce.transports.shared_memory import SharedMemory
from dither.reduce.transports.torch_distributed import TorchDistributed

SIZE = 16 * MIB
_PORT = 29_511
_TIMEOUT = 120.0


@dataclass(frozen=True)
class Contest:
    """What is compared, on hosts of so many ranks each.

    Attributes:
        ranks_per_host: L.
        ours: Algorithm.
        baseline: Algorithm.
        target: Largest ratio that is promised.
    """

    ranks_per_host: int
    ours: str
    baseline: str
    target: float


CONTESTS = (
    Contest(1, "ring", "naive", 1 / 1.5),
    Contest(1, "rabenseifner", "naive", 1 / 1.5),
    Contest(2, "hierarchical", "ring", 1.0),
    Contest(2, "hierarchical", "rabenseifner", 1.0),
)


@dataclass(frozen=True)
class Job:
    """What a rank is told.

    Attributes:
        rank: This rank.
        world_size: R.
        ranks_per_host: Neighbouring ranks that share a host.
        algorithms: Timed in turn.
        size: Bytes.
        rounds: How often.
        store: Address of rank 0.
        folder: Shared by the ranks of this machine.
    """

    rank: int
    world_size: int
    ranks_per_host: int
    algorithms: Sequence[str]
    size: int
    rounds: int
    store: str
    folder: str


def rows(
    *, count: int = 4, mbit: float = 200.0, full: bool = False, size: int = SIZE
) -> Iterator[Row]:
    """Yield a row a contest; where namespaces are not permitted, rows that say so.

    Args:
        count: Hosts.
        mbit: Bandwidth of each link, each way.
        full: More rounds.
        size: Bytes of int32.
    """
    reason = why_not()
    for ranks_per_host in sorted({contest.ranks_per_host for contest in CONTESTS}):
        contests = [each for each in CONTESTS if each.ranks_per_host == ranks_per_host]
        names = tuple(dict.fromkeys(n for each in contests for n in (each.ours, each.baseline)))
        times: dict[str, list[float]] = {}
        failed = reason
        if failed is None:
            try:
                times = _measured(count, mbit, ranks_per_host, names, size, rounds=8 if full else 3)
            except ReduceError as error:
                failed = error.got
        for contest in contests:
            yield _row(contest, times, f"{count}x{mbit:g}Mbit", size, failed)


def _row(
    contest: Contest, times: dict[str, list[float]], where: str, size: int, failed: str | None
) -> Row:
    ranks = contest.ranks_per_host
    case = f"hosts/{where}/{contest.ours}/{size_name(size)}" + ("" if ranks == 1 else f"/{ranks}")
    if failed is not None:
        row = not_measured(case, contest.baseline, failed)
        return replace(row, target=contest.target)
    return summarise(
        case,
        "s",
        ours=times[contest.ours],
        baseline=times[contest.baseline],
        baseline_name=contest.baseline,
        detail=f"network namespaces, {ranks} rank{'s' if ranks > 1 else ''} a host, int32, gloo"
        + (" and shared memory" if ranks > 1 else ""),
        target=contest.target,
    )


def _measured(
    count: int, mbit: float, ranks_per_host: int, names: Sequence[str], size: int, *, rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of every round by algorithm, of the slowest rank."""
    with ExitStack() as held:
        folder = held.enter_context(tempfile.TemporaryDirectory(prefix="dither-bench-"))
        made = held.enter_context(hosts(count, mbit))
        job = Job(
            rank=0,
            world_size=count * ranks_per_host,
            ranks_per_host=ranks_per_host,
            algorithms=names,
            size=size,
            rounds=rounds,
            store=made[0].address,
            folder=folder,
        )
        processes = [
            _start(made[rank // ranks_per_host], replace(job, rank=rank))
            for rank in range(job.world_size)
        ]
        return _collect(processes, limit=2 * _TIMEOUT)


def _start(host: Host, job: Job) -> subprocess.Popen[str]:
    errors = (Path(job.folder) / f"errors-{job.rank}").open("w+")
    with errors:
        return host.popen(
            [sys.executable, "-m", __spec__.name, json.dumps(asdict(job))],
            stdout=subprocess.PIPE if job.rank == 0 else subprocess.DEVNULL,
            stderr=errors,
            text=True,
            env={**os.environ, "GLOO_SOCKET_IFNAME": host.interface, "OMP_NUM_THREADS": "1"},
        )


def _collect(processes: list[subprocess.Popen[str]], limit: float) -> dict[str, list[float]]:
    """Wait for all ranks; what is left of them goes with their hosts."""
    deadline = time.monotonic() + limit
    try:
        said, _ = processes[0].communicate(timeout=limit)
        for process in processes[1:]:
            process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise _failed(f"no end within {limit:g} s") from None
    codes = [process.returncode for process in processes]
    if any(codes):
        raise _failed(f"exit status {', '.join(map(str, codes))} of the ranks")
    times: dict[str, list[float]] = json.loads(said)
    return times


def _failed(reason: str) -> ReduceError:
    return ReduceError(
        expected="ranks that finish what they measure", got=reason, fix="try it with fewer hosts"
    )


def _main(text: str) -> None:
    job = Job(**json.loads(text))
    store = dist.TCPStore(  # type: ignore[attr-defined]
        job.store, _PORT, job.world_size, job.rank == 0, timeout=dt.timedelta(seconds=_TIMEOUT)
    )
    dist.init_process_group(
        "gloo",
        store=store,
        rank=job.rank,
        world_size=job.world_size,
        timeout=dt.timedelta(seconds=_TIMEOUT),
    )
    with _endpoint(job) as endpoint:
        times = _times(endpoint, job)
        texts = gather(endpoint, json.dumps(times).encode())
    if job.rank == 0:
        every = [json.loads(each) for each in texts]
        slowest = {
            name: [max(rounds) for rounds in zip(*(each[name] for each in every), strict=True)]
            for name in job.algorithms
        }
        sys.stdout.write(json.dumps(slowest))
    dist.destroy_process_group()


def _endpoint(job: Job) -> Endpoint:
    across = TorchDistributed(timeout=_TIMEOUT)
    if job.ranks_per_host == 1:
        return across
    host, place = divmod(job.rank, job.ranks_per_host)
    path = Path(job.folder) / f"host-{host}"
    inside = SharedMemory.join(path, rank=place, world_size=job.ranks_per_host, timeout=_TIMEOUT)
    return Hybrid(across, inside)


def _times(endpoint: Endpoint, job: Job) -> dict[str, list[float]]:
    buffer, word = np.zeros(job.size // 4, np.int32), np.zeros(1, np.int32)
    times: dict[str, list[float]] = {name: [] for name in job.algorithms}
    for name in job.algorithms:  # connections open at their first use
        sum_over(endpoint, word, name)
    for index in range(job.rounds):
        for name in job.algorithms if index % 2 else reversed(job.algorithms):
            sum_over(endpoint, word, "recursive_doubling")
            start = time.perf_counter()
            sum_over(endpoint, buffer, name)
            times[name].append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    _main(sys.argv[1])
