"""Draws know nothing of each other: within a call, between calls, keys, and across a fork.

Every comparison makes five verdicts of 1e-7 (relations.py). What they are for is shown by samplers
whose draws do know of each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from tests.noise.laws import WIDE, Draws
from tests.noise.processes import in_child
from tests.noise.relations import Relation, lagged, partners, repeats

from dither.noise import simd
from dither.noise.codec import encode
from dither.noise.key import Key
from dither.noise.rounded import rounded_gaussian
from dither.privacy.lattice import Lattice

COUNT = 1 << 21
# Neighbours, lanes and rows (8), pairs of rows (16), superblocks (128), the core's batches (1024).
LAGS = [1, 2, 3, 4, 7, 8, 9, 16, 17, 64, 120, 128, 136, 1024, 1032, 65536]


def _drawn(key: Key, count: int = COUNT) -> Draws:
    return rounded_gaussian(WIDE, count, key)


@pytest.mark.parametrize("cipher", ["chacha20", "aes256"])
def test_draws_of_one_call_are_independent(cipher: str) -> None:
    """Sixteen lags and the partners of one radius: false alarm 8.5e-6."""
    drawn = _drawn(Key(cipher))
    found = {lag: lagged(drawn, lag).alarms() for lag in LAGS}
    assert {lag: alarms for lag, alarms in found.items() if alarms} == {}
    assert partners(drawn).alarms() == set()
    assert repeats(drawn) == 0


@pytest.mark.full
@pytest.mark.parametrize("path", simd.available())
def test_a_billion_draws_are_independent(path: str) -> None:
    """Correlations of 2e-4 would be noticed; three lags and the partners: false alarm 2e-6."""
    with simd.using(path):
        key = Key()
        found: dict[str, Relation] = {}
        for _ in range(500):
            drawn = _drawn(key)
            here = {str(lag): lagged(drawn, lag) for lag in (1, 8, 128)}
            here["partners"] = partners(drawn)
            found = {name: found[name] + one for name, one in here.items()} if found else here
    assert {name: one.alarms() for name, one in found.items() if one.alarms()} == {}


@pytest.mark.parametrize("path", simd.available())
def test_calls_of_one_key_are_independent(path: str) -> None:
    """Large ones, and small ones of a key's every superblock: false alarm 1.5e-6."""
    with simd.using(path):
        key = Key()
        calls = [_drawn(key) for _ in range(3)]
        small = np.stack([_drawn(key, 100) for _ in range(20_000)])
    for left, right in itertools.combinations(calls, 2):
        assert Relation.of(left, right).alarms() == set()
    assert Relation.of(small[1:].reshape(-1), small[:-1].reshape(-1)).alarms() == set()
    assert repeats(*calls, small.reshape(-1)) == 0


def test_ranks_are_independent() -> None:
    """Four ranks' keys, pair by pair, and their sum: false alarm 3e-6."""
    ranks = [_drawn(Key()) for _ in range(4)]
    for left, right in itertools.combinations(ranks, 2):
        assert Relation.of(left, right).alarms() == set()
    assert repeats(*ranks) == 0


def test_messages_of_ranks_are_independent() -> None:
    """Through the call that releases take, of one value: false alarm 5e-7."""
    grid = Lattice(0, WIDE, 1000, 0, 32, 1)
    values = np.full(COUNT, 0.25, np.float32)
    one, two = (encode(values, grid, Key()).message.astype(np.int64) for _ in range(2))
    assert Relation.of(one, two).alarms() == set()
    assert repeats(one, two) == 0


def test_keys_agreed_on_similar_bytes_are_independent() -> None:
    """One bit apart: false alarm 5e-7."""
    one, two = (_drawn(Key.agreed(bytes([bit] + [0] * 31))) for bit in (0, 1))
    assert Relation.of(one, two).alarms() == set()
    assert repeats(one, two) == 0


@pytest.mark.parametrize("cipher", ["chacha20", "aes256"])
def test_parent_and_forked_child_are_independent(cipher: str) -> None:
    """What both draw next, and what the parent drew before: false alarm 1.5e-6."""
    key = Key(cipher)
    before = _drawn(key)
    theirs = np.frombuffer(in_child(lambda: _drawn(key).tobytes()), np.int64)
    after = _drawn(key)
    assert theirs.size == COUNT
    for left, right in ((before, theirs), (after, theirs), (before, after)):
        assert Relation.of(left, right).alarms() == set()
    assert repeats(before, theirs, after) == 0


def test_two_children_are_independent() -> None:
    """False alarm 5e-7."""
    key = Key()
    one, two = (np.frombuffer(in_child(lambda: _drawn(key).tobytes()), np.int64) for _ in range(2))
    assert Relation.of(one, two).alarms() == set()
    assert repeats(one, two) == 0


# ---- what the verdicts are for ------------------------------------------------------------------


def _with_partners(change: Callable[[Draws, Draws], Draws]) -> Relation:
    """The sine parts as this makes them of both."""
    pairs = _drawn(Key()).reshape(-1, 2, 8)
    pairs[:, 1] = change(pairs[:, 0], pairs[:, 1])
    return partners(pairs.reshape(-1))


def _mixed(one: Draws, two: Draws, share: float) -> Draws:
    mixed: Draws = np.rint(share * one + np.sqrt(1 - share**2) * two).astype(np.int64)
    return mixed


def test_partners_of_one_per_cent_correlation_are_caught() -> None:
    """10 deviations: missed with probability 1e-6."""
    assert "values" in _with_partners(lambda one, two: _mixed(one, two, 0.01)).alarms()


def test_partners_that_share_a_wrong_radius_are_caught() -> None:
    """A common factor of 0.9 or 1.1, independent of the angle: 20 deviations, in squares only."""
    drawn = _drawn(Key()).reshape(-1, 2, 8)
    factors = np.random.default_rng().choice([0.9, 1.1], size=(drawn.shape[0], 1, 8))
    relation = partners(np.rint(drawn * factors).astype(np.int64).reshape(-1))
    assert relation.alarms() == {"squares"}


def test_partners_of_one_sign_are_caught() -> None:
    """One in fifty takes its partner's sign: 20 deviations."""

    def change(one: Draws, two: Draws) -> Draws:
        chosen = np.random.default_rng().random(two.shape) < 0.02
        return np.where(chosen, np.abs(two) * np.where(one < 0, -1, 1), two)

    assert "signs" in _with_partners(change).alarms()


def test_partners_that_share_low_bits_are_caught() -> None:
    """One in fifty takes its partner's low byte: 21 000 more in a cell of 4096."""

    def change(one: Draws, two: Draws) -> Draws:
        chosen = np.random.default_rng().random(two.shape) < 0.02
        return np.where(chosen, (two & ~255) | (one & 255), two)

    assert _with_partners(change).alarms() == {"low bits"}


@pytest.mark.parametrize("lag", [1, 8, 128])
def test_serial_correlation_of_one_per_cent_is_caught(lag: int) -> None:
    """14 deviations: missed with probability 1e-19."""
    drawn = _drawn(Key())
    assert "values" in lagged(_mixed(np.roll(drawn, lag), drawn, 0.01), lag).alarms()


def test_a_shared_key_is_caught() -> None:
    """Two ranks with one key, or a child that goes on with its parent's."""
    one, two = (_drawn(Key.agreed(bytes(32))) for _ in range(2))
    assert Relation.of(one, two).alarms() == {"values", "squares", "signs", "low bits", "equal"}
    assert repeats(one, two) == COUNT // 4


def test_one_superblock_in_a_thousand_drawn_twice_is_caught() -> None:
    """16 of 16 384: far too few for correlations."""
    one, two = (_drawn(Key()).reshape(-1, 128) for _ in range(2))
    two[::1024] = one[::1024]
    assert "equal" in Relation.of(one.reshape(-1), two.reshape(-1)).alarms()
    two = np.roll(two, 17, axis=0)  # and at another place only `repeats` sees them
    assert "equal" not in Relation.of(one.reshape(-1), two.reshape(-1)).alarms()
    assert repeats(one.reshape(-1), two.reshape(-1)) == 16 * 32
