"""Transports: one suite for all, over real processes; and what each does when a rank is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.reduce.cases import LENGTHS, cases, check_case
from tests.reduce.launch import REPOSITORY, launch, log, mpiexec, started, wait

from dither.errors import ConfigError, PeerError, ReduceError
from dither.reduce.endpoint import Buffer, Endpoint
from dither.reduce.transports.hosts import host_identity, number_hosts
from dither.reduce.transports.hybrid import Hybrid
from dither.reduce.transports.mpi import wait_until
from dither.reduce.transports.threads import Threads, _Group, run_ranks, try_ranks

ALL_CASES = len(list(cases(lengths=LENGTHS)))


@pytest.mark.parametrize(
    ("transport", "ranks"),
    [
        *(("shared_memory", ranks) for ranks in (1, 2, 3)),
        *(("mpi", ranks) for ranks in (1, 2, 3)),
        # torch takes seconds to import.
        pytest.param("torchrun", 1, marks=pytest.mark.full),
        *(("torchrun", ranks) for ranks in (2, 3)),
    ],
)
def test_messages_and_every_algorithm_type_and_length(
    transport: str, ranks: int, tmp_path: Path
) -> None:
    reports = launch(transport, ranks, "suite", tmp_path)
    assert [report["rank"] for report in reports] == list(range(ranks))
    for report in reports:
        assert report["failures"] == []
        assert report["hosts"] == [0] * ranks
    # gloo sums no short integers itself; everything else every transport must do.
    refused = [["backend", kind] for kind in ("int16", "int8", "uint16")]
    assert reports[0]["refused"] == (refused if transport == "torchrun" and ranks > 1 else [])
    done = ALL_CASES - reports[0]["count"]
    assert done == sum(case.algorithm == "backend" for case in refused_cases(reports[0]["refused"]))


def refused_cases(refused: Sequence[Sequence[str]]) -> list[Any]:
    return [case for case in cases(lengths=LENGTHS) if [case.algorithm, case.kind] in refused]


@pytest.mark.parametrize(
    ("transport", "job", "ranks"),
    [
        ("shared_memory", "kill", 3),
        ("shared_memory", "stop", 2),
        ("gloo", "kill", 3),
        pytest.param("gloo", "stop", 2, marks=pytest.mark.full),
        ("mpi", "stop", 2),
        pytest.param("mpi", "stop", 3, marks=pytest.mark.full),
        pytest.param("shared_memory", "stop", 3, marks=pytest.mark.full),
    ],
)
def test_when_a_rank_is_lost_the_others_say_so_in_time(
    transport: str, job: str, ranks: int, tmp_path: Path
) -> None:
    limit = 2.0
    reports = launch(transport, ranks, job, tmp_path, timeout=limit)
    assert [report["rank"] for report in reports] == list(range(ranks - 1))
    for report in reports:
        assert report["seconds"] < limit + 3.0
        assert "rank " in report["error"]
        assert "To mend it" in report["again"]
    if job == "kill":
        # The end of a process is seen at once, not after the time limit.
        assert min(report["seconds"] for report in reports) < limit / 2


@pytest.mark.parametrize("job", ["kill", "silent"])
def test_a_lost_rank_ends_an_mpi_program(job: str, tmp_path: Path) -> None:
    arguments = ["-m", "tests.reduce.worker", "mpi", job, str(tmp_path), "--timeout", "2"]
    command = [mpiexec(), "-n", "2", sys.executable, *arguments]
    with started([command], tmp_path) as (process,):
        deadline = time.monotonic() + 60.0
        wait(lambda: process.poll() is not None, deadline)
        assert process.poll() not in {0, None}
        pids = [int(path.stem) for path in tmp_path.glob("*.pid")]
        assert len(pids) == 2
        wait(lambda: not any(map(running, pids)), deadline)
        assert not any(map(running, pids))
    if job == "silent":
        assert "PeerError: expected rank 1 to answer rank 0" in log(tmp_path)


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def test_torch_must_be_initialised() -> None:
    from dither.reduce.transports.torch_distributed import TorchDistributed

    with pytest.raises(ConfigError, match="init_process_group"):
        TorchDistributed()


def test_without_mpi4py_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['mpi4py'] = None\n"
        "from dither.reduce.transports.mpi import Mpi\n"
        "from dither.errors import ConfigError\n"
        "try: Mpi()\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "dither[mpi]" in done.stdout


def test_the_mpi_transport_starts_mpi_only_when_used() -> None:
    code = (
        "import sys, dither.reduce.transports.mpi, dither.reduce.algorithms.registry\n"
        "print([name for name in ('mpi4py', 'torch') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=REPOSITORY,
    )
    assert done.stdout.strip() == "[]"


def test_waiting_ends_in_time_and_soon_after_the_event() -> None:
    start = time.perf_counter()
    assert not wait_until(lambda: False, 0.05)
    assert 0.05 <= time.perf_counter() - start < 1.0
    assert wait_until(lambda: True, 0.0)
    event = threading.Event()
    threading.Timer(0.1, event.set).start()
    assert wait_until(event.is_set, 10.0)


def test_waiting_sleeps() -> None:
    """A wait of 0.3 s takes little processor time."""
    start = time.thread_time()
    wait_until(lambda: False, 0.3)
    assert time.thread_time() - start < 0.15


def test_hosts_are_numbered_in_order_of_appearance() -> None:
    assert number_hosts(["b", "a", "b", "c"]) == (0, 1, 0, 2)
    assert len(host_identity()) == 32
    code = "from dither.reduce.transports.hosts import host_identity; print(host_identity().hex())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == host_identity().hex()


def test_threads_copy_messages() -> None:
    def swap(endpoint: Threads) -> list[int]:
        message, out = np.full(3, endpoint.rank), np.empty(3, np.int64)
        if endpoint.rank == 0:
            endpoint.send(1, message)
            message[:] = 99
            endpoint.receive(1, out)
        else:
            endpoint.receive(0, out)
            endpoint.send(0, message)
        return out.tolist()

    assert run_ranks(2, swap) == [[1] * 3, [0] * 3]


def test_an_observer_sees_every_message_as_it_travels() -> None:
    seen: list[tuple[int, int, bytes]] = []

    def talk(endpoint: Threads) -> None:
        if endpoint.rank == 0:
            endpoint.send(1, np.array([7], np.int16))
        else:
            endpoint.receive(0, np.empty(1, np.int16))

    run_ranks(2, talk, observe=lambda source, to, m: seen.append((source, to, m.tobytes())))
    assert seen == [(0, 1, b"\x07\x00")]


def wait_for_nobody(endpoint: Endpoint) -> None:
    if endpoint.rank == 0:
        endpoint.receive(1, np.empty(1))


def test_a_rank_that_left_is_not_waited_for() -> None:
    start = time.monotonic()
    with pytest.raises(PeerError, match="rank 1 left the group"):
        run_ranks(2, wait_for_nobody)
    assert time.monotonic() - start < 5.0


def test_what_a_rank_sent_before_it_left_arrives() -> None:
    def talk(endpoint: Threads) -> float:
        out = np.full(1, 5.0)
        if endpoint.rank == 1:
            endpoint.send(0, out)
        else:
            time.sleep(0.05)
            endpoint.receive(1, out)
        return float(out[0])

    assert run_ranks(2, talk) == [5.0, 5.0]


def test_a_silent_rank_is_waited_for_as_long_as_agreed() -> None:
    def hang(endpoint: Threads) -> None:
        if endpoint.rank == 1:
            time.sleep(0.6)
        else:
            endpoint.receive(1, np.empty(1))

    start = time.monotonic()
    outcomes = try_ranks(2, hang, timeout=0.2)
    assert 0.2 < time.monotonic() - start < 5.0
    assert isinstance(outcomes.first_error, PeerError)
    assert "within 0.2 s" in str(outcomes.errors[0])
    assert outcomes.results == [None]


def test_ranks_that_all_send_first_stand_still_under_rendezvous() -> None:
    def talk(endpoint: Threads) -> None:
        other = 1 - endpoint.rank
        endpoint.send(other, np.zeros(1))
        endpoint.receive(other, np.empty(1))

    run_ranks(2, talk)
    with pytest.raises(PeerError):
        run_ranks(2, talk, rendezvous=True, timeout=0.2)


def test_messages_of_another_size_or_type_break_the_group() -> None:
    for out in (np.empty(3, np.int32), np.empty(2, np.float32)):

        def talk(endpoint: Threads, out: Buffer = out) -> None:
            if endpoint.rank == 0:
                endpoint.send(1, np.zeros(2, np.int32))
                endpoint.receive(1, np.empty(1))
            else:
                endpoint.receive(0, out.copy())

        with pytest.raises(PeerError, match="2 int32 from rank 0"):
            run_ranks(2, talk)


def test_a_broken_or_closed_endpoint_refuses_use() -> None:
    kept: list[Threads] = []

    def fail(endpoint: Threads) -> None:
        kept.append(endpoint)
        if endpoint.rank == 0:
            with pytest.raises(PeerError):
                endpoint.receive(1, np.empty(1))
            with pytest.raises(ReduceError, match="working order"):
                endpoint.send(1, np.empty(1))

    run_ranks(2, fail)
    for endpoint in kept:
        endpoint.close()
        endpoint.close()
        with pytest.raises(ReduceError, match="make a new group"):
            endpoint.send(1 - endpoint.rank, np.zeros(1))


@pytest.mark.parametrize(("ranks", "hosts"), [(0, None), (2, [0]), (2, [0, 0, 1])])
def test_a_group_needs_ranks_and_a_host_for_each(ranks: int, hosts: list[int] | None) -> None:
    with pytest.raises(ConfigError, match="one host a rank"):
        run_ranks(ranks, lambda endpoint: endpoint.rank, hosts=hosts)


HOSTS = (0, 1, 0, 1, 1)


def test_two_transports_as_one_sum_the_same() -> None:
    nearby = {host: [rank for rank in range(5) if HOSTS[rank] == host] for host in HOSTS}
    groups = {host: _Group(len(ranks), 30.0, False, None) for host, ranks in nearby.items()}
    outer: set[tuple[int, int]] = set()

    def work(across: Threads) -> list[str]:
        host = HOSTS[across.rank]
        place, size = nearby[host].index(across.rank), len(nearby[host])
        algorithms = ("ring", "hierarchical", "naive", "rabenseifner", "auto")
        with Hybrid(across, Threads(groups[host], place, (0,) * size)) as endpoint:
            assert endpoint.hosts == HOSTS
            found = [check_case(endpoint, c) for c in cases(algorithms, ("int16", "float32"))]
        return [wrong for wrong in found if wrong is not None]

    results = run_ranks(5, work, hosts=HOSTS, observe=lambda source, to, _: outer.add((source, to)))
    assert results == [[]] * 5
    assert outer
    assert all(HOSTS[source] != HOSTS[to] for source, to in outer)


def test_an_inner_group_of_other_ranks_is_refused() -> None:
    def work(endpoint: Threads) -> None:
        Hybrid(endpoint, endpoint)

    with pytest.raises(ConfigError, match="inside the host"):
        run_ranks(2, work, hosts=[0, 1])
