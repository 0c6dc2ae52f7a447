"""A pool that is held makes nothing: the cores are for the ranks of a release."""

from __future__ import annotations

import time

import pytest
from tests.noise.processes import in_child
from tests.noise.test_pool import BLOCK, SIGMA, WIDE, full, take

from dither.errors import NoiseError
from dither.noise.blocks import BlockCodec
from dither.noise.pool import NoisePool


def filled_after(pool: NoisePool, seconds: float) -> int:
    time.sleep(seconds)
    return pool.stats().filled


def test_a_held_pool_makes_nothing_until_it_is_let_go() -> None:
    with NoisePool(SIGMA) as pool:
        before = full(pool).filled
        with pool.held():
            take(pool, 2 * BLOCK)
            assert filled_after(pool, 0.2) == before
        assert full(pool).filled == before + 2 * BLOCK


def test_a_pool_that_lingers_waits_for_the_next_release() -> None:
    """The control of the first half: without lingering, blocks are made between two of them."""
    for linger, made_between in ((0.0, True), (0.5, False)):
        with NoisePool(SIGMA, capacity=16 * BLOCK) as pool:
            pool.linger(linger)
            before = full(pool).filled
            for _ in range(8):
                with pool.held():
                    take(pool, BLOCK)
                time.sleep(0.1)
            assert (pool.stats().filled > before) is made_between
            assert full(pool).filled == before + 8 * BLOCK  # once nobody comes any more


def test_a_child_of_a_held_pool_is_not_held() -> None:
    with NoisePool(SIGMA) as pool:
        full(pool)
        with pool.held():
            ready = in_child(lambda: str(full(pool).ready).encode())
    assert int(ready) > 0


def test_a_pool_that_is_closed_under_a_hold_is_said_to_be_closed() -> None:
    pool = NoisePool(SIGMA)
    codec = BlockCodec(WIDE, pool)
    with codec.held():
        pool.close()
    with pytest.raises(NoiseError, match="an open pool"), codec.held():
        pass
