"""The encrypted baseline is right, hides all on the wire, and has none of HEAR's code's defects."""

from __future__ import annotations

import copy
import pickle
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tests.noise.processes import in_child

from dither.errors import ConfigError, DitherError, MismatchError, NoiseError, ReduceError
from dither.reduce.endpoint import Buffer, Endpoint
from dither.reduce.protections import pads
from dither.reduce.protections.encrypted import Encryption, fixed_point_exponent
from dither.reduce.protections.keys import ClusterSecret
from dither.reduce.protections.pads import CHUNK
from dither.reduce.transports.shared_memory import SharedMemory
from dither.reduce.transports.threads import run_ranks

ALARM = 1e-9  # of each χ² test; below 1e-6 for all of this file
HEAR_BLOCK = 65_536
TIMEOUT = 20.0
LENGTHS = [1, 0, 7, CHUNK - 3, 3, 2 * CHUNK + 5, 1000]
Array = np.ndarray[tuple[int], np.dtype[Any]]


def values_of(rank: int, length: int, largest: float) -> Array:
    random = np.random.default_rng([rank, length])
    return random.uniform(-largest, largest, length).astype(np.float32)


def agreed(world_size: int, largest: float = 1.0) -> list[Encryption]:
    return run_ranks(world_size, lambda endpoint: Encryption.agree(endpoint, largest=largest))


def sent(ranks: list[Encryption], values: list[Array]) -> list[Array]:
    messages = [np.empty(one.size, np.int32) for one in values]
    for encryption, one, message in zip(ranks, values, messages, strict=True):
        encryption.encrypt(one, message)
    return messages


def summed(ranks: list[Encryption], values: list[Array]) -> list[Array]:
    """What each rank decrypts."""
    total = np.add.reduce(sent(ranks, values), dtype=np.int32)
    found = [np.empty_like(one) for one in values]
    for encryption, out in zip(ranks, found, strict=True):
        encryption.decrypt(total, out)
    return found


def bytes_look_uniform(message: Array) -> bool:
    columns = message.view(np.uint8).reshape(-1, message.itemsize).T
    counts = [np.bincount(column, minlength=256) for column in columns]
    return all(stats.chisquare(one).pvalue > ALARM for one in counts)


# ---- right ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [1.0, 0.37, 1e-20, 3e25])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 9])
def test_sums_are_right_within_the_fixed_point_error(world_size: int, largest: float) -> None:
    ranks = agreed(world_size, largest)
    step = ranks[0].step
    assert largest / step <= 2**31 / world_size < 2 * largest / step * (1 + 1e-6)
    for length in LENGTHS:
        values = [values_of(rank, length, largest) for rank in range(world_size)]
        right = np.sum(values, axis=0, dtype=np.float64)
        found = summed(ranks, values)
        allowed = world_size * step / 2 + np.abs(right) * 2.0**-23
        assert all((np.abs(one - right) <= allowed).all() for one in found)
        assert all(np.array_equal(one, found[0]) for one in found)


@pytest.mark.parametrize("algorithm", ["naive", "ring", "binomial", "auto"])
def test_reduce_sums_in_place_over_an_endpoint(algorithm: str) -> None:
    length = CHUNK + 1001  # more than one block

    def function(endpoint: Endpoint) -> tuple[Array, Array]:
        secret = ClusterSecret(bytes(range(32)))
        with Encryption.agree(endpoint, largest=1.0, authentication=secret) as encryption:
            assert encryption.authentication == "cluster secret"
            found = []
            for size in (length, 0, 3):
                values = values_of(endpoint.rank, size, 1.0)
                encryption.reduce(endpoint, values, algorithm)
                found.append(values)
        return found[0], found[2]

    for long, short in run_ranks(3, function):
        for found in (long, short):
            right = np.sum([values_of(rank, found.size, 1.0) for rank in range(3)], 0, np.float64)
            assert np.abs(found - right).max() < 1e-6


def test_integers_are_summed_mod_2_to_the_32() -> None:
    random = np.random.default_rng(0)
    values = [random.integers(-(2**31), 2**31 - 1, 1001, np.int32) for _ in range(4)]
    ranks = agreed(4)
    for _ in range(2):
        found = summed(ranks, values)
        assert all((one == np.add.reduce(values, dtype=np.int32)).all() for one in found)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_one_pass_through_shared_memory_gives_the_same_bits(world_size: int) -> None:
    """As encryption, an algorithm and decryption one after the other; calls of both may mix."""
    lengths = [0, 1, CHUNK + 7, 1000, CHUNK, 3]

    def function(endpoint: Endpoint) -> list[Array]:
        with SharedMemory.over(endpoint) as shared, Encryption.agree(shared, largest=1.0) as one:
            found = []
            for length in lengths:
                fused, stepwise = (values_of(endpoint.rank, length, 1.0) for _ in range(2))
                one.reduce(shared, fused)
                one.reduce(shared, stepwise, "ring")
                assert np.array_equal(fused, stepwise)
                found.append(fused)
            integers = np.full(CHUNK + 1, 2**30, np.int32)
            one.reduce(shared, integers)
            assert (integers == np.int64(world_size * 2**30).astype(np.int32)).all()
        return found

    for found in run_ranks(world_size, function, timeout=TIMEOUT):
        for length, one in zip(lengths, found, strict=True):
            values = [values_of(rank, length, 1.0) for rank in range(world_size)]
            right = np.sum(values, axis=0, dtype=np.float64)
            assert np.abs(one - right).max(initial=0) < 1e-6


def test_through_shared_memory_a_value_beyond_the_bound_is_refused_where_it_is() -> None:
    def function(endpoint: Endpoint) -> bool:
        with SharedMemory.over(endpoint) as shared:
            one = Encryption.agree(shared, largest=1.0)
            values = np.full(10, 1.5 if endpoint.rank else 0.5, np.float32)
            if endpoint.rank == 0:
                one.reduce(shared, values)
                assert values == pytest.approx(1.5)  # the other's were clamped
                return True
            with pytest.raises(ReduceError, match="magnitude at most 1"):
                one.reduce(shared, values)
            assert (values == 0).all()
            with pytest.raises(NoiseError, match="spent"):
                one.reduce(shared, values)
            return True

    assert all(run_ranks(2, function, timeout=TIMEOUT))


def test_one_pass_does_not_overtake_messages_under_way() -> None:
    def function(endpoint: Endpoint) -> None:
        with SharedMemory.over(endpoint) as shared:
            one = Encryption.agree(shared, largest=1.0)
            one.encrypt(np.zeros(3, np.float32), np.empty(3, np.int32))
            with pytest.raises(MismatchError, match="no other message under way"):
                one.reduce(shared, np.zeros(3, np.float32))

    run_ranks(1, function)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("world_size", range(1, 10))
@pytest.mark.parametrize("largest", [1.0, 0.99999994, 3.0, 2.0**31 - 1])
def test_there_is_room_for_all_ranks_at_the_bound(
    world_size: int, largest: float, sign: int
) -> None:
    value = np.float32(largest)
    if float(value) > largest:
        value = np.nextafter(value, np.float32(0))
    values = [np.full(3, sign * value, np.float32) for _ in range(world_size)]
    right = sign * float(value) * world_size
    assert summed(agreed(world_size, largest), values)[0] == pytest.approx(right, rel=1e-6)


def test_however_pads_are_made_they_fit() -> None:
    """By a thread on one rank, beforehand on another, when needed on the third."""
    ranks = agreed(3)
    ranks[0].start(3 * CHUNK)
    ranks[1].prepare(CHUNK + 1)
    assert ranks[1].ready == 2 * CHUNK
    assert ranks[2].ready == 0
    deadline = time.monotonic() + 60
    while ranks[0].ready < 3 * CHUNK and time.monotonic() < deadline:
        time.sleep(0.001)
    assert 3 * CHUNK <= ranks[0].ready < 4 * CHUNK
    for length in (CHUNK // 2, CHUNK, 3 * CHUNK, 5 * CHUNK + 1):
        values = [values_of(rank, length, 1.0) for rank in range(3)]
        found = summed(ranks, values)
        assert np.abs(found[2] - np.sum(values, axis=0)).max() < 1e-5
    while ranks[0].ready < 3 * CHUNK and time.monotonic() < deadline:
        time.sleep(0.001)
    assert ranks[0].ready >= 3 * CHUNK
    for encryption in ranks:
        encryption.close()
        encryption.close()


def test_memory_is_bounded() -> None:
    """Used pads make room for new ones: forty chunks pass through a few."""
    ranks = agreed(2)
    for _ in range(20):
        summed(ranks, [np.zeros(2 * CHUNK, np.float32)] * 2)
    for encryption in ranks:
        assert encryption._pads is not None
        assert 1 <= len(encryption._pads._used) <= 4
        assert len(encryption._pads._chunks) <= 1


def test_several_messages_may_be_under_way() -> None:
    ranks = agreed(2)
    lengths = (CHUNK + 1, 3, CHUNK)
    values = [[values_of(rank, length, 1.0) for rank in range(2)] for length in lengths]
    totals = [np.add.reduce(sent(ranks, one), dtype=np.int32) for one in values]
    for total, one in zip(totals, values, strict=True):
        out = np.empty(total.size, np.float32)
        for encryption in ranks:
            encryption.decrypt(total, out)
        assert np.abs(out - (one[0].astype(np.float64) + one[1])).max() < 1e-7


# ---- hidden --------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_messages_and_their_sum_are_uniform_on_the_wire(world_size: int) -> None:
    ranks = agreed(world_size)
    messages = sent(ranks, [np.full(CHUNK, 0.25, np.float32)] * world_size)
    assert all(bytes_look_uniform(message) for message in messages)
    assert bytes_look_uniform(np.add.reduce(messages, dtype=np.int32))


def test_without_pads_the_test_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pads, "add_mask", lambda values, key: None)
    monkeypatch.setattr(pads, "subtract_mask", lambda values, key: None)
    message = sent(agreed(2), [values_of(rank, CHUNK, 1e-3) for rank in range(2)])[0]
    assert not bytes_look_uniform(message)


@pytest.mark.parametrize("dtype", ["float32", "int32"])
@pytest.mark.parametrize("algorithm", ["naive", "ring", "recursive_doubling"])
def test_all_that_an_algorithm_sends_is_uniform(algorithm: str, dtype: str) -> None:
    """Unlike masks: even the last messages, which carry the whole sum."""
    seen: list[Buffer] = []

    def observe(sender: int, receiver: int, message: Buffer) -> None:
        if message.dtype == np.int32:
            seen.append(message)

    def function(endpoint: Endpoint) -> None:
        values = np.full(CHUNK, endpoint.rank, dtype)
        Encryption.agree(endpoint, largest=10.0).reduce(endpoint, values, algorithm)
        assert (values == 6).all()

    run_ranks(4, function, observe=observe)
    assert seen
    assert all(bytes_look_uniform(message) for message in seen)


def test_pads_never_repeat_in_blocks_or_calls() -> None:
    """HEAR's code uses the pads of its first block in every block."""
    ranks = agreed(3)
    stream = [
        np.concatenate(parts)
        for parts in zip(
            *(sent(ranks, [np.zeros(n, np.float32)] * 3) for n in (3 * CHUNK, CHUNK, 17, CHUNK)),
            strict=True,
        )
    ]
    stream.append(np.add.reduce(stream, dtype=np.int32))
    for message in stream:
        for shift in (
            256,
            1024,
            CHUNK // 2,
            CHUNK,
            2 * CHUNK,
            3 * CHUNK,
            4 * CHUNK,
            4 * CHUNK + 17,
        ):
            assert bytes_look_uniform(message[shift:] - message[:-shift])


def test_equal_messages_differ_on_the_wire_and_between_sessions() -> None:
    """HEAR's code draws its keys from a generator that nobody seeded: each run has the same."""
    values = [np.full(CHUNK, 0.5, np.float32)] * 2
    ranks = agreed(2)
    first, second, other = sent(ranks, values), sent(ranks, values), sent(agreed(2), values)
    for one, another in ((first, second), (first, other), (second, other)):
        for rank in range(2):
            assert bytes_look_uniform(one[rank] - another[rank])


@pytest.mark.parametrize("victim", [0, 1, 2, 3])
def test_neighbours_read_a_rank_as_documented(victim: int) -> None:
    """Which is why this is a baseline: two ranks (one, at the ends) together read a third."""
    ranks = agreed(4)
    values = [np.full(CHUNK, 0.125 * rank, np.float32) for rank in range(4)]
    wire = sent(ranks, values)[victim]
    known = np.zeros(CHUNK, np.int32)
    chunks = [encryption._pads.at(0) for encryption in ranks if encryption._pads is not None]
    group = chunks[0].group
    keystreams = [group]  # F(k_r), as rank r − 1 knows it from its own F(k_{r-1}) − F(k_r)
    for chunk in chunks[:-1]:
        keystreams.append(keystreams[-1] - chunk.difference)
    known += keystreams[victim]
    if victim < 3:
        known -= keystreams[victim + 1]
    read = (wire - known) * ranks[0].step
    assert np.abs(read - values[victim]).max() <= ranks[0].step
    assert (keystreams[3] == chunks[3].difference).all()


# ---- used wrongly --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float16", "int16", "int64", "uint32", "bool"])
def test_what_cannot_be_encrypted_is_refused_and_nothing_sent(dtype: str) -> None:
    seen: list[np.dtype[Any]] = []

    def function(endpoint: Endpoint) -> None:
        encryption = Encryption.agree(endpoint, largest=1.0)
        values = np.ones(10, dtype)
        message = np.full(10, 5, np.int32)
        with pytest.raises(ConfigError, match="float32 or int32 array"):
            encryption.encrypt(values, message)
        with pytest.raises(ConfigError, match="float32 or int32 array"):
            encryption.reduce(endpoint, values)
        assert (message == 5).all()
        assert (values == np.ones(10, dtype)).all()

    run_ranks(2, function, observe=lambda *message: seen.append(message[2].dtype))
    assert set(seen) == {np.dtype(np.uint8)}  # the key agreement's


@pytest.mark.parametrize("bad", [1.01, -1.01, np.nan, np.inf, -np.inf, 3e38])
def test_a_value_beyond_the_bound_is_refused_and_spends_it(bad: float) -> None:
    encryption = agreed(2)[0]
    values = np.zeros(CHUNK + 10, np.float32)
    values[CHUNK + 5] = bad
    message = np.ones(CHUNK + 10, np.int32)
    with pytest.raises(ReduceError, match="magnitude at most 1"):
        encryption.encrypt(values, message)
    assert (message == 0).all()
    for attempt in (
        lambda: encryption.encrypt(values, message),
        lambda: encryption.decrypt(message, values),
        lambda: encryption.prepare(1),
        lambda: encryption.start(1),
        lambda: encryption.ready,
    ):
        with pytest.raises(NoiseError, match="spent after an earlier ReduceError"):
            attempt()


def test_decryption_out_of_order_is_refused() -> None:
    ranks = agreed(2)
    sent(ranks, [np.zeros(10, np.float32)] * 2)
    with pytest.raises(MismatchError, match="the sum of 10 float32, got 9 float32"):
        ranks[0].decrypt(np.zeros(9, np.int32), np.zeros(9, np.float32))
    with pytest.raises(MismatchError, match="the sum of 10 float32, got 10 int32"):
        ranks[1].decrypt(np.zeros(10, np.int32), np.zeros(10, np.int32))
    with pytest.raises(MismatchError, match="0 nothing"):
        agreed(1)[0].decrypt(np.zeros(9, np.int32), np.zeros(9, np.float32))


def test_arrays_that_do_not_fit_each_other_are_refused() -> None:
    encryption = agreed(1)[0]
    both = np.zeros(10, np.int32)
    for values, message in ((np.zeros(3, np.float32), np.zeros(4, np.int32)), (both, both)):
        with pytest.raises(ConfigError, match="of one size, in memory of their own"):
            encryption.encrypt(values, message)
    assert encryption.ready == 0


@pytest.mark.parametrize("largest", [0.0, -1.0, float("nan"), float("inf"), 1e31, 1e-26])
def test_a_bound_out_of_range_is_refused(largest: float) -> None:
    with pytest.raises(ConfigError, match="a largest magnitude between"):
        fixed_point_exponent(largest, 2)


def test_different_bounds_are_refused_on_all_ranks() -> None:
    def function(endpoint: Endpoint) -> str:
        with pytest.raises(DitherError) as error:
            Encryption.agree(endpoint, largest=1.0 + endpoint.rank)
        return f"{type(error.value).__name__} {error.value}"

    texts = set(run_ranks(2, function))
    assert len(texts) == 1
    assert "MismatchError expected the same largest" in texts.pop()


def test_a_forked_child_may_not_use_ready_pads() -> None:
    """The parent will use them too. Pads were ready, so no key would notice."""
    ranks = agreed(2)
    for encryption in ranks:
        encryption.start(CHUNK)
        encryption.prepare(CHUNK)
    values = [np.zeros(10, np.float32)] * 2

    def child() -> bytes:
        try:
            sent(ranks, values)
        except NoiseError as error:
            ranks[0].close()
            return str(error).encode()
        return b"nothing was refused"

    assert b"parent and child would use the same pads" in in_child(child)
    assert (summed(ranks, values)[0] == 0).all()
    for encryption in ranks:
        encryption.close()


def test_a_failed_sum_spends_it() -> None:
    def function(endpoint: Endpoint) -> None:
        encryption = Encryption.agree(endpoint, largest=1.0)
        values = np.zeros(10, np.float32)
        with pytest.raises(ConfigError):
            encryption.reduce(endpoint, values, "no such algorithm")
        with pytest.raises(NoiseError, match="spent after an earlier ConfigError"):
            encryption.reduce(endpoint, values)

    run_ranks(2, function)


def test_closing_wipes_what_is_left() -> None:
    encryption = agreed(2)[0]
    encryption.prepare(2 * CHUNK)
    inner = encryption._pads
    assert inner is not None
    chunks = list(inner._chunks)
    assert all(chunk.difference.any() and chunk.group.any() for chunk in chunks)
    encryption.close()
    assert not any(chunk.difference.any() or chunk.group.any() for chunk in chunks)


def test_it_is_not_copied_or_pickled() -> None:
    encryption = agreed(1)[0]
    attempts: list[Callable[[object], object]] = [pickle.dumps, copy.copy, copy.deepcopy]
    for attempt in attempts:
        with pytest.raises(NoiseError, match="pads that stay in their process"):
            attempt(encryption)
