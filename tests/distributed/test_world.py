"""How processes meet and what they tell each other: on threads, over gloo and MPI, and alone."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tests.distributed.launchers import LAUNCHERS, run_under
from tests.distributed.meeting import TIMEOUT

from dither.errors import ConfigError, MismatchError, ReduceError
from dither.privacy.trust import CENTRAL, LOCAL, Trust
from dither.reduce.transports.threads import run_ranks, try_ranks
from dither.release.transport import Solo
from dither.train.distributed.carrier import cluster_secret, open_carrier
from dither.train.distributed.place import Place
from dither.train.distributed.ranks import Ranks
from dither.train.distributed.world import World, join


def on_threads(ranks: int, act: Callable[[World], Any]) -> list[Any]:
    def rank(endpoint: Any) -> Any:
        with World.over(endpoint) as world:
            return act(world)

    return run_ranks(ranks, rank)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_tell_each_other(ranks: int) -> None:
    def act(world: World) -> tuple[bytes, list[bytes], int | None]:
        told = world.broadcast(f"from {world.rank}".encode())
        heard = world.gather(bytes([world.rank]))
        only = world.first("count", lambda: 7)
        world.consent(None)
        world.require_same({"colour": "red"})
        return told, heard, only

    every = [bytes([rank]) for rank in range(ranks)]
    for rank, found in enumerate(on_threads(ranks, act)):
        assert found == (b"from 0", every, 7 if rank == 0 else None)


def test_one_rank_alone_needs_nobody() -> None:
    with World() as world:
        assert isinstance(world, Ranks)
        assert (world.rank, world.world_size, world.is_first, world.ranks) == (0, 1, True, None)
        assert world.broadcast(b"x") == b"x"
        assert world.gather(b"x") == [b"x"]
        assert world.hosts == (0,)
        world.consent("nobody hears it")
        assert isinstance(open_carrier(world, CENTRAL), Solo)
        tensor = torch.ones(2)
        dist.all_reduce(tensor, group=world.process_group())  # for engine ddp on one rank
        assert tensor.tolist() == [1.0, 1.0]
    assert not dist.is_initialized()


def test_joining_alone_starts_nothing() -> None:
    with join(Place()) as world:
        assert world.endpoint is None
        assert not dist.is_initialized()


def test_where_one_rank_fails_all_do() -> None:
    def rank(endpoint: Any) -> None:
        with World.over(endpoint) as world:
            try:
                world.act("divide", lambda: 1 // world.rank)
            except ZeroDivisionError:
                time.sleep(0.5)  # a thread that leaves with an error breaks its group
                raise

    outcomes = try_ranks(3, rank)
    assert isinstance(outcomes.errors[0], ZeroDivisionError)
    for other in (1, 2):
        assert isinstance(outcomes.errors[other], ReduceError)
        assert "rank 0: it could not divide (ZeroDivisionError)" in str(outcomes.errors[other])


def test_a_difference_is_named_on_all_ranks() -> None:
    def rank(endpoint: Any) -> None:
        with World.over(endpoint) as world:
            world.require_same({"colour": "red" if world.rank else "blue", "size": "5"})

    outcomes = try_ranks(3, rank)
    assert len(outcomes.errors) == 3
    for error in outcomes.errors.values():
        assert isinstance(error, MismatchError)
        assert "colour blue on rank 0, red on ranks 1 and 2" in str(error) or (
            "colour blue on rank 0, red on ranks 1-2" in str(error)
        )
        assert "size" not in str(error)


@pytest.mark.parametrize("trust", [CENTRAL, LOCAL, Trust("distributed", 1)])
def test_a_carrier_sums_under_every_trust(trust: Trust) -> None:
    def act(world: World) -> tuple[list[int], int | None]:
        carrier = open_carrier(world, trust)
        total = carrier.all_reduce(np.full(4, world.rank + 1, np.int32))
        return total.tolist(), carrier.colluders

    for found, colluders in on_threads(3, act):
        assert found == [6] * 4
        assert colluders == (1 if trust.name == "distributed" else None)


def test_contexts_end_with_the_world_in_reverse_order() -> None:
    ends: list[int] = []
    with World() as world:
        world.at_end(lambda: ends.append(1))
        world.at_end(lambda: ends.append(2))
        assert ends == []
    assert ends == [2, 1]
    world = World()
    world.at_end(lambda: 1 // 0)
    with pytest.raises(KeyError), world:  # an error of the end does not hide it
        raise KeyError


def test_a_cluster_secret_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    assert cluster_secret(None) is None
    with pytest.raises(ConfigError, match="no such file"):
        cluster_secret(path)
    path.write_bytes(bytes(range(32)))
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        cluster_secret(path)
    path.chmod(0o600)
    assert cluster_secret(path) == cluster_secret(path)
    path.write_bytes(b"short")
    with pytest.raises(ConfigError, match="16 random bytes"):
        cluster_secret(path)


def meet(launcher: str, ranks: int, job: str, folder: Path, *words: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.distributed.meeting", job, str(folder), *words]
    run_under(launcher, ranks, command, folder / "log")
    paths = sorted(folder.glob("*.json"))
    return [json.loads(path.read_text()) for path in paths]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_processes_meet_under_every_launcher(launcher: str, tmp_path: Path) -> None:
    found = meet(launcher, 2, "talk", tmp_path)
    assert len(found) == 2
    for rank, report in enumerate(found):
        assert report["told"] == "from 0"
        assert report["heard"] == ["", "rank 1"]
        assert report["sum"] == [1, 3, 5, 7, 9]
        assert report["carrier"] == "SharedMemoryReduced"
        assert report["ones"] == [2.0, 2.0]
        assert report["hosts"] == [0, 0]
        assert report["problem"] == (
            "own" if rank == 0 else "rank 0: it could not be odd (ZeroDivisionError)"
        )


def test_three_processes_meet(tmp_path: Path) -> None:
    found = meet("dither", 3, "talk", tmp_path)
    assert [report["sum"] for report in found] == [[3, 6, 9, 12, 15]] * 3


@pytest.mark.parametrize("job", ["die", "stop"])
def test_a_rank_that_is_lost_is_noticed_in_time(job: str, tmp_path: Path) -> None:
    found = meet("slurm", 2, job, tmp_path)
    assert "rank 1" in found[0]["error"]
    # A dead one at once, one that stands still when the time is over.
    assert found[0]["seconds"] < (TIMEOUT + 5.0 if job == "stop" else TIMEOUT)


def test_a_place_where_nobody_meets_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dither.train.distributed.world._START", 1.0)
    with pytest.raises(ReduceError, match="all 2 processes to meet at tcp://localhost:1 within"):
        join(Place(rank=1, world_size=2, launcher="slurm", meet="tcp://localhost:1"), timeout=1.0)
    with pytest.raises(ConfigError, match="MASTER_ADDR"):
        join(Place(rank=1, world_size=2, launcher="mpi"), transport="gloo")
    assert not dist.is_initialized()


def test_mpi_of_another_size_is_refused() -> None:
    pytest.importorskip("mpi4py")
    with pytest.raises(ConfigError, match="MPI program of 2 processes"):
        join(Place(rank=1, world_size=2, launcher="slurm", meet="env://"), transport="mpi")
