"""What becomes of a group of shared memory when ranks die, leave, are late or differ."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.noise.processes import in_child
from tests.reduce.members import BLOCK, KILLED, NEVER, Array, die, in_group, lattice

from dither.errors import (
    ConfigError,
    MismatchError,
    NoiseError,
    PeerError,
    ReduceError,
    ReleaseError,
)
from dither.noise.key import Key
from dither.noise.pool import FreshNoise, NoisePool
from dither.reduce.transports import shared_memory
from dither.reduce.transports.shared_memory import SharedMemory

SOON = 5.0  # an error that takes longer did not come from looking at peers


def timed(work: Callable[[], object]) -> tuple[Any, float]:
    start = time.monotonic()
    try:
        return work(), time.monotonic() - start
    except ReduceError as error:
        return error, time.monotonic() - start


def sum_for_ever(endpoint: SharedMemory) -> tuple[Any, float, Any]:
    """Sum until it fails; return the error, how long the last call took, and the next error."""
    buffer = np.ones(3 * BLOCK, np.float32)
    while True:
        found, took = timed(lambda: endpoint.all_reduce(buffer))
        if isinstance(found, ReduceError):
            return found, took, timed(lambda: endpoint.all_reduce(buffer))[0]


def sum_and_die(endpoint: SharedMemory) -> None:
    threading.Thread(target=die, args=(0.2,), daemon=True).start()
    sum_for_ever(endpoint)


def release_for_ever(endpoint: SharedMemory) -> tuple[Any, float, bool]:
    data, out = np.zeros(3 * BLOCK, np.float32), np.empty(3 * BLOCK, np.float32)
    grid = lattice(16, endpoint.world_size)
    noise = FreshNoise(Key())
    while True:
        out[:] = 7
        found, took = timed(lambda: endpoint.release(data, out, grid=grid, noise=noise))
        if isinstance(found, ReduceError):
            return found, took, not out.any()


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_a_killed_rank_is_named_on_all_others_at_once(world_size: int, tmp_path: Path) -> None:
    works: list[Any] = [sum_for_ever] * (world_size - 1) + [sum_and_die]
    *others, killed = in_group(world_size, works, tmp_path, timeout=NEVER)
    assert killed == KILLED
    for error, took, next_error in others:
        assert isinstance(error, PeerError), error
        assert f"rank {world_size - 1}" in error.expected
        assert took < SOON
        assert isinstance(next_error, ReduceError)
        assert not isinstance(next_error, PeerError)


def test_a_rank_killed_while_others_release_leaves_zeros(tmp_path: Path) -> None:
    works: list[Any] = [release_for_ever, release_for_ever, sum_and_die_releasing]
    *others, killed = in_group(3, works, tmp_path, timeout=NEVER)
    assert killed == KILLED
    for error, took, wiped in others:
        assert isinstance(error, PeerError)
        assert took < SOON
        assert wiped


def sum_and_die_releasing(endpoint: SharedMemory) -> None:
    threading.Thread(target=die, args=(0.2,), daemon=True).start()
    release_for_ever(endpoint)


def test_a_rank_killed_between_messages_is_named(tmp_path: Path) -> None:
    def wait(endpoint: SharedMemory) -> tuple[Any, float]:
        return timed(lambda: endpoint.receive(1, np.empty(3)))

    (error, took), killed = in_group(2, [wait, lambda _: die()], tmp_path, timeout=NEVER)
    assert killed == KILLED
    assert isinstance(error, PeerError)
    assert "rank 1" in error.expected
    assert took < SOON


def test_a_rank_that_leaves_is_named(tmp_path: Path) -> None:
    def once(endpoint: SharedMemory) -> object:
        return endpoint.all_reduce(np.ones(3))

    def on(endpoint: SharedMemory) -> tuple[Any, float]:
        once(endpoint)
        return timed(lambda: once(endpoint))

    (error, took), left = in_group(2, [on, once], tmp_path, timeout=NEVER)
    assert left is True
    assert isinstance(error, PeerError)
    assert "left" in str(error)
    assert took < SOON


def test_a_rank_that_is_late_is_named_and_refused_afterwards(tmp_path: Path) -> None:
    def wait(endpoint: SharedMemory) -> tuple[Any, float]:
        return timed(lambda: endpoint.all_reduce(np.ones(3)))

    def late(endpoint: SharedMemory) -> tuple[Any, float]:
        time.sleep(2)
        return wait(endpoint)

    (error, took), (refused, _) = in_group(2, [wait, late], tmp_path, timeout=0.5)
    assert isinstance(error, PeerError)
    assert "rank 1" in error.expected
    assert 0.4 < took < SOON
    assert isinstance(refused, ReduceError)


def different(
    first: Callable[[SharedMemory], object], second: Callable[[SharedMemory], object]
) -> list[Any]:
    return [lambda e: timed(lambda: first(e))[0], lambda e: timed(lambda: second(e))[0]]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.zeros(5), np.zeros(6)),
        (np.zeros(5), np.zeros(0)),
        (np.zeros(5, np.int32), np.zeros(5, np.float32)),
        (np.zeros(BLOCK), np.zeros(2 * BLOCK)),
    ],
)
def test_different_sums_are_refused_on_all_ranks(
    first: Array, second: Array, tmp_path: Path
) -> None:
    works = different(lambda e: e.all_reduce(first), lambda e: e.all_reduce(second))
    for error in in_group(2, works, tmp_path):
        assert isinstance(error, MismatchError)


def test_different_lattices_or_scales_are_refused_on_all_ranks(tmp_path: Path) -> None:
    def release(bits: int, scale: float, endpoint: SharedMemory) -> object:
        grid, out = lattice(bits, 2), np.empty(9)
        return endpoint.release(np.zeros(9), out, grid=grid, noise=FreshNoise(Key()), scale=scale)

    for number, other in enumerate(((32, 1.0), (16, 0.5))):
        works = different(partial(release, 16, 1.0), partial(release, *other))
        for error in in_group(2, works, tmp_path / str(number)):
            assert isinstance(error, MismatchError)


def test_a_message_of_another_size_is_refused(tmp_path: Path) -> None:
    def receive(endpoint: SharedMemory) -> Any:
        return timed(lambda: endpoint.receive(1, np.empty(4)))[0]

    def send(endpoint: SharedMemory) -> Any:
        endpoint.send(0, np.zeros(5))
        return timed(lambda: endpoint.receive(0, np.empty(4)))[0]

    for error in in_group(2, [receive, send], tmp_path):
        assert isinstance(error, MismatchError)


def test_a_value_that_is_not_finite_ends_the_call_on_all_ranks(tmp_path: Path) -> None:
    def release(endpoint: SharedMemory) -> tuple[Any, bool]:
        data, out = np.zeros(2 * BLOCK), np.ones(2 * BLOCK)
        data[-1] = np.nan if endpoint.rank == 1 else 0
        try:
            endpoint.release(data, out, grid=lattice(16, 2), noise=FreshNoise(Key()))
        except (ReleaseError, PeerError) as error:
            return error, not out.any()
        return None, False

    (others, wiped), (own, own_wiped) = in_group(2, release, tmp_path)
    assert isinstance(others, PeerError)
    assert "rank 1" in others.expected
    assert isinstance(own, ReleaseError)
    assert wiped
    assert own_wiped


def test_a_forked_child_is_refused_and_the_parent_goes_on(tmp_path: Path) -> None:
    with SharedMemory.join(tmp_path / "group", 0, 1) as endpoint:

        def attempt() -> bytes:
            try:
                endpoint.all_reduce(np.ones(3))
            except ReduceError as error:
                endpoint.close()
                return str(error).encode()
            return b""

        assert b"fork" in in_child(attempt)
        assert endpoint.all_reduce(np.ones(3))


def test_a_closed_group_is_refused(tmp_path: Path) -> None:
    endpoint = SharedMemory.join(tmp_path / "group", 0, 1)
    endpoint.close()
    endpoint.close()
    with pytest.raises(ReduceError, match="new group"):
        endpoint.all_reduce(np.ones(3))


def test_two_threads_are_not_let_in_at_once(tmp_path: Path) -> None:
    def work(endpoint: SharedMemory) -> str:
        if endpoint.rank == 1:
            time.sleep(1)
            return "" if endpoint.all_reduce(np.ones(3)) else "no"
        waiting = threading.Thread(target=endpoint.all_reduce, args=(np.ones(3),))
        waiting.start()
        time.sleep(0.3)
        try:
            endpoint.all_reduce(np.ones(3))
        except ReduceError as error:
            waiting.join()
            return str(error)
        return ""

    refused, _ = in_group(2, work, tmp_path)
    assert "one thread" in refused


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros(4)[::2],
        np.zeros(4, np.complex128),
        np.zeros(4, np.float16),
        np.zeros(4, ">i4"),
        np.zeros(4, np.bool_),
    ],
)
def test_other_arrays_are_refused(wrong: Array, tmp_path: Path) -> None:
    with SharedMemory.join(tmp_path / "group", 0, 1) as endpoint:
        with pytest.raises(ConfigError):
            endpoint.all_reduce(wrong)
        assert endpoint.all_reduce(np.ones(2))  # nothing is broken


def test_bad_arguments_of_a_release_are_refused_before_anything_is_used(tmp_path: Path) -> None:
    key, grid = Key(), lattice(16, 1)
    data, out = np.zeros(9), np.zeros(9)
    held = np.zeros(12)
    with SharedMemory.join(tmp_path / "group", 0, 1) as endpoint, NoisePool(3.0) as other:
        for arguments, options in (
            ((held[:9], held[3:]), {}),
            ((data, out), {"factor": 1.5}),
            ((data, out), {"factor": float("nan")}),
            ((data, out), {"scale": 0.0}),
        ):
            with pytest.raises(ConfigError):
                endpoint.release(*arguments, grid=grid, noise=FreshNoise(key), **options)  # type: ignore[arg-type]
        with pytest.raises(NoiseError, match="sigma"):
            endpoint.release(data, out, grid=grid, noise=other)
        contribute = endpoint.contributions(grid=grid, noise=FreshNoise(key), clip=1.0)
        for pair in ((held[:9], held[3:]), (data, out[:8]), (data, data.astype(np.int32))):
            with pytest.raises(ConfigError):  # results would be read as later contributions
                contribute(*pair)
        for wrong in (out[:8], data.astype(np.int32), np.zeros((9, 1)), np.zeros(18)[::2]):
            with pytest.raises(ConfigError):
                shared_memory._arrays(data, wrong)
        assert key.position == 0
        endpoint.release(data, out, grid=grid, noise=FreshNoise(key))
        assert key.position > 0


class HandlerError(ValueError):
    """What a program's own handler raises."""


def raise_own(*_: object) -> None:
    raise HandlerError


def interrupted_by_its_own_handler(endpoint: SharedMemory) -> str:
    """Rank 1 comes late; what rank 0's handler raises meanwhile reaches its caller as it is."""
    values = np.zeros(9)
    contribute = endpoint.contributions(
        grid=lattice(32, endpoint.world_size), noise=FreshNoise(Key()), clip=1.0
    )
    if endpoint.rank == 1:
        time.sleep(1.0)
    else:
        signal.signal(signal.SIGALRM, raise_own)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        contribute(values, values)
    except (HandlerError, ReduceError) as error:
        return type(error).__name__
    return ""


def test_what_a_handler_raises_during_a_contribution_is_not_taken_for_ours(tmp_path: Path) -> None:
    found = in_group(2, interrupted_by_its_own_handler, tmp_path)
    assert found == ["HandlerError", "PeerError"]
