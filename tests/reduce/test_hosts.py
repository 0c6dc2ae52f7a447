"""Several hosts: network namespaces joined by links of limited bandwidth, gloo over TCP."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.reduce.launch import REPOSITORY, WORKER, log, reports, wait

from dither.bench.namespaces import Host, hosts, why_not
from dither.errors import ConfigError


@pytest.fixture(autouse=True, scope="module")
def _needs_namespaces() -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


def run_on(
    places: Sequence[Host], job: str, out: Path, limit: float = 120.0
) -> list[dict[str, Any]]:
    """Run a job on gloo ranks, one for each place."""
    with (out / "log").open("wb") as output:
        processes = [
            host.popen(
                [sys.executable, "-m", WORKER, "gloo", job, str(out), "--timeout", "30"],
                cwd=REPOSITORY,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "MASTER_ADDR": places[0].address,
                    "MASTER_PORT": "29500",
                    "GLOO_SOCKET_IFNAME": host.interface,
                    "RANK": str(rank),
                    "WORLD_SIZE": str(len(places)),
                },
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            for rank, host in enumerate(places)
        ]
        wait(lambda: all(p.poll() is not None for p in processes), time.monotonic() + limit)
    assert [process.poll() for process in processes] == [0] * len(places), log(out)
    return reports(out)


@pytest.mark.parametrize(
    ("count", "ranks"),
    [(2, 3), *(pytest.param(*sizes, marks=pytest.mark.full) for sizes in ((4, 4), (3, 6)))],
)
def test_sums_across_hosts(count: int, ranks: int, tmp_path: Path) -> None:
    with hosts(count, 500.0) as found:
        # Neighbouring ranks on different hosts.
        made = run_on([found[rank % count] for rank in range(ranks)], "short", tmp_path)
    assert len(made) == ranks
    for report in made:
        assert report["hosts"] == [rank % count for rank in range(ranks)]
        assert report["failures"] == []


def names() -> str:
    return subprocess.run(
        ["ip", "netns", "list"], capture_output=True, text=True, check=True
    ).stdout


def test_links_are_slow_and_nothing_stays() -> None:
    size = 3_000_000
    with hosts(2, 100.0) as (one, other):
        assert one.name in names()
        ours = one.name.rsplit("-", 1)[0]  # others may be there, of tests beside this one
        server = one.popen(
            [sys.executable, "-c", SERVER, one.address], stdout=subprocess.PIPE, text=True
        )
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        client = other.popen([sys.executable, "-c", CLIENT, one.address, str(size)])
        count, seconds = server.stdout.readline().split()
        client.wait(10.0)
        server.stdout.close()
        sleeper = other.popen(["sleep", "1000"])
    assert sleeper.poll() is not None
    assert int(count) == size
    # A burst may pass at once; no faster than the link, not slower than a third of it.
    assert 0.8 * size * 8 / 100e6 < float(seconds) < 3 * size * 8 / 100e6
    assert ours not in names()


SERVER = """
import socket, sys, time
server = socket.create_server((sys.argv[1], 9000))
print("ready", flush=True)
link, _ = server.accept()
start, count = time.monotonic(), 0
while piece := link.recv(1 << 16):
    count += len(piece)
print(count, time.monotonic() - start, flush=True)
"""
CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], 9000)) as link:
    link.sendall(bytes(int(sys.argv[2])))
"""


def test_namespaces_go_after_an_error() -> None:
    made: list[str] = []

    def fail(one: Host) -> None:
        made.append(one.name.rsplit("-", 1)[0])
        raise KeyError

    with pytest.raises(KeyError), hosts(2, 100.0) as (one, _):
        fail(one)
    assert len(made) == 1
    assert made[0] not in names()


@pytest.mark.parametrize(("count", "mbit"), [(0, 10.0), (251, 10.0), (2, 0.0), (2, float("nan"))])
def test_impossible_hosts_are_refused(count: int, mbit: float) -> None:
    with pytest.raises(ConfigError, match="1 to 250 hosts"), hosts(count, mbit):
        pass
