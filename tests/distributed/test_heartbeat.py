"""While a rank is busy the others wait for it, as long as it lives."""

from __future__ import annotations

import time
from typing import Any

import pytest

from dither.errors import PeerError, ReduceError
from dither.reduce.transports.threads import Threads, try_ranks
from dither.train.distributed.heartbeat import during
from dither.train.distributed.ranks import EndpointRanks, on_all
from dither.train.distributed.world import World

LIMIT = 0.6  # seconds without a sign of life


@pytest.mark.parametrize("busy", [0, 1])
def test_a_rank_may_be_busy_for_longer_than_the_time_limit(busy: int) -> None:
    def rank(endpoint: Threads) -> float:
        start = time.monotonic()
        with World.over(endpoint) as world:
            found = world.act("be slow", lambda: time.sleep(3 * LIMIT if world.rank == busy else 0))
            assert found is None
        return time.monotonic() - start

    outcomes = try_ranks(3, rank, timeout=LIMIT)
    assert not outcomes.errors
    assert all(seconds >= 3 * LIMIT for seconds in outcomes.results)


def test_a_rank_that_stands_still_is_missed_while_another_is_busy() -> None:
    def rank(endpoint: Threads) -> float:
        start = time.monotonic()
        if endpoint.rank == 2:
            time.sleep(8 * LIMIT)  # its threads beat no more: a stopped process
            return 0.0
        try:
            during(endpoint, lambda: time.sleep(0 if endpoint.rank else 1.5 * LIMIT))
        except PeerError:
            return time.monotonic() - start
        raise AssertionError

    outcomes = try_ranks(3, rank, timeout=LIMIT)
    assert not outcomes.errors
    assert all(outcomes.results[other] < 4 * LIMIT for other in (0, 1))


def test_quick_actions_wait_for_no_beat() -> None:
    def rank(endpoint: Threads) -> float:
        with World.over(endpoint) as world:
            start = time.monotonic()
            for _ in range(20):
                world.first("be quick", lambda: 1)
            return time.monotonic() - start

    outcomes = try_ranks(2, rank, timeout=60.0)
    assert not outcomes.errors
    assert max(outcomes.results) < 5.0  # a beat would be 10 s


def test_a_checkpoint_or_charge_may_take_longer_than_the_time_limit() -> None:
    def rank(endpoint: Threads) -> list[Any]:
        def write() -> int:
            time.sleep(0 if endpoint.rank else 3 * LIMIT)  # rank 0 writes for all
            return endpoint.rank

        refused = ReduceError(expected="all", got="not all", fix="none")
        return on_all(EndpointRanks(endpoint), write, lambda _, __: refused)

    outcomes = try_ranks(3, rank, timeout=LIMIT)
    assert not outcomes.errors
    assert outcomes.results == [[0, 1, 2]] * 3


def test_what_an_action_raises_reaches_all_once_all_are_done() -> None:
    def rank(endpoint: Threads) -> Any:
        def action() -> int:
            time.sleep(1.5 * LIMIT * endpoint.rank)
            return 1 // endpoint.rank

        with World.over(endpoint) as world:
            try:
                return world.act("divide", action)
            except ZeroDivisionError:
                time.sleep(LIMIT / 2)  # a thread that leaves with an error breaks its group
                raise

    outcomes = try_ranks(2, rank, timeout=LIMIT)
    assert isinstance(outcomes.errors[0], ZeroDivisionError)
    assert isinstance(outcomes.errors[1], ReduceError)
    assert "could not divide" in str(outcomes.errors[1])


def test_an_interrupt_waits_for_nobody() -> None:
    class Interrupt(BaseException):
        pass

    def rank(endpoint: Threads) -> None:
        def action() -> None:
            if endpoint.rank == 0:
                raise Interrupt
            time.sleep(0.1)

        start = time.monotonic()
        try:
            during(endpoint, action)
        except Interrupt:
            assert time.monotonic() - start < LIMIT
            raise

    outcomes = try_ranks(2, rank, timeout=2 * LIMIT)
    assert isinstance(outcomes.errors[0], Interrupt)
    assert isinstance(outcomes.errors[1], PeerError)
