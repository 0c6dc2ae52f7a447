"""Private sums of contributions: noise by trust, clipping, budget, refusals; ranks are threads."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dither.errors import (
    BudgetExhaustedError,
    ConfigError,
    DitherError,
    LedgerError,
    MismatchError,
    ReduceError,
    ReleaseError,
)
from dither.noise.codec import decode
from dither.privacy.account import Account
from dither.privacy.ledger import Ledger
from dither.privacy.trust import parse_trust
from dither.reduce.endpoint import Buffer, Endpoint
from dither.reduce.private_reduce import PrivateReduce, Promise
from dither.reduce.protections.private import BLOCK, Reduced
from dither.reduce.transports.threads import run_ranks
from dither.release.release import require_masks

SIZE = 1 << 15
Z = 0.7


def promise(**options: Any) -> Promise:
    return Promise(**{"clip": 1.0, "releases": 20, "delta": 1e-5, "noise_multiplier": Z, **options})


def on_ranks(
    size: int,
    act: Callable[[PrivateReduce], Any],
    folder: Path,
    *,
    promised: Callable[[int], Promise] = lambda _: promise(),
    observe: Any = None,
    **options: Any,
) -> list[Any]:
    """Run ``act`` on all ranks; a rank's error is its result, so that all can be compared."""

    def rank(endpoint: Endpoint) -> Any:
        try:
            with PrivateReduce(
                endpoint, promised(endpoint.rank), ledger=folder, noise_pool=False, **options
            ) as reduce:
                return act(reduce)
        except DitherError as error:
            return error

    return run_ranks(size, rank, timeout=60.0, observe=observe)


def is_sigma(found: np.ndarray, sigma: float) -> bool:
    """Whether a sample's variance fits σ²; false alarms below 1e-8."""
    error = 6.0 * math.sqrt(2.0 / found.size)
    return abs(float(np.mean(found.astype(np.float64) ** 2)) / sigma**2 - 1.0) < error


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("trust", ["local", "central", "distributed(1)"])
def test_the_noise_is_that_of_the_trust(trust: str, size: int, tmp_path: Path) -> None:
    """Accepts the right σ and rejects 2/3 and 3/2 of it; all ranks hold the same sum."""
    chosen = parse_trust(trust)
    if chosen.colluders >= size:
        pytest.skip("nobody would be honest")
    sums = on_ranks(
        size,
        lambda reduce: reduce(np.zeros(SIZE, np.float32)),
        tmp_path,
        promised=lambda _: promise(trust=chosen),
    )
    assert all(np.array_equal(sums[0], other) for other in sums)
    sigma = Z * chosen.sum_multiple(size) * 1.003  # with numeric and lattice slack
    assert is_sigma(sums[0], sigma)
    assert not is_sigma(sums[0], sigma * 2 / 3)
    assert not is_sigma(sums[0], sigma * 3 / 2)


def test_a_long_contribution_is_scaled_down_to_the_bound(tmp_path: Path) -> None:
    def act(reduce: PrivateReduce) -> Any:
        values = np.zeros(64, np.float64)
        values[reduce.endpoint.rank] = 50.0 if reduce.endpoint.rank else 0.25
        return reduce(values)

    found = on_ranks(3, act, tmp_path, promised=lambda _: promise(noise_multiplier=0.03))[0]
    wanted = np.zeros(64)
    wanted[:3] = 0.25, 1.0, 1.0
    assert np.abs(found - wanted).max() < 6.5 * 0.03 * 1.003 * math.sqrt(3)


def test_no_rank_sends_its_contribution_in_clear(tmp_path: Path) -> None:
    """Each rank's own messages carry the whole noise, on every coordinate (trust local)."""
    wire: dict[int, list[Buffer]] = {}

    def tap(source: int, _: int, message: Buffer) -> None:
        if message.size == SIZE:
            wire.setdefault(source, []).append(message.copy())

    def act(reduce: PrivateReduce) -> Any:
        clear = np.full(SIZE, 1.0 / math.sqrt(SIZE), np.float32)
        reduce(clear)
        return clear, reduce._known[SIZE, "f"].lattice

    results = on_ranks(3, act, tmp_path, observe=tap, algorithm="naive")
    assert sorted(wire) == [0, 1, 2]
    noises = []
    for source, messages in wire.items():
        clear, lattice = results[source]
        assert len(messages) == 2  # naive: to each other rank, the same one
        assert np.array_equal(messages[0], messages[1])
        noises.append(decode(messages[0], lattice) - clear)
        assert is_sigma(noises[-1], Z * 1.003)
    for one, other in ((0, 1), (0, 2), (1, 2)):  # correlation of ranks: none
        product = float(noises[one] @ noises[other]) / SIZE / (Z * 1.003) ** 2
        assert abs(product) < 6.0 / math.sqrt(SIZE)


def test_a_call_is_charged_before_its_message_leaves(tmp_path: Path) -> None:
    charged: list[int] = []

    def tap(source: int, _: int, message: Buffer) -> None:
        if message.size == SIZE:
            book = Ledger.open(tmp_path / f"rank-{source}.sqlite")
            charged.append(book.charged("run"))

    def act(reduce: PrivateReduce) -> int:
        reduce(np.zeros(SIZE, np.float32))
        return reduce.account.ledger.charged("run")

    after = on_ranks(2, act, tmp_path, observe=tap, algorithm="naive", run="run", lease=1)
    assert charged == [1, 1]
    assert after == [1, 1]


def test_the_budget_ends_on_all_ranks_together(tmp_path: Path) -> None:
    """Also where one rank's account has less left, from a run of before."""
    book = Ledger.create(
        tmp_path / "rank-1.sqlite",
        store="contributions of rank 1",
        unit=promise().plan(3).unit,
        relation=promise().plan(3).relation,
    )
    before = Account(book, "run", promise().plan(3), lease=1)
    for _ in range(18):
        before.charge(before.plan.event)

    def act(reduce: PrivateReduce) -> Any:
        assert reduce.releases_left == 2
        for _ in range(2):
            reduce(np.zeros(5, np.float32))
        with pytest.raises(BudgetExhaustedError, match="at most 20 calls"):
            reduce(np.zeros(5, np.float32))
        return reduce.releases_left

    assert on_ranks(3, act, tmp_path, run="run", lease=1) == [0, 0, 0]
    assert book.charged("run") == 20


def test_a_contribution_that_is_not_finite_counts_as_zero(tmp_path: Path) -> None:
    def act(reduce: PrivateReduce) -> Any:
        values = np.full(4, math.nan if reduce.endpoint.rank == 1 else 0.5, np.float32)
        return reduce(values)

    with pytest.warns(match="not finite and counts as zero"):
        found = on_ranks(2, act, tmp_path, promised=lambda _: promise(noise_multiplier=0.03))
    assert np.abs(found[0] - 0.5).max() < 7.0 * 0.03 * math.sqrt(2)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"clip": 2.0}, "plan"),
        ({"releases": 21}, "plan"),
        ({"delta": 1e-6}, "plan"),
        ({"trust": parse_trust("central")}, "trust"),
    ],
)
def test_another_promise_on_one_rank_is_refused_on_all(
    options: dict[str, Any], named: str, tmp_path: Path
) -> None:
    errors = on_ranks(
        3,
        lambda _: None,
        tmp_path,
        promised=lambda rank: promise(**options) if rank == 2 else promise(),
    )
    assert all(type(error) is MismatchError for error in errors)
    assert len({str(error) for error in errors}) == 1
    assert named in str(errors[0])
    assert list(tmp_path.iterdir()) == []  # no account was opened


@pytest.mark.parametrize("other", [np.zeros(6, np.float32), np.zeros(5, np.float64)])
def test_another_length_or_type_on_one_rank_is_refused_on_all(
    other: np.ndarray, tmp_path: Path
) -> None:
    def act(reduce: PrivateReduce) -> Any:
        reduce(np.zeros(3, np.float32))
        try:
            reduce(other if reduce.endpoint.rank == 1 else np.zeros(5, np.float32))
        except MismatchError as error:
            with pytest.raises(ReduceError, match="no more use"):
                reduce(np.zeros(3, np.float32))
            return str(error), reduce.account.ledger.charged("run")
        return None

    found = on_ranks(3, act, tmp_path, run="run", lease=1)
    assert found[0] is not None
    assert len(set(found)) == 1
    assert found[0][1] == 1  # nothing charged for the call that was refused


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(4, np.int32),
        np.zeros(4, np.float16),
        np.zeros(4, ">f4"),
        np.zeros((2, 2), np.float32),
        np.zeros(8, np.float32)[::2],
        np.ma.array(np.zeros(4, np.float32), mask=[False, True, False, False]),
    ],
    ids=["int32", "float16", "big endian", "matrix", "strided", "masked"],
)
def test_what_cannot_be_protected_is_never_sent(values: Any, tmp_path: Path) -> None:
    sent: list[int] = []

    def act(reduce: PrivateReduce) -> int:
        before = len(sent)
        with pytest.raises(ConfigError, match="never sent"):
            reduce(values)
        assert len(sent) == before
        return reduce.account.ledger.charged("run")

    def tap(*_: Any) -> None:
        sent.append(1)

    assert on_ranks(1, act, tmp_path, observe=tap, run="run", lease=1) == [0]


def test_a_failed_rank_breaks_the_round_for_all_and_it_stays_charged(tmp_path: Path) -> None:
    def act(reduce: PrivateReduce) -> Any:
        reduce(np.zeros(7, np.float32))
        if reduce.endpoint.rank == 2:
            return "left"
        with pytest.raises(ReduceError):
            reduce(np.zeros(7, np.float32))
        with pytest.raises(ReduceError, match="no more use"):
            reduce(np.zeros(7, np.float32))
        return reduce.account.ledger.charged("run")

    assert on_ranks(3, act, tmp_path, run="run", lease=1) == [2, 2, "left"]


def test_masks_are_spent_after_a_failed_round(tmp_path: Path) -> None:
    def act(reduce: PrivateReduce) -> Any:
        reduce(np.zeros(7, np.float32))
        if reduce.endpoint.rank == 2:
            return True
        with pytest.raises(ReduceError):
            reduce(np.zeros(7, np.float32))
        assert isinstance(reduce.transport, Reduced)
        assert reduce.transport.masks is not None
        return reduce.transport.masks.spent

    chosen = parse_trust("distributed(1)")
    assert on_ranks(4, act, tmp_path, promised=lambda _: promise(trust=chosen)) == [True] * 4


def test_shares_of_noise_need_masks(tmp_path: Path) -> None:
    plan = promise(trust=parse_trust("distributed(1)")).plan(3)

    def rank(endpoint: Endpoint) -> None:
        with pytest.raises(ReleaseError, match="withstand 1"):
            require_masks(plan, Reduced(endpoint))

    run_ranks(3, rank, timeout=20.0)


def test_calls_beside_other_work_keep_their_order(tmp_path: Path) -> None:
    def act(reduce: PrivateReduce) -> Any:
        values = [np.full(4, 0.01 * step, np.float32) for step in range(5)]
        outs = [np.empty(4, np.float32) for _ in values]
        works = [reduce.start(value, out) for value, out in zip(values, outs, strict=True)]
        for work in works:
            work.result()
        return np.stack(outs)

    found = on_ranks(2, act, tmp_path, promised=lambda _: promise(noise_multiplier=0.03))
    assert np.array_equal(found[0], found[1])


def test_lengths_of_one_size_class_share_their_noise(tmp_path: Path) -> None:
    """σ covers the rounding of the longest vector of the class, so of all."""

    def act(reduce: PrivateReduce) -> Any:
        for size in (0, 1, 33, 40, 64):
            reduce(np.zeros(size, np.float32))
        return {size: release.dimension for (size, _), release in reduce._known.items()}

    assert on_ranks(1, act, tmp_path)[0] == {0: 1, 1: 1, 33: 64, 40: 64, 64: 64}


def test_an_account_that_one_rank_cannot_open_stops_all(tmp_path: Path) -> None:
    (tmp_path / "rank-1.sqlite").write_text("no ledger at all")
    found = on_ranks(3, lambda _: None, tmp_path)
    assert type(found[1]) is LedgerError
    assert all(isinstance(found[rank], ReduceError) for rank in (0, 2))
    said = " ".join(str(found[rank]) for rank in (0, 2))
    assert "rank 1: it could not open its account (LedgerError)" in said


def test_a_vector_that_changes_under_way_is_the_one_that_was_started(tmp_path: Path) -> None:
    """Its norm was taken before: what came later would not be clipped."""

    def act(reduce: PrivateReduce) -> Any:
        values, out = np.zeros(1 << 16), np.empty(1 << 16)
        work = reduce.start(values, out)
        values[:] = 1e3
        work.result()
        return float(np.abs(out).max())

    largest = on_ranks(2, act, tmp_path, promised=lambda _: promise(noise_multiplier=0.03))
    assert max(largest) < 1.0


def test_a_clean_end_returns_what_the_lease_has_left(tmp_path: Path) -> None:
    def act(reduce: PrivateReduce) -> None:
        for _ in range(3):
            reduce(np.zeros(5, np.float32))

    on_ranks(2, act, tmp_path, run="run", promised=lambda _: promise(releases=1000))
    for rank in range(2):
        assert Ledger.open(tmp_path / f"rank-{rank}.sqlite").charged("run") == 3


def test_memory_that_others_may_write_to_is_copied_first(tmp_path: Path) -> None:
    """Beside the values another address of the same memory: results would be contributed again."""
    size = 3 * BLOCK
    with (tmp_path / "memory").open("wb") as file:
        file.truncate(8 * size)
    whole = np.memmap(tmp_path / "memory", np.float32, "r+", shape=(2 * size,))
    again = np.memmap(tmp_path / "memory", np.float32, "r+", shape=(2 * size,))
    values, out = whole[:size], again[BLOCK : BLOCK + size]
    values[:] = 2.0 / math.sqrt(size)  # clipped to half of it; contributed again, a quarter

    def act(reduce: PrivateReduce) -> np.ndarray:
        return reduce(np.asarray(values), np.asarray(out)).copy()

    (found,) = on_ranks(
        1, act, tmp_path / "accounts", promised=lambda _: promise(noise_multiplier=0.03)
    )
    assert abs(float(found[BLOCK:].sum()) * math.sqrt(size) / (size - BLOCK) - 1.0) < 0.25


def test_a_group_that_closes_itself_in_a_callback_is_closed(tmp_path: Path) -> None:
    def act(reduce: PrivateReduce) -> bool:
        closed = threading.Event()

        def close(_: object) -> None:
            reduce.close()
            closed.set()

        zeros = np.zeros(5, np.float32)
        reduce.start(zeros, np.empty_like(zeros)).add_done_callback(close)
        return closed.wait(30.0)

    assert on_ranks(1, act, tmp_path) == [True]
