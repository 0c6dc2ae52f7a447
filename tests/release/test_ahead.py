"""Messages that leave while the next are computed: the same bits and order, no error lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest
import torch
from jaxtyping import Integer
from tests.reduce.members import in_group
from tests.release.conftest import RUN, ticket
from torch import Tensor

from dither.errors import PeerError, ReleaseError
from dither.noise.entropy import InsecureSeed
from dither.noise.pool import FreshNoise
from dither.privacy.account import Account
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.reduce.protections.private import Reduced, SharedMemoryReduced
from dither.reduce.transports.shared_memory import SharedMemory
from dither.reduce.transports.threads import Threads, run_ranks, try_ranks
from dither.release.ahead import Line, Sender, Span, Spans, hidden
from dither.release.bounded_sum import BoundedSum
from dither.release.chunk import TOGETHER
from dither.release.release import release_sum
from dither.release.transport import Transport

SIZES = (70_000, 3, 1200, 1, 66_000)


class Lazy:
    """A sum whose chunks are made when they are asked for."""

    def __init__(self, rank: int, fail_at: int = -1) -> None:
        self.made = 0
        self.fail_at = fail_at
        self._generator = torch.Generator().manual_seed(rank)

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        for index, size in enumerate(SIZES):
            if index == self.fail_at:
                raise MemoryError("no room for the next product")
            self.made += 1
            yield {f"p{index}": 1e-3 * torch.randn(size, generator=self._generator)}


def lazy(plan: Plan, chunks: Any, sizes: Sequence[int] = SIZES) -> BoundedSum:
    return BoundedSum(chunks, sum(sizes), plan.l2_clip, ticket(plan))


def noise(rank: int) -> FreshNoise:
    return FreshNoise(InsecureSeed(9).stream(f"noise {rank}").key())


def open_account(folder: Path, plan: Plan, rank: int) -> Account:
    ledger = Ledger.create(folder / f"{rank}.sqlite", store="records")
    return Account(ledger, RUN, plan, lease=1, insecure="a test")


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_thread_changes_no_bit(world_size: int, plan: Plan, tmp_path: Path) -> None:
    def rank(endpoint: Threads) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        account = open_account(tmp_path, plan, endpoint.rank)
        carrier = Reduced(endpoint)
        sender = Sender()
        found = [
            release_sum(
                lazy(plan, Lazy(endpoint.rank)), account, carrier, noise(endpoint.rank), sender=each
            ).tensors
            for each in (None, sender)
        ]
        sender.close()
        return found[0], found[1]

    results = run_ranks(world_size, rank)
    first = results[0][0]
    assert list(first) == [f"p{index}" for index in range(len(SIZES))]
    for alone, beside in results:
        assert alone.keys() == beside.keys() == first.keys()
        assert all(torch.equal(alone[name], first[name]) for name in first)
        assert all(torch.equal(beside[name], first[name]) for name in first)


@final
class Noting(Transport):
    """One rank that notes what it was given, and may fail."""

    def __init__(self, fail_at: int = -1) -> None:
        self.sizes: list[int] = []
        self.threads: set[int] = set()
        self.first = threading.Event()
        self.abandoned: list[str] = []
        self.fail_at = fail_at

    @property
    def world_size(self) -> int:
        return 1

    def all_reduce(self, message: Integer[np.ndarray, " size"]) -> Integer[np.ndarray, " size"]:
        if len(self.sizes) == self.fail_at:
            raise ConnectionError("a rank went away")
        self.sizes.append(message.size)
        self.threads.add(threading.get_ident())
        self.first.set()
        return message

    def abandon(self, reason: str) -> None:
        self.abandoned.append(reason)


def test_the_first_message_leaves_before_the_last_product_is_made(account: Account) -> None:
    carrier, spans, sender = Noting(), Spans(), Sender()
    charged: list[int] = []

    def chunks() -> Iterator[Mapping[str, Tensor]]:
        for index, size in enumerate(SIZES):
            start = time.perf_counter()
            charged.append(account.ledger.charged(RUN))
            if index == len(SIZES) - 1:
                assert carrier.first.wait(30.0), "nothing left while products were computed"
            spans.add(f"product {index}", start)
            yield {f"p{index}": torch.zeros(size)}

    release_sum(lazy(account.plan, chunks()), account, carrier, sender=sender, spans=spans)
    sender.close()
    assert carrier.sizes == list(SIZES)
    assert len(carrier.threads) == 1
    assert threading.get_ident() not in carrier.threads
    assert charged == [1] * len(SIZES)
    assert carrier.abandoned == []
    found = {span.name: span for span in spans.list()}
    assert found["send 0"].thread == "send"
    assert found["send 0"].start < found["product 4"].end
    assert "wait" in found
    assert [f"send {index}" for index in range(5)] == [
        span.name for span in spans.list() if span.thread == "send"
    ]


def test_a_thread_serves_many_releases(account: Account) -> None:
    carrier, sender = Noting(), Sender()
    for _ in range(3):
        release_sum(lazy(account.plan, Lazy(0)), account, carrier, sender=sender)
    assert carrier.sizes == list(SIZES) * 3
    assert len(carrier.threads) == 1
    sender.close()
    sender.close()


@pytest.mark.parametrize("beside", [False, True])
def test_a_failed_send_reaches_the_caller_and_ends_the_release(
    account: Account, beside: bool
) -> None:
    carrier, chunks = Noting(fail_at=1), Lazy(0)
    sender = Sender() if beside else None
    with pytest.raises(ConnectionError, match="went away"):
        release_sum(lazy(account.plan, chunks), account, carrier, sender=sender)
    assert carrier.sizes == [SIZES[0]], "messages left after an error"
    assert carrier.abandoned == ["ConnectionError"]
    assert account.ledger.charged(RUN) == 1
    if sender is not None:
        sender.close()


def test_values_that_are_not_finite_never_leave_nor_anything_after(account: Account) -> None:
    carrier, sender = Noting(), Sender()
    parts = [{"a": torch.zeros(5)}, {"b": torch.full((4,), torch.nan)}, {"c": torch.zeros(3)}]
    with pytest.raises(ReleaseError, match="finite"):
        release_sum(lazy(account.plan, parts, (5, 4, 3)), account, carrier, sender=sender)
    assert carrier.sizes == [5]
    assert carrier.abandoned == ["ReleaseError"]
    sender.close()


def test_too_many_coordinates_are_refused_before_they_leave(account: Account) -> None:
    carrier, sender = Noting(), Sender()
    parts = [{"a": torch.zeros(5)}, {"a": torch.zeros(4)}]
    with pytest.raises(ReleaseError, match="a name twice"):
        release_sum(lazy(account.plan, parts, (5, 4)), account, carrier, sender=sender)
    assert carrier.sizes in ([], [5])
    sender.close()


@pytest.mark.parametrize("beside", [False, True])
def test_a_failed_product_lets_no_rank_wait(plan: Plan, tmp_path: Path, beside: bool) -> None:
    def rank(endpoint: Threads) -> None:
        account = open_account(tmp_path, plan, endpoint.rank)
        chunks = Lazy(endpoint.rank, fail_at=3 if endpoint.rank == 1 else -1)
        sender = Sender() if beside else None
        try:
            release_sum(lazy(plan, chunks), account, Reduced(endpoint), sender=sender)
        finally:
            if sender is not None:
                sender.close()

    start = time.monotonic()
    outcomes = try_ranks(3, rank, timeout=50.0)
    assert time.monotonic() - start < 20.0
    assert outcomes.results == []
    assert isinstance(outcomes.errors[1], MemoryError)
    assert all(isinstance(outcomes.errors[other], PeerError) for other in (0, 2))


def test_ranks_cut_a_table_alike_whatever_they_know_of_it(plan: Plan, tmp_path: Path) -> None:
    """One has few rows, one a dense sum, one nothing at all: shared memory takes blocks."""
    rows, width = 3 * TOGETHER // 1000 + 7, 1000
    kinds = ["rows", "dense", "zeros"]

    def work(kind: str, endpoint: SharedMemory) -> tuple[bytes, float]:
        torch.set_num_threads(1)
        values = torch.ones(2, width, dtype=torch.float64)
        places = torch.tensor([[1, rows - 2]])
        table = torch.sparse_coo_tensor(
            places, values, (rows, width), is_coalesced=True, check_invariants=False
        )
        held = {"rows": table, "dense": table.to_dense(), "zeros": torch.zeros(rows, width)}[kind]
        account = open_account(tmp_path, plan, endpoint.rank)
        parts = [{"table": held, "bias": torch.zeros(3)}]
        found = release_sum(
            lazy(plan, parts, (rows * width, 3)),
            account,
            SharedMemoryReduced(endpoint),
            dtype=torch.float32,
        ).tensors["table"]
        return found.numpy().tobytes()[:: 1 << 12], float(found[1].mean() + found[-2].mean())

    found = in_group(3, [partial(work, kind) for kind in kinds], tmp_path / "group")
    assert [type(each) for each in found] == [tuple] * 3, found
    assert found[0][0] == found[1][0] == found[2][0]
    # Two ranks hold ones in both rows: 4 in all; noise of the mean of 2000 coordinates is far less.
    assert abs(found[0][1] - 4.0) < 8 * plan.noise_multiplier * plan.l2_clip / 1000**0.5


def test_hidden_time_is_what_sends_and_work_have_in_common() -> None:
    spans = [
        Span("forward", 0.0, 10.0, "step"),
        Span("product a", 10.0, 12.0, "step"),
        Span("send 0", 11.0, 15.0, "send"),
        Span("product b", 14.0, 16.0, "step"),
        Span("send 1", 15.5, 17.0, "send"),
        Span("wait", 16.0, 17.0, "step"),
    ]
    assert hidden(spans) == pytest.approx(1.0 + 1.0 + 0.5)
    assert hidden([span for span in spans if span.thread == "step"]) == 0.0


def test_an_interrupt_does_not_wait_for_peers() -> None:
    sender, never = Sender(), threading.Event()
    start = time.monotonic()

    def interrupted() -> None:
        with Line[bool](sender) as line:
            line.send(lambda: never.wait(20.0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - start < 10.0
    never.set()
    sender.close()
