"""Ranks that differ all learn it, in the same words, before anything leaves; none hangs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from dither.errors import MismatchError, ReduceError
from dither.reduce.agreement import (
    Agreement,
    Call,
    Terms,
    broadcast,
    consent,
    gather,
    seal_size,
)
from dither.reduce.algorithms.registry import sum_over
from dither.reduce.endpoint import Buffer, Endpoint
from dither.reduce.small import same_on_all, show_ranks
from dither.reduce.transports.threads import run_ranks, try_ranks

TERMS = Terms(
    length=1000,
    dtype="float32",
    protection="private",
    trust="local",
    plan="3f2a",
    algorithm="ring",
    table="77aa",
    wire_bits=16,
)
# Another value of each field; the last ones must be named in the message.
OTHER: dict[str, Any] = {
    "length": 1001,
    "dtype": "float64",
    "operation": "max",
    "protection": "masked",
    "trust": "distributed(1)",
    "plan": "9999",
    "algorithm": "naive",
    "table": "bbbb",
    "wire_bits": 32,
    "version": "0.0.9",
}
SIZES = [1, 2, 3, 4, 5, 8]
TIMEOUT = 20.0
STRIDE = 7


class Tap:
    """Counts the messages that leave ranks and keeps those that are not records."""

    def __init__(self) -> None:
        self.messages: list[Buffer] = []

    def __call__(self, sender: int, receiver: int, message: Buffer) -> None:
        self.messages.append(message)


def all_raise(
    world_size: int, function: Callable[[Endpoint], object], kind: type[ReduceError]
) -> str:
    """The one text that all ranks raise.

    Caught on each rank, for a rank that ends with an error breaks the group under the slower ones.
    """

    def caught(endpoint: Endpoint) -> ReduceError:
        with pytest.raises(ReduceError) as error:
            function(endpoint)
        return error.value

    errors = run_ranks(world_size, caught, timeout=TIMEOUT)
    assert {type(error) for error in errors} == {kind}
    texts = {str(error) for error in errors}
    assert len(texts) == 1, texts
    return texts.pop()


# ---- agreement -----------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", SIZES)
def test_same_terms_are_agreed_on_and_then_cost_no_message(world_size: int) -> None:
    tap = Tap()
    counts = []

    def function(endpoint: Endpoint) -> list[Call]:
        agreement = Agreement(endpoint)
        calls = [agreement.agree(replace(TERMS, length=n)) for n in (4, 5)]
        same_on_all(endpoint, bytes(32))  # nobody is on the way any more
        counts.append(len(tap.messages))
        calls += [agreement.agree(replace(TERMS, length=n)) for n in (5, 4, 4)]
        return calls

    calls = run_ranks(world_size, function, observe=tap)
    assert all(rank == calls[0] for rank in calls)
    assert [call.number for call in calls[0]] == [1, 2, 3, 4, 5]
    assert len({call.tag for call in calls[0]}) == 5
    assert len(tap.messages) == max(counts)
    steps = (world_size - 1).bit_length()
    assert len(tap.messages) == 3 * steps * world_size
    assert all(message.nbytes == 41 for message in tap.messages)


@pytest.mark.parametrize("world_size", SIZES[1:])
@pytest.mark.parametrize("field", OTHER)
def test_a_rank_with_other_terms_stops_all_ranks(field: str, world_size: int) -> None:
    odd = world_size // 2

    def function(endpoint: Endpoint) -> None:
        changes = {field: OTHER[field]} if endpoint.rank == odd else {}
        Agreement(endpoint).agree(replace(TERMS, **changes))

    text = all_raise(world_size, function, MismatchError)
    assert f"the same {field} on all {world_size} ranks" in text
    assert f"{OTHER[field]} on rank {odd}" in text
    assert str(getattr(TERMS, field)) in text


def test_other_values_are_named_too() -> None:
    def function(endpoint: Endpoint) -> None:
        Agreement(endpoint).agree(replace(TERMS, others=(("block", str(endpoint.rank % 2)),)))

    text = all_raise(5, function, MismatchError)
    assert "block 0 on ranks 0 and 2 and 4, 1 on ranks 1 and 3" in text


def test_every_rank_different() -> None:
    def function(endpoint: Endpoint) -> None:
        Agreement(endpoint).agree(replace(TERMS, length=endpoint.rank, plan=str(endpoint.rank)))

    text = all_raise(7, function, MismatchError)
    assert "length 0 on rank 0, 1 on rank 1, 2 on rank 2, 3 on rank 3, 3 more" in text
    assert "plan 0 on rank 0" in text


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_after_a_mismatch_ranks_may_come_again(world_size: int) -> None:
    def function(endpoint: Endpoint) -> int:
        agreement = Agreement(endpoint)
        with pytest.raises(MismatchError):
            agreement.agree(replace(TERMS, length=endpoint.rank))
        assert agreement.calls == 0
        return agreement.agree(TERMS).number

    assert run_ranks(world_size, function, timeout=TIMEOUT) == [1] * world_size


def test_a_skipped_call_shows_at_the_next_new_terms() -> None:
    def function(endpoint: Endpoint) -> None:
        agreement = Agreement(endpoint)
        for _ in range(1 if endpoint.rank == 1 else 2):
            agreement.agree(TERMS)
        agreement.agree(replace(TERMS, length=7))

    text = all_raise(3, function, MismatchError)
    assert "2 so far" in text
    assert "1 so far" in text


def test_agreeing_before_every_call_finds_known_terms_out_of_order() -> None:
    """Where agreement on first use lets them pass (the test below)."""
    tap = Tap()

    def function(endpoint: Endpoint) -> None:
        agreement = Agreement(endpoint, every_call=True)
        terms = [replace(TERMS, plan=plan) for plan in ("a", "b")]
        for one in terms:
            agreement.agree(one)
        agreement.agree(terms[endpoint.rank == 2])
        raise AssertionError("all were to be refused")

    text = all_raise(4, function, MismatchError)
    assert "plan a on ranks 0-1 and 3, b on rank 2" in text
    assert tap.messages == []


def _known_terms_out_of_order(endpoint: Endpoint, dtype: str) -> bool:
    agreement = Agreement(endpoint)
    terms = [replace(TERMS, plan=plan) for plan in ("a", "b")]
    for one in terms:
        agreement.agree(one)
    call = agreement.agree(terms[endpoint.rank == 2])
    message = np.ones(10 + seal_size(np.dtype(dtype)), dtype)
    call.seal(message[10:])
    sum_over(endpoint, message, "ring")
    with pytest.raises(MismatchError, match="a sum whose seal says otherwise"):
        call.check(message[10:])
    return True


@pytest.mark.parametrize("dtype", ["int16", "int32", "int64"])
@pytest.mark.parametrize("world_size", [3, 4, 8])
def test_the_seal_finds_known_terms_out_of_order(world_size: int, dtype: str) -> None:
    assert all(run_ranks(world_size, lambda end: _known_terms_out_of_order(end, dtype)))


@pytest.mark.parametrize("dtype", ["int16", "int32", "int64", "uint16"])
@pytest.mark.parametrize("world_size", [*SIZES, 64])
def test_the_seal_of_ranks_that_agree_is_right(world_size: int, dtype: str) -> None:
    def function(endpoint: Endpoint) -> int:
        agreement = Agreement(endpoint)
        for number in range(3):
            call = agreement.agree(TERMS)
            message = np.full(seal_size(np.dtype(dtype)), number, dtype)
            call.seal(message)
            sum_over(endpoint, message, "recursive_doubling")
            call.check(message)
        return agreement.calls

    assert run_ranks(world_size, function) == [3] * world_size


def test_half_of_very_many_ranks_with_another_call_are_found() -> None:
    """The worst case of the seal: R = 8192, of which 4096 differ, so 12 bits of each word say
    nothing. With 8 words of 16 bits a wrong one passes with probability 2⁻³²."""
    tags = [np.random.default_rng(seed).bytes(16) for seed in range(401)]
    right = Call(1, tags[0], 8192)
    for tag in tags[1:]:
        words = np.zeros((2, 8), np.int16)
        right.seal(words[0])
        Call(1, tag, 8192).seal(words[1])
        total = (words.astype(np.int64).sum(axis=0) * 4096).astype(np.int16)
        with pytest.raises(MismatchError):
            right.check(total)


@pytest.mark.parametrize("length", [0, 1, 20, 41, 42, 1000])
@pytest.mark.parametrize("dtype", ["int16", "int32", "float32", "float64"])
def test_new_terms_on_one_rank_beside_known_ones_stop_all(length: int, dtype: str) -> None:
    """Rank 1 agrees while the others already sum: its records fit no message."""

    def function(endpoint: Endpoint) -> None:
        agreement = Agreement(endpoint)
        known = replace(TERMS, length=length, dtype=dtype)
        agreement.agree(known)
        new = replace(known, plan="new")
        agreement.agree(new if endpoint.rank == 1 else known)
        sum_over(endpoint, np.ones(length, dtype), "recursive_doubling")
        same_on_all(endpoint, bytes(32))

    ended = try_ranks(4, function, timeout=TIMEOUT)
    assert ended.results == []
    assert all(isinstance(error, ReduceError) for error in ended.errors.values())


def test_ranks_in_different_kinds_of_calls_all_stop() -> None:
    def function(endpoint: Endpoint) -> None:
        if endpoint.rank == 2:
            gather(endpoint, b"x")
        else:
            Agreement(endpoint).agree(TERMS)

    for size in (3, 4, 5, 9):
        text = all_raise(size, function, MismatchError)
        assert f"all {size} ranks in the same call" in text


def test_many_different_terms_keep_the_table_small_and_ranks_in_step() -> None:
    def function(endpoint: Endpoint) -> int:
        agreement = Agreement(endpoint)
        for number in range(4096 + 10):
            agreement.agree(replace(TERMS, length=number))
        agreement.agree(replace(TERMS, length=3))
        return len(agreement._agreed)

    assert run_ranks(2, function) == [11, 11]


# ---- small messages ------------------------------------------------------------------------------


@pytest.mark.parametrize("rendezvous", [False, True])
@pytest.mark.parametrize("world_size", [*SIZES, 13, 33])
def test_gather_and_broadcast(world_size: int, rendezvous: bool) -> None:
    def payload(rank: int) -> bytes:
        return bytes([rank % 251]) * (rank * 7 % 12)

    def function(endpoint: Endpoint) -> tuple[list[bytes], list[bytes]]:
        gathered = gather(endpoint, payload(endpoint.rank))
        roots = range(0, endpoint.world_size, STRIDE)
        mine = f"rank {endpoint.rank}".encode() * endpoint.rank
        return gathered, [broadcast(endpoint, mine, root) for root in roots]

    tap = Tap()
    for gathered, sent in run_ranks(world_size, function, observe=tap, rendezvous=rendezvous):
        assert gathered == [payload(rank) for rank in range(world_size)]
        assert sent == [f"rank {root}".encode() * root for root in range(0, world_size, STRIDE)]
    assert all(message.dtype == np.uint8 and message.size % 2 for message in tap.messages)


def test_empty_payloads() -> None:
    def function(endpoint: Endpoint) -> tuple[list[bytes], bytes]:
        return gather(endpoint, b""), broadcast(endpoint, b"", 1)

    assert run_ranks(3, function) == [([b"", b"", b""], b"")] * 3


@pytest.mark.parametrize("root", [-1, 3])
def test_a_root_outside_the_group_is_refused(root: int) -> None:
    text = all_raise(3, lambda endpoint: broadcast(endpoint, b"", root), MismatchError)
    assert "a root below the world size" in text


def test_different_roots_are_refused_on_all_ranks() -> None:
    text = all_raise(
        5, lambda endpoint: broadcast(endpoint, b"x", endpoint.rank == 3), MismatchError
    )
    assert "one root on all ranks" in text


@pytest.mark.parametrize("world_size", SIZES)
def test_who_cannot_go_on_stops_all(world_size: int) -> None:
    def function(endpoint: Endpoint) -> None:
        consent(endpoint, None)
        consent(endpoint, "the budget is spent" if endpoint.rank == world_size - 1 else None)

    text = all_raise(world_size, function, ReduceError)
    assert f"rank {world_size - 1}: the budget is spent" in text


def test_a_rank_that_died_is_an_error_on_the_others() -> None:
    def function(endpoint: Endpoint) -> None:
        if endpoint.rank == 1:
            raise KeyError("died")
        Agreement(endpoint).agree(TERMS)

    ended = try_ranks(4, function, timeout=TIMEOUT)
    assert ended.results == []
    others = [error for rank, error in ended.errors.items() if rank != 1]
    assert all(isinstance(error, ReduceError) for error in others)


def test_ranks_are_shown_in_runs() -> None:
    assert show_ranks([3]) == "rank 3"
    assert show_ranks([0, 1, 2, 5]) == "ranks 0-2 and 5"
    assert show_ranks([0, 2, 4, 6, 8, 10]) == "ranks 0, 2, 4, 6, ..."


def test_digests_tell_all_fields_apart() -> None:
    digests = [TERMS.digest]
    digests += [replace(TERMS, **{name: value}).digest for name, value in OTHER.items()]
    digests.append(replace(TERMS, others=(("a", "b"),)).digest)
    assert all(one != other for one, other in pairwise(sorted(digests)))
    assert len(set(digests)) == len(OTHER) + 2
    assert replace(TERMS).digest == TERMS.digest
