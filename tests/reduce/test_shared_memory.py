"""Shared memory: sums, messages and the fused release between processes, and what errors do."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tests.reduce.members import BLOCK, LENGTHS, Array, contribution, in_group, lattice, sum_all

from dither.noise import codec
from dither.noise.key import Key
from dither.noise.pool import FreshNoise, NoisePool
from dither.privacy.lattice import Lattice
from dither.reduce.transports.shared_memory import SharedMemory

WORLDS = (1, 2, 3, 5)  # each rank sums for itself up to three, sections above


def secret(*numbers: int) -> Key:
    """A key that other ranks can make too: for tests of bits."""
    return Key.agreed(bytes([*numbers, 5]).ljust(32, b"\0"))


def values(rank: int, length: int, kind: str) -> Array:
    return np.random.default_rng((rank, length)).normal(0, 1e-3, length).astype(kind)


def factor(rank: int) -> float:
    return 1 / (rank + 1.7)


# ---- sums -------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", WORLDS)
def test_sums_are_those_of_numpy_bit_by_bit(world_size: int, tmp_path: Path) -> None:
    assert in_group(world_size, sum_all, tmp_path) == [[]] * world_size


# ---- the release ------------------------------------------------------------------------------


def expected(grid: Lattice, length: int, kind: str, out_kind: str, scale: float) -> Array:
    """Encoding, numpy's sum and decoding by the existing functions, with the same noise."""
    total = np.zeros(length, codec.message_type(grid))
    for rank in range(grid.world_size):
        total += codec.encode(
            values(rank, length, kind), grid, secret(200, rank), factor=factor(rank)
        ).message
    return codec.decode(total, grid, scale=scale, out=np.empty(length, out_kind))


def pads(rank: int, world_size: int) -> list[tuple[Key, bool]]:
    return [
        (secret(min(rank, other), max(rank, other)), rank > other)
        for other in range(world_size)
        if other != rank
    ]


def release_all(
    endpoint: SharedMemory, *, bits: int, kind: str, out_kind: str, masked: bool
) -> list[int]:
    """Return the lengths at which the result differs from the expected one."""
    grid, wrong = lattice(bits, endpoint.world_size), []
    for length in LENGTHS:
        mine = values(endpoint.rank, length, kind)
        before, out = mine.copy(), np.full(length, 7, out_kind)
        endpoint.release(
            mine,
            out,
            grid=grid,
            noise=FreshNoise(secret(200, endpoint.rank)),
            factor=factor(endpoint.rank),
            scale=1 / 3,
            masks=pads(endpoint.rank, endpoint.world_size) if masked else (),
        )
        want = expected(grid, length, kind, out_kind, 1 / 3)
        if out.tobytes() != want.tobytes() or mine.tobytes() != before.tobytes():
            wrong.append(length)
    return wrong


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "types",
    [(16, "float32", "float32"), (32, "float32", "float64"), (32, "float64", "float32")],
)
def test_a_release_is_encoding_summing_and_decoding_bit_by_bit(
    world_size: int, masked: bool, types: tuple[int, str, str], tmp_path: Path
) -> None:
    bits, kind, out_kind = types
    work = partial(release_all, bits=bits, kind=kind, out_kind=out_kind, masked=masked)
    assert in_group(world_size, work, tmp_path) == [[]] * world_size


def in_place_from_a_pool(endpoint: SharedMemory) -> tuple[bool, int, int]:
    """By a pool of one agreed key the noise is the key's stream."""
    length = 3 * BLOCK + 5
    grid = lattice(32, endpoint.world_size)
    data = values(endpoint.rank, length, "float32")
    with NoisePool(grid.sigma, secret(200, endpoint.rank), capacity=1 << 18) as pool:
        while pool.stats().ready < length:
            time.sleep(0.001)
        saturated = endpoint.release(
            data, data, grid=grid, noise=pool, factor=factor(endpoint.rank)
        )
        used = pool.stats().used
    return (
        bool(np.array_equal(data, expected(grid, length, "float32", "float32", 1))),
        used,
        saturated,
    )


def test_a_pool_serves_and_the_result_may_take_the_values_place(tmp_path: Path) -> None:
    assert in_group(2, in_place_from_a_pool, tmp_path) == [(True, 3 * BLOCK + 5, 0)] * 2


def contribute_all(endpoint: SharedMemory, *, masked: bool) -> list[int]:
    """Return the lengths at which a contribution differs from its factor's release."""
    grid, wrong = lattice(32, endpoint.world_size), []
    for length in LENGTHS:
        mine, out = values(endpoint.rank, length, "float32"), np.empty(length, np.float32)
        clip = 0.4 * max(float(np.linalg.norm(mine)), 1e-3) * (1 + 2 * (endpoint.rank == 0))
        want = np.empty_like(out)
        pairs = endpoint.rank, endpoint.world_size
        options: dict[str, Any] = {"grid": grid, "masks": pads(*pairs) if masked else ()}
        noise = FreshNoise(secret(200, endpoint.rank))
        endpoint.release(mine, want, noise=noise, factor=codec.clip_factor(mine, clip), **options)
        options["masks"] = pads(*pairs) if masked else ()
        noise = FreshNoise(secret(200, endpoint.rank))
        found = endpoint.contributions(noise=noise, clip=clip, **options)(mine, out)
        if found != (0, True) or out.tobytes() != want.tobytes():
            wrong.append(length)
    return wrong


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("world_size", [1, 3])
def test_a_contribution_is_the_release_of_its_factor(
    world_size: int, masked: bool, tmp_path: Path
) -> None:
    work = partial(contribute_all, masked=masked)
    assert in_group(world_size, work, tmp_path) == [[]] * world_size


def not_finite(endpoint: SharedMemory) -> tuple[bool, bool]:
    """Rank 1's are not, at the end of a vector of two blocks, in place."""
    grid = lattice(32, endpoint.world_size)
    mine = np.full(BLOCK + 9, 1e-3, np.float32)
    if endpoint.rank == 1:
        mine[-1] = np.nan
    noise = FreshNoise(secret(200, endpoint.rank))
    _, finite = endpoint.contributions(grid=grid, noise=noise, clip=1.0)(mine, mine)
    zeros, want = np.full(BLOCK + 9, 1e-3 * (endpoint.rank == 0), np.float32), np.empty_like(mine)
    noise = FreshNoise(secret(200, endpoint.rank))
    endpoint.release(zeros, want, grid=grid, noise=noise)
    return finite, np.array_equal(mine, want)


def test_a_contribution_that_is_not_finite_counts_as_zeros(tmp_path: Path) -> None:
    assert in_group(2, not_finite, tmp_path) == [(True, True), (False, True)]


def saturating(endpoint: SharedMemory) -> int:
    grid = Lattice(-30, 2.0**20, 1 << 10, 13, 32, endpoint.world_size)
    data = np.zeros(BLOCK + 9, np.float32)
    data[[3, BLOCK + 2][: endpoint.rank + 1]] = 1.0
    return endpoint.release(data, np.empty_like(data), grid=grid, noise=FreshNoise(Key()))


def test_each_rank_counts_its_own_saturated_values(tmp_path: Path) -> None:
    assert in_group(2, saturating, tmp_path) == [1, 2]


def noise_alone(endpoint: SharedMemory) -> Array:
    zeros = np.zeros(200_000)
    out = np.empty_like(zeros)
    grid = lattice(32, endpoint.world_size)
    endpoint.release(zeros, out, grid=grid, noise=FreshNoise(Key()))
    return out / grid.step


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_sums_noise_has_the_variance_of_all_ranks_noise(
    world_size: int, tmp_path: Path
) -> None:
    """χ² of 200,000 draws, false alarm 1e-6; 2/3 and 3/2 of the variance are refused."""
    results = in_group(world_size, noise_alone, tmp_path)
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])
    grid = lattice(32, world_size)
    # Each rank's rounding to the wire lattice adds a twelfth of a squared step.
    theory = world_size * (grid.sigma**2 + 4.0**grid.wire_shift / 12)
    found = float(np.sum(results[0] ** 2)) / theory
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], results[0].size)
    assert low < found < high
    assert not low < found * 3 / 2 < high
    assert not low < found * 2 / 3 < high
    assert stats.kstest(results[0] / theory**0.5, "norm").pvalue > 1e-6


def slots(marker: bytes) -> bool:
    """Whether bytes stand anywhere in memory that this process shares."""
    with Path("/proc/self/mem").open("rb", buffering=0) as memory:
        for line in Path("/proc/self/maps").read_text().splitlines():
            if "memfd:dither" in line:
                start, end = (int(part, 16) for part in line.split()[0].split("-"))
                memory.seek(start)
                if marker in memory.read(end - start):
                    return True
    return False


def look_for_values(endpoint: SharedMemory, *, clear: bool) -> bool:
    data = values(endpoint.rank, 1000, "float32")
    grid = lattice(32, endpoint.world_size)
    if clear:
        endpoint.all_reduce(data.copy())
        endpoint.all_reduce(np.rint(data / grid.wire_step).astype(np.int32))
    else:
        endpoint.release(data, np.empty_like(data), grid=grid, noise=FreshNoise(Key()))
    wire = np.rint(data / grid.wire_step).astype(np.int32)
    return slots(data[100:104].tobytes()) or slots(wire[100:104].tobytes())


def test_no_clear_value_is_ever_in_shared_memory(tmp_path: Path) -> None:
    hidden = in_group(2, partial(look_for_values, clear=False), tmp_path / "hidden")
    assert hidden == [False, False]
    assert in_group(2, partial(look_for_values, clear=True), tmp_path / "clear") == [True, True]


def look_for_unmasked(endpoint: SharedMemory, *, masked: bool) -> bool:
    """Whether the noisy message, which `encode` gives again, lies in the segment without pads."""
    data, grid = values(endpoint.rank, 1000, "float32"), lattice(32, endpoint.world_size)
    endpoint.release(
        data,
        np.empty_like(data),
        grid=grid,
        noise=FreshNoise(secret(200, endpoint.rank)),
        masks=pads(endpoint.rank, endpoint.world_size) if masked else (),
    )
    noisy = codec.encode(data, grid, secret(200, endpoint.rank)).message
    return slots(noisy[100:104].tobytes())


def test_a_masked_message_is_in_shared_memory_only_with_its_pads(tmp_path: Path) -> None:
    masked = in_group(2, partial(look_for_unmasked, masked=True), tmp_path / "masked")
    assert masked == [False, False]
    assert in_group(2, partial(look_for_unmasked, masked=False), tmp_path / "bare") == [True, True]


def encrypt(endpoint: SharedMemory) -> bool:
    grid, right = lattice(16, endpoint.world_size), True
    for length in LENGTHS:
        every = [contribution(rank, length, "int16") for rank in range(endpoint.world_size)]
        pad, total = every[endpoint.rank].copy(), sum(every, np.zeros(length, np.int16))
        data = np.rint(np.linspace(-50, 50, length)) * grid.wire_step
        out = np.empty(length)
        endpoint.encrypted(data, out, grid=grid, pad=pad, total=total)
        right &= np.array_equal(out, endpoint.world_size * data)
    return bool(right)


@pytest.mark.parametrize("world_size", WORLDS)
def test_encryption_gives_the_exact_sum(world_size: int, tmp_path: Path) -> None:
    assert in_group(world_size, encrypt, tmp_path) == [True] * world_size


# ---- messages ---------------------------------------------------------------------------------


def around(endpoint: SharedMemory) -> bool:
    size, rank = endpoint.world_size, endpoint.rank
    right = True
    for length in (0, 1, 7, BLOCK, 1_000_003):
        mine, got = contribution(rank, length, "uint8"), np.empty(length, np.uint8)
        endpoint.exchange((rank + 1) % size, mine, (rank - 1) % size, got)
        right &= np.array_equal(got, contribution((rank - 1) % size, length, "uint8"))
    return bool(right)


@pytest.mark.parametrize("world_size", WORLDS)
def test_messages_go_round_a_ring_of_ranks_that_all_send(world_size: int, tmp_path: Path) -> None:
    assert in_group(world_size, around, tmp_path) == [True] * world_size


def one_way(endpoint: SharedMemory) -> bool:
    lengths = [3, 0, 100_000, 1, 5]
    if endpoint.rank == 0:
        for length in lengths:
            message = contribution(0, length, "float64")
            endpoint.send(1, message)
            message[:] = 0  # it has left
        return True
    time.sleep(0.05)
    got = [np.empty(length) for length in lengths]
    for out in got:
        endpoint.receive(0, out)
    return all(np.array_equal(out, contribution(0, out.size, "float64")) for out in got)


def test_messages_arrive_whole_and_in_order(tmp_path: Path) -> None:
    assert in_group(2, one_way, tmp_path) == [True, True]
