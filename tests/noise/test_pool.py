"""The pool changes speed and nothing else: every draw is the key's, is right, and serves once."""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.noise.processes import Mapping, content, in_child, threads, wiped_on_fork

from dither.errors import ConfigError, NoiseError, ReleaseError
from dither.noise.codec import encode
from dither.noise.key import Key
from dither.noise.pool import FreshNoise, Noise, NoisePool, PoolStats, is_private, pool_capacity
from dither.noise.rounded import rounded_gaussian
from dither.noise.simd import available, using
from dither.privacy.lattice import Lattice

BLOCK = 65_536  # draws that the thread makes at once
ROW = 128  # draws of one superblock of the key
SIGMA = 2.0**20
WIDE = Lattice(0, SIGMA, 2**22, 0, 32, 1)  # the message of zeros is the noise
MATERIAL = hashlib.sha256(b"test_pool").digest()

Draws = np.ndarray[tuple[int], np.dtype[np.int32]]
Take = Callable[[NoisePool, int], Draws]


def agreed() -> Key:
    return Key.agreed(MATERIAL)


def full(pool: NoisePool) -> PoolStats:
    """Wait until the thread has nothing to do: no whole block is free."""
    until = time.monotonic() + 20.0
    while (stats := pool.stats()).ready <= stats.capacity - BLOCK:
        assert time.monotonic() < until, "the pool does not fill"
        time.sleep(0.001)
    return stats


def take(pool: NoisePool, count: int) -> Draws:
    draws = np.full(count, 2**31 - 1, np.int32)
    pool.take(draws)
    return draws


def draw(pool: NoisePool, count: int) -> Draws:
    draws = np.full(count, 2**31 - 1, np.int32)
    pool.draw(draws, WIDE)
    return draws


def encode_zeros(pool: NoisePool, count: int) -> Draws:
    return np.asarray(pool.encode(np.zeros(count, np.float32), WIDE).message)


WAYS: list[Take] = [take, draw, encode_zeros]


def repeats(pieces: list[Draws]) -> int:
    """How many runs of four draws were handed out before, at any place, in any piece.

    Runs have 88 bits of entropy and are compared by 64: false alarm below 1e-7 for 1.9 million.
    """
    factors = np.random.default_rng().integers(0, 2**63, 4, np.uint64) * np.uint64(2) + np.uint64(1)
    found = []
    for piece in pieces:
        words = piece.astype(np.int64).view(np.uint64)
        size = max(piece.size - 3, 0)
        found.append(sum(words[at : at + size] * factors[at] for at in range(4)))
    runs = np.concatenate([np.atleast_1d(one) for one in found])
    return int(runs.size - np.unique(runs).size)


def test_repeats_are_found_wherever_they_are() -> None:
    draws = [take(NoisePool(SIGMA), 5000) for _ in range(2)]
    assert repeats(draws) == 0
    assert repeats([*draws, draws[0][1234:1300]]) == 63
    assert repeats([np.concatenate([draws[0], draws[1][7:11], draws[1]])]) == 1


# ---- every draw is the key's, once ---------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_ready_draws_come_in_the_keys_order(way: Take) -> None:
    with NoisePool(SIGMA, agreed(), capacity=4 * BLOCK) as pool:
        pieces = []
        for count in (1, 5, 122, 128, 70_000, 3 * BLOCK, 0, 3 * BLOCK + 1):
            full(pool)
            pieces.append(way(pool, count))
        stats = full(pool)
    drawn = np.concatenate(pieces)
    assert (drawn == rounded_gaussian(SIGMA, drawn.size, agreed())).all()
    assert (stats.used, stats.dry, stats.wait_seconds) == (drawn.size, 0, 0.0)


@pytest.mark.parametrize("consumers", [1, 4])
def test_the_draws_are_those_of_a_twin_key_each_once(consumers: int) -> None:
    """Pieces of whole superblocks, so that ready and dry draws can be told by their rows."""
    key = agreed()
    generator = np.random.default_rng(consumers)
    plans = [(generator.integers(1, 700, 40) * ROW).tolist() for _ in range(consumers)]

    def consume(index: int) -> list[Draws]:
        return [WAYS[at % 3](pool, count) for at, count in enumerate(plans[index])]

    with NoisePool(SIGMA, key, capacity=2 * BLOCK) as pool:
        with ThreadPoolExecutor(consumers) as workers:
            pieces = [piece for mine in workers.map(consume, range(consumers)) for piece in mine]
        stats = full(pool)
    rows = Counter(row.tobytes() for piece in pieces for row in piece.reshape(-1, ROW))
    assert max(rows.values()) == 1
    assert stats.used + stats.dry == sum(map(sum, plans))
    assert stats.used + stats.ready == stats.filled
    assert stats.filled + stats.dry == key.position * ROW
    whole = rounded_gaussian(SIGMA, key.position * ROW, agreed()).astype(np.int32)
    made = {row.tobytes() for row in whole.reshape(-1, ROW)}
    assert rows.keys() <= made
    assert len(made - rows.keys()) * ROW == stats.ready


def test_threads_with_pieces_of_any_size_share_no_draw() -> None:
    generator = np.random.default_rng(8)
    plans = [generator.integers(1, 20_000, 25).tolist() for _ in range(4)]

    def consume(index: int) -> list[Draws]:
        return [WAYS[(index + at) % 3](pool, count) for at, count in enumerate(plans[index])]

    with NoisePool(SIGMA, capacity=2 * BLOCK) as pool, ThreadPoolExecutor(4) as workers:
        pieces = [piece for mine in workers.map(consume, range(4)) for piece in mine]
    assert sum(piece.size for piece in pieces) == sum(map(sum, plans))
    assert repeats(pieces) == 0


@pytest.mark.parametrize("way", WAYS)
def test_threads_that_find_all_ready_share_no_draw(way: Take) -> None:
    """From a full pool, so that the threads meet at its draws and not in the generator."""
    barrier = threading.Barrier(4)

    def consume(_: int) -> list[Draws]:
        barrier.wait(30)
        return [way(pool, 3000) for _ in range(80)]

    with NoisePool(SIGMA, capacity=16 * BLOCK) as pool, ThreadPoolExecutor(4) as workers:
        full(pool)
        pieces = [piece for mine in workers.map(consume, range(4)) for piece in mine]
        assert pool.stats().used > 10 * BLOCK
    assert repeats(pieces) == 0


@pytest.mark.parametrize("simd", available())
def test_a_message_is_that_of_fresh_noise(simd: str) -> None:
    """A pool in between changes nothing: the same integers as from a twin key without one."""
    lattice = Lattice(-10, 1234.5, 3000, 4, 16, 2)
    values = np.random.default_rng(1).normal(0, 2, 100_000)
    with using(simd), NoisePool(lattice.sigma, agreed(), capacity=2 * BLOCK) as pool:
        full(pool)
        pooled = pool.encode(values, lattice)
    fresh = FreshNoise(agreed()).encode(values, lattice)
    assert pooled.message.dtype == np.int16
    assert (pooled.message == fresh.message).all()
    assert pooled.saturated == fresh.saturated > 0


def test_a_dry_pool_draws_in_place_at_once_and_says_so() -> None:
    """16 times the capacity in one piece: most of it is not ready, and all of it is right."""
    count = 32 * BLOCK
    with NoisePool(SIGMA, capacity=2 * BLOCK) as pool:
        draws = take(pool, count)
        stats = full(pool)
    assert stats.dry > 0
    assert stats.wait_seconds > 0.0
    assert stats.used + stats.dry == count
    assert stats.filled == stats.used + stats.ready
    # χ² as a normal law, at this size: 5.4 deviations, false alarm 7e-8; 0.99 of σ is 20 away.
    square = float(np.mean(draws.astype(np.float64) ** 2))
    assert abs(square / SIGMA**2 - 1) < 5.4 * np.sqrt(2 / count) < 0.01
    assert repeats([draws[: 12 * BLOCK]]) == 0


def test_out_may_be_a_tensor() -> None:
    draws = torch.zeros(1000, dtype=torch.int32)
    with NoisePool(SIGMA, agreed()) as pool:
        full(pool)
        pool.take(draws)
    assert (draws.numpy() == rounded_gaussian(SIGMA, 1000, agreed())).all()


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dimension", "capacity"),
    [(0, 2**18), (1000, 2**18), (2**17, 2**18), (10**6, 2 * 10**6), (10**9, 2**26)],
)
def test_the_size_follows_the_dimension(dimension: int, capacity: int) -> None:
    assert pool_capacity(dimension) == capacity
    if 0 < dimension < 2**23:
        with NoisePool(SIGMA, dimension=dimension) as pool:
            assert pool.stats().capacity == -(-capacity // BLOCK) * BLOCK


@pytest.mark.parametrize(
    ("asked", "capacity"), [(1, 2 * BLOCK), (2 * BLOCK + 1, 3 * BLOCK), (5 * BLOCK, 5 * BLOCK)]
)
def test_no_more_is_ready_than_the_capacity(asked: int, capacity: int) -> None:
    before = sum(m.size for m in wiped_on_fork())
    with NoisePool(SIGMA, capacity=asked) as pool:
        memory = sum(m.size for m in wiped_on_fork()) - before
        assert 4 * capacity <= memory <= 4 * capacity + 3 * os.sysconf("SC_PAGESIZE")
        for count in (1, 1000, 50_000) * 20:
            take(pool, count)
            stats = pool.stats()
            assert stats.capacity == capacity
            assert 0 <= stats.ready <= capacity
        stats = full(pool)
        time.sleep(0.02)
        assert pool.stats() == stats  # it stops there


def ring(start: bytes) -> tuple[Mapping, int]:
    """Where the pool whose first ready draws these are keeps them."""
    found = [(m, content(m).find(start)) for m in wiped_on_fork() if start in content(m)]
    assert len(found) == 1
    return found[0]


def test_what_was_handed_out_is_zeros_in_the_pool() -> None:
    """Read from the process's own memory, after each way to use it and each way to fail."""
    key, expected = agreed(), rounded_gaussian(SIGMA, 2 * BLOCK, agreed()).astype(np.int32)
    with NoisePool(SIGMA, key, capacity=2 * BLOCK) as pool:
        full(pool)
        mapping, start = ring(expected[:64].tobytes())
        assert {"dd", "wf"} <= mapping.flags
        used = 0
        for way, count in ((take, 1000), (encode_zeros, 333), (draw, 5), (encode_zeros, 4097)):
            way(pool, count)
            used += count
            left = np.frombuffer(content(mapping), np.int32, 2 * BLOCK, start)
            assert not left[:used].any()
            assert (left[used:] == expected[used:]).all()
        with pytest.raises(ReleaseError, match="a finite clipped sum"):
            pool.encode(np.full(100, np.nan), WIDE)
        left = np.frombuffer(content(mapping), np.int32, 2 * BLOCK, start)
        assert not left[: used + 100].any()
        assert in_child(lambda: content(mapping)) == bytes(mapping.size)
        take(pool, BLOCK)  # the first block is free now, and filled anew
        full(pool)
        memory = content(mapping)
        for at in range(0, BLOCK, 1024):
            assert expected[at : at + 4].tobytes() not in memory
        assert expected[-4:].tobytes() in memory
    assert not [m for m in wiped_on_fork() if expected[-4:].tobytes() in content(m)]


def test_a_refused_lattice_spends_nothing() -> None:
    key = agreed()
    with NoisePool(SIGMA, key, capacity=2 * BLOCK) as pool:
        stats, position = full(pool), key.position
        for bad in (replace(WIDE, clamp=-1), replace(WIDE, wire_shift=49)):
            for size in (0, 1000):
                with pytest.raises(ConfigError, match="a lattice with"):
                    pool.encode(np.zeros(size), bad)
        for sigma in (SIGMA / 2, np.nextafter(SIGMA, 0.0), 0.0):
            for size in (0, 1000):
                with pytest.raises(NoiseError, match="a sigma of 1048576"):
                    pool.encode(np.zeros(size), replace(WIDE, sigma=float(sigma)))
                with pytest.raises(NoiseError, match="one pool for each plan"):
                    pool.draw(np.zeros(size, np.int32), replace(WIDE, sigma=float(sigma)))
        assert pool.stats() == stats
        assert key.position == position
        assert (take(pool, 100) == rounded_gaussian(SIGMA, 100, agreed())).all()


# ---- fork ----------------------------------------------------------------------------------------


def test_a_forked_child_has_draws_of_its_own() -> None:
    """The reuse attack by fork: parent, children and grandchild, with ready noise at the fork."""

    def child() -> bytes:
        mine = take(pool, 3000)
        theirs = in_child(lambda: take(pool, 3000).tobytes())
        return mine.tobytes() + theirs + encode_zeros(pool, 3000).tobytes()

    with NoisePool(SIGMA, capacity=2 * BLOCK) as pool:
        full(pool)
        pieces = [np.frombuffer(in_child(child), np.int32) for _ in range(2)]
        pieces += [take(pool, 3000), encode_zeros(pool, 2 * BLOCK)]
        pieces += [np.frombuffer(in_child(child), np.int32), take(pool, 3000)]
    assert sum(piece.size for piece in pieces) == 3 * 9000 + 6000 + 2 * BLOCK
    assert repeats(pieces) == 0
    noise = np.concatenate(pieces[:2]).astype(np.float64)
    assert abs(float(np.mean(noise**2)) / SIGMA**2 - 1) < 5.4 * np.sqrt(2 / noise.size)


def test_a_forked_child_starts_its_own_books_and_thread() -> None:
    def child() -> bytes:
        fresh = pool.stats()
        assert (fresh.used, fresh.dry, fresh.discarded) == (0, 0, 2 * BLOCK - 100)
        take(pool, 10)
        stats = full(pool)
        assert stats.running
        assert stats.used + stats.dry == 10
        assert stats.filled == stats.used + stats.ready
        pool.close()
        assert threads() == 1
        return b"done"

    def close_unused() -> bytes:
        pool.close()
        return b"closed"

    with NoisePool(SIGMA, capacity=2 * BLOCK) as pool:
        full(pool)
        take(pool, 100)
        before = pool.stats()
        assert in_child(child) == b"done"
        assert in_child(close_unused) == b"closed"
        assert pool.stats() == before


def test_a_pool_of_an_agreed_key_is_refused_in_a_child() -> None:
    def child() -> bytes:
        draws = np.ones(10, np.int32)
        with pytest.raises(NoiseError, match="after fork"):
            pool.take(draws)
        message = np.ones(10, np.int32)
        with pytest.raises(NoiseError, match="after fork"):
            pool.encode(np.zeros(10), WIDE, out=message)
        assert not draws.any()
        assert not message.any()
        return b"refused"

    with NoisePool(SIGMA, agreed(), capacity=2 * BLOCK) as pool:
        full(pool)
        assert in_child(child) == b"refused"
        assert (take(pool, 100) == rounded_gaussian(SIGMA, 100, agreed())).all()


def test_forks_beside_consumers_and_a_working_thread() -> None:
    """16 children, forked while two threads drain the pool and the third fills it."""
    stop = threading.Event()

    def drain(_: int) -> list[Draws]:
        pieces = [take(pool, 5000)]
        while not stop.is_set():
            piece = encode_zeros(pool, 5000)
            pieces += [piece] if len(pieces) < 60 else []
        return pieces

    def child() -> bytes:
        mine = take(pool, 2000).tobytes() + encode_zeros(pool, 2000).tobytes()
        pool.close()
        return mine

    with NoisePool(SIGMA, capacity=2 * BLOCK) as pool, ThreadPoolExecutor(2) as workers:
        running = [workers.submit(drain, index) for index in range(2)]
        try:
            theirs = [np.frombuffer(in_child(child), np.int32) for _ in range(16)]
        finally:
            stop.set()
        pieces = theirs + [piece for run in running for piece in run.result(60)]
    assert repeats(pieces) == 0


def one_round(number: int) -> None:
    """Three consumers, three children with a grandchild each, a pool closed under them."""
    stop, pool = threading.Event(), NoisePool(SIGMA, capacity=(2 + number % 7) * BLOCK)

    def drain(index: int) -> list[Draws]:
        pieces = [WAYS[index](pool, 1 + number)]
        while not stop.is_set() and len(pieces) < 100:
            pieces.append(WAYS[index](pool, 500 * index + number % 100 + 4))
        return pieces

    def child() -> bytes:
        mine = take(pool, 2000).tobytes() + in_child(lambda: draw(pool, 500).tobytes())
        if number % 2:
            pool.close()
        return mine

    with ThreadPoolExecutor(3) as workers:
        running = [workers.submit(drain, index) for index in range(3)]
        try:
            pieces = [np.frombuffer(in_child(child), np.int32) for _ in range(3)]
        finally:
            stop.set()
        pieces += [piece for run in running for piece in run.result(60)]
    pool.close()
    assert repeats(pieces) == 0


@pytest.mark.full
def test_a_minute_of_forks_threads_pools_and_closings() -> None:
    """Everything at once, over and over; false alarm below 1e-7 a round."""
    until = time.monotonic() + 60.0
    rounds = 0
    while time.monotonic() < until:
        one_round(rounds)
        rounds += 1
    assert rounds > 20


# ---- the end -------------------------------------------------------------------------------------


def uses(pool: NoisePool) -> list[Callable[[], object]]:
    return [
        lambda: take(pool, 1),
        lambda: draw(pool, 1),
        lambda: encode_zeros(pool, 0),
        pool.stats,
    ]


def test_a_closed_pool_is_refused_and_closing_twice_is_harmless() -> None:
    with NoisePool(SIGMA) as pool:
        take(pool, 10)
    for _ in range(2):
        pool.close()
        for use in uses(pool):
            with pytest.raises(NoiseError, match="an open pool, got a closed one"):
                use()


def test_the_core_says_so_too() -> None:
    """For the thread that had passed the check above when another closed the pool."""
    pool = NoisePool(SIGMA)
    pool._native.close()
    for use in uses(pool)[:3]:
        with pytest.raises(NoiseError, match="an open pool, got a closed one"):
            use()


def test_closing_while_others_encode() -> None:
    """They end with the refusal and with nothing else, and what they had was never repeated."""
    for _ in range(4):
        pool, started = NoisePool(SIGMA, capacity=2 * BLOCK), threading.Barrier(4)

        def work(
            index: int, pool: NoisePool = pool, started: threading.Barrier = started
        ) -> list[Draws]:
            pieces = [WAYS[index](pool, 1000)]
            started.wait(30)
            while True:
                try:
                    pieces.append(WAYS[index](pool, 20_000))
                except NoiseError as refusal:
                    assert "a closed one" in str(refusal)  # noqa: PT017
                    return pieces

        with ThreadPoolExecutor(3) as workers:
            jobs = [workers.submit(work, index) for index in range(3)]
            started.wait(30)
            time.sleep(0.003)
            pool.close()
            pieces = [piece for job in jobs for piece in job.result(30)]
        assert repeats(pieces[:20]) == 0


def test_pools_that_come_and_go_leave_nothing() -> None:
    """Closed, dropped, or dropped by an exception, at any moment of their filling."""
    NoisePool(SIGMA).close()
    before = threads(), sum(m.size for m in wiped_on_fork())
    for index in range(60):
        pool = NoisePool(SIGMA, capacity=(1 + index % 5) * BLOCK)
        if index % 3 == 0:
            take(pool, 1000)
        if index % 2:
            pool.close()
        del pool
    with pytest.raises(ZeroDivisionError), NoisePool(SIGMA):
        _ = 1 / 0
    assert (threads(), sum(m.size for m in wiped_on_fork())) == before


def test_the_thread_takes_no_signal() -> None:
    """One that the program has blocked, to wait for it, must not end the process instead."""

    def child() -> bytes:
        with NoisePool(SIGMA, capacity=2 * BLOCK) as pool:
            full(pool)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
            os.kill(os.getpid(), signal.SIGUSR1)
            take(pool, BLOCK)
            full(pool)
            return bytes([signal.SIGUSR1 in signal.sigpending()])

    assert in_child(child) == b"\1"


def test_a_pool_outlives_the_name_of_its_key() -> None:
    pool = NoisePool(SIGMA, Key())
    assert repeats([take(pool, 3 * BLOCK)]) == 0
    full(pool)
    pool.close()


def test_the_interpreter_ends_with_a_pool_open() -> None:
    code = (
        "import numpy as np; from dither.noise.pool import NoisePool\n"
        "pool = NoisePool(1000.0, capacity=1 << 22); pool.take(np.empty(9, np.int32))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert done.stderr == b""


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf"), 2.0**26 * 1.001])
def test_a_sigma_out_of_range_is_refused(sigma: float) -> None:
    with pytest.raises(ConfigError, match="a sigma in"):
        NoisePool(sigma)


@pytest.mark.parametrize("capacity", [0, -1, 2**40 + 1])
def test_a_capacity_out_of_range_is_refused(capacity: int) -> None:
    with pytest.raises(ConfigError, match="a capacity between 1 and"):
        NoisePool(SIGMA, capacity=capacity)


def test_pools_are_not_copied_or_pickled() -> None:
    with NoisePool(SIGMA) as pool:
        attempts: list[Callable[[Any], object]] = [copy.copy, copy.deepcopy, pickle.dumps]
        for attempt in attempts:
            with pytest.raises(NoiseError, match="stays in its process"):
                attempt(pool)
            with pytest.raises(TypeError, match="pickle"):
                attempt(pool._native)
        with pytest.raises(NoiseError, match="stays in its process"):
            pickle.dumps(FreshNoise(Key()))


@pytest.mark.parametrize(
    "out",
    [np.zeros(8), np.zeros(8, np.int64), np.zeros(16, np.int32)[::2], np.zeros((2, 2), np.int32)],
    ids=["float64", "int64", "strided", "matrix"],
)
def test_draws_go_into_int32_in_place_or_nowhere(out: np.ndarray[Any, Any]) -> None:
    """A strided array above all: a copy of it would be filled, and zeros taken for noise."""
    with NoisePool(SIGMA) as pool:
        with pytest.raises(ConfigError, match="a contiguous one-dimensional int32 array"):
            pool.take(out)
        assert not out.any()
        for message in (np.zeros(8, np.int16), np.zeros(16, np.int32)[::2]):
            with pytest.raises(ConfigError, match="a contiguous one-dimensional int32 array"):
                pool.encode(np.zeros(8), WIDE, out=message)
        stats = pool.stats()
        assert stats.used + stats.dry == 0


def test_pools_and_fresh_noise_are_noise_and_as_private_as_their_key() -> None:
    agreed = [Key.agreed(MATERIAL, secret=secret) for secret in (True, False)]
    for key in (Key(), *agreed):
        with NoisePool(SIGMA, key) as pool:
            for noise in (FreshNoise(key), pool):
                assert isinstance(noise, Noise)
                assert is_private(noise) is (key not in agreed)
    with NoisePool(SIGMA) as pool:
        assert is_private(pool)
        assert pool.sigma == SIGMA


def test_fresh_noise_draws_for_other_devices() -> None:
    draws = np.zeros(1000, np.int64)
    FreshNoise(agreed()).draw(draws, replace(WIDE, sigma=2.0**33))
    assert (draws == rounded_gaussian(2.0**33, 1000, agreed())).all()
    with pytest.raises(ConfigError, match="a sigma in"):
        FreshNoise(agreed()).draw(np.zeros(9, np.int32), replace(WIDE, sigma=2.0**33))


def test_an_encoded_message_is_the_codecs() -> None:
    values = np.linspace(-9, 9, 700)
    assert (
        FreshNoise(agreed()).encode(values, WIDE).message == encode(values, WIDE, agreed()).message
    ).all()
