"""Joining a group of shared memory, what it leaves behind, and what waiting costs."""

from __future__ import annotations

import gc
import os
import resource
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.noise.processes import in_child, mappings, needs_pid_namespaces, new_pid_namespace
from tests.reduce.members import KILLED, die, in_group, in_processes, sum_all

from dither.errors import (
    ConfigError,
    MismatchError,
    PeerError,
    ReduceError,
)
from dither.reduce.transports.shared_memory import SharedMemory


def join_at(path: Path, rank: int, world_size: int, timeout: float = 5.0) -> object:
    try:
        SharedMemory.join(path, rank, world_size, timeout).close()
    except ReduceError as error:
        return error
    return None


def test_ranks_that_make_no_group_are_refused(tmp_path: Path) -> None:
    twice = in_processes([partial(join_at, tmp_path / "a", r, 3) for r in (0, 1, 1)])
    assert isinstance(twice[0], MismatchError)
    assert all(isinstance(error, ReduceError) for error in twice)
    sizes = in_processes([partial(join_at, tmp_path / "b", r, n) for r, n in ((0, 2), (1, 3))])
    assert all(isinstance(error, MismatchError) for error in sizes)
    assert not list(tmp_path.iterdir())


def test_a_rank_that_does_not_come_is_named(tmp_path: Path) -> None:
    (alone,) = in_processes([partial(join_at, tmp_path / "a", 0, 2, 0.3)])
    assert isinstance(alone, PeerError)
    assert "rank 1" in alone.expected
    (alone,) = in_processes([partial(join_at, tmp_path / "a", 1, 2, 0.3)])
    assert isinstance(alone, PeerError)
    assert "rank 0" in alone.expected
    assert not list(tmp_path.iterdir())


def test_a_socket_left_by_a_killed_rank_is_replaced(tmp_path: Path) -> None:
    def join_and_die() -> None:
        threading.Thread(target=die, args=(0.3,), daemon=True).start()
        SharedMemory.join(tmp_path / "group", 0, 2, 60)

    assert in_processes([join_and_die]) == [KILLED]
    assert (tmp_path / "group").is_socket()
    assert in_group(2, lambda e: e.rank, tmp_path) == [0, 1]


@pytest.mark.parametrize(
    ("rank", "world_size", "timeout"), [(0, 0, 1), (0, 257, 1), (2, 2, 1), (-1, 2, 1), (0, 2, 0)]
)
def test_places_out_of_range_are_refused(
    rank: int, world_size: int, timeout: float, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError):
        SharedMemory.join(tmp_path / "group", rank, world_size, timeout)


def test_a_path_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder that exists"):
        SharedMemory.join(tmp_path / "none" / "group", 0, 2, 1)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ConfigError, match="nobody uses"):
        SharedMemory.join(tmp_path / "file", 0, 2, 1)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_group_over_another_group(tmp_path: Path) -> None:
    def again(endpoint: SharedMemory) -> tuple[int, bool]:
        with SharedMemory.over(endpoint) as inner:
            buffer = np.full(3, inner.rank)
            inner.all_reduce(buffer)
            return inner.rank, bool((buffer == 3).all())

    assert in_group(3, again, tmp_path) == [(0, True), (1, True), (2, True)]


def test_ranks_of_other_process_namespaces_can_join(tmp_path: Path) -> None:
    """Their process numbers mean nothing to each other, so only the time limit tells of deaths."""
    needs_pid_namespaces()

    def apart(rank: int) -> Any:
        new_pid_namespace()
        return in_child(lambda: bytes([sum_alone(tmp_path / "group", rank)]))

    assert in_processes([partial(apart, rank) for rank in range(2)]) == [b"\1", b"\1"]


def sum_alone(path: Path, rank: int) -> bool:
    with SharedMemory.join(path, rank, 2, 20) as endpoint:
        return sum_all(endpoint) == []


# ---- what is left behind, and what waiting costs ----------------------------------------------


def descriptors() -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except OSError:
            continue
    return found


def test_nothing_is_left_open_mapped_or_on_disk(tmp_path: Path) -> None:
    shared_before = sorted(path.name for path in Path("/dev/shm").iterdir())  # noqa: S108

    def work(endpoint: SharedMemory) -> tuple[list[str], list[str]]:
        sum_all(endpoint)
        during = [name for name in descriptors() if "memfd" in name or "socket" in name]
        before = len(descriptors())
        endpoint.close()
        gc.collect()
        assert len(descriptors()) == before - 1  # the other's life
        maps = Path("/proc/self/maps").read_text()
        return during, [line for line in maps.splitlines() if "memfd:dither" in line]

    gc.collect()  # what earlier tests left to be collected is not this one's
    inherited = Counter(descriptors())  # a socket's name holds its inode
    for during, mapped in in_group(2, work, tmp_path):
        assert not Counter(during) - inherited
        assert not mapped
    assert not list(tmp_path.iterdir())
    assert sorted(path.name for path in Path("/dev/shm").iterdir()) == shared_before  # noqa: S108


def test_shared_memory_is_kept_out_of_dumps_and_children(tmp_path: Path) -> None:
    with SharedMemory.join(tmp_path / "group", 0, 1):
        starts = [
            int(line.split("-")[0], 16)
            for line in Path("/proc/self/maps").read_text().splitlines()
            if "memfd:dither" in line
        ]
        flags = [m.flags for m in mappings() if m.start in starts]
        assert flags
        assert all({"dd", "dc"} <= f for f in flags)
        assert b"memfd:dither" not in in_child(lambda: Path("/proc/self/maps").read_bytes())


def test_waiting_takes_no_processor_time(tmp_path: Path) -> None:
    """Also with more ranks than cores. A spinning wait would take all of the second."""
    cores = len(os.sched_getaffinity(0))

    def work(endpoint: SharedMemory) -> float:
        endpoint.all_reduce(np.ones(3))
        before = resource.getrusage(resource.RUSAGE_SELF)
        if endpoint.rank == 0:
            time.sleep(1)
        endpoint.all_reduce(np.ones(3))
        after = resource.getrusage(resource.RUSAGE_SELF)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    for number, world_size in enumerate((2, cores + 2)):
        used = in_group(world_size, work, tmp_path / str(number))
        assert max(used) < 0.2
