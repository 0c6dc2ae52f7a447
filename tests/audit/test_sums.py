"""Games against private sums: no observer passes its ceiling, and each would see a defect.

Intervals hold with 99.999 % each, so a test of some 70 rows gives a false alarm below 1e-3.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dither.audit.sums import (
    DIMENSION,
    INFERENCES,
    Row,
    Seen,
    contributions,
    hypotheses,
    judge,
    play,
)
from dither.audit.telling import gaussian_ceiling, says_second, told
from dither.errors import ConfigError
from dither.noise.codec import decode
from dither.privacy.trust import CENTRAL, LOCAL, Trust
from dither.reduce.private_reduce import PrivateReduce, Promise
from dither.reduce.simulate import trusts
from dither.reduce.transports.threads import Threads, run_ranks

GAMES = 8192


def played(trust: Trust, ranks: int, noise: float = 1.0, games: int = GAMES) -> Seen:
    return play(trust, ranks, games=games, generator=np.random.default_rng(ranks), noise=noise)


def rows_of(trust: Trust, ranks: int, noise: float = 1.0) -> list[Row]:
    return judge(played(trust, ranks, noise), trust, ranks)


def one(rows: list[Row], observer: str, inference: str = "mean") -> Row:
    return next(r for r in rows if r.observer == observer and r.inference == inference)


@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_every_observer_stays_within_its_ceiling(ranks: int) -> None:
    for trust in trusts(ranks):
        rows = rows_of(trust, ranks)
        assert all(row.within for row in rows)
        # The attack on the mean is the best there is, so what it does not find is not there.
        mean = [row for row in rows if row.inference == "mean"]
        assert all(row.high >= row.ceiling for row in mean)
        kept = [row for row in rows if row.promised]
        assert all(row.ceiling <= row.promise + 1e-9 for row in kept)
        assert {row.inference for row in kept} == set(INFERENCES)


@pytest.mark.full
def test_a_thousand_ranks() -> None:
    for trust in trusts(1024):
        assert all(row.within for row in rows_of(trust, 1024))


@pytest.mark.parametrize("trust", [LOCAL, CENTRAL, Trust("distributed", 3)])
def test_half_of_the_noise_is_noticed(trust: Trust) -> None:
    rows = rows_of(trust, 8, noise=0.5)
    assert not one(rows, "wire" if trust == LOCAL else "result").within


def test_what_a_trust_does_not_promise_is_said_and_is_true() -> None:
    central = rows_of(CENTRAL, 64)
    wire = one(central, "wire")
    assert not wire.promised
    assert wire.low > wire.promise  # the network does learn more than ε allows
    assert one(central, "result").promised
    masked = rows_of(Trust("distributed", 7), 64)
    assert one(masked, "coalition of 7").promised
    beyond = one(masked, "coalition of 63")
    assert not beyond.promised
    assert beyond.low > beyond.promise
    assert all(row.promised for row in rows_of(LOCAL, 8))


def test_a_masked_message_alone_tells_nothing() -> None:
    seen = played(Trust("distributed", 2), 8)
    row = one(judge(seen, Trust("distributed", 2), 8), "one masked message")
    assert row.ceiling == 0.0
    assert row.within
    # It is the masked one: in clear it would be within reach of its own noise.
    assert np.abs(seen.alone()).mean() > 4 * seen.share


@pytest.mark.parametrize("ranks", [3, 12])
@pytest.mark.parametrize("trust", [LOCAL, Trust("distributed", 1)])
def test_the_sum_is_that_of_what_was_sent(trust: Trust, ranks: int) -> None:
    """Over the transport and simulated: without the others' noise the victim's own is left."""
    seen = played(trust, ranks, games=64)
    own = decode(seen.total - seen.sent[ranks - 1], seen.lattice).reshape(*seen.coins.shape, -1)
    if trust == LOCAL:
        assert np.array_equal(own, seen.alone())
    noise = own - _clear(seen)
    # Statistical contributions are not known here: of the other two inferences.
    spread = noise[:2].std() / seen.share
    assert 0.85 < spread < 1.15


def _clear(seen: Seen) -> np.ndarray:
    clear = np.zeros((*seen.coins.shape, DIMENSION))
    for place, inference in enumerate(INFERENCES[:2]):
        first, second = hypotheses(inference, seen.plan.l2_clip)
        clear[place] = np.where(seen.coins[place][:, None], second, first)
    return clear


def test_contributions_stay_in_the_ball_and_depend_on_the_coins() -> None:
    random = np.random.default_rng(0)
    coins = random.random((3, 5000)) < 0.5
    values = contributions(coins, 2.5, random)
    assert np.linalg.norm(values.astype(np.float64), axis=2).max() <= 2.5
    second = hypotheses("statistical", 2.5)[1]
    sides = values[2] @ second > 0
    assert (sides == coins[2]).mean() > 0.9


def test_the_shipped_call_shows_no_more(tmp_path: Path) -> None:
    """`PrivateReduce` from end to end, every message read on its way: 1500 calls of two ranks."""
    games, promise = 1500, Promise(clip=1.0, releases=1500, delta=1e-6, noise_multiplier=2.0)
    coins = np.random.default_rng(0).random(games) < 0.5
    first, second = hypotheses("mean", 1.0)
    values = np.where(coins[:, None], second, first).astype(np.float32)
    wire: list[np.ndarray] = []

    def observe(sender: int, _: int, content: np.ndarray) -> None:
        if sender == 0 and content.dtype in (np.int16, np.int32) and content.size == DIMENSION:
            wire.append(content.copy())

    def work(endpoint: Threads) -> np.ndarray:
        with PrivateReduce(
            endpoint, promise, ledger=tmp_path, algorithm="naive", lease=games
        ) as reduce:
            own = values if endpoint.rank == 0 else np.zeros_like(values)
            return np.stack([reduce(one.copy()) for one in own])

    results = run_ranks(2, work, observe=observe)
    lattice = promise.plan(2).bind(1.0, DIMENSION, 2)
    assert len(wire) == games
    seen = decode(np.concatenate(wire), lattice).reshape(games, DIMENSION)
    ceiling = gaussian_ceiling(2.0 / 2.0)
    for view, shares in ((seen, 1), (results[0], 2)):
        found = told(says_second(view, first, second), coins, 1.0 - 1e-6)
        assert found.within(gaussian_ceiling(1.0 / np.sqrt(shares)))
        assert found.reaches(gaussian_ceiling(1.0 / np.sqrt(shares)))
        assert found.low > 0.0
        assert found.within(ceiling)


@pytest.mark.parametrize(("ranks", "games"), [(1, 10), (8, 0)])
def test_no_game_without_ranks(ranks: int, games: int) -> None:
    with pytest.raises(ConfigError):
        play(LOCAL, ranks, games=games, generator=np.random.default_rng(0))
