"""Every algorithm sums right for any number of ranks; what it sends is what its page says."""

from __future__ import annotations

import threading
import time
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reduce.cases import (
    FLOATS,
    INTEGERS,
    LENGTHS,
    NAMES,
    Case,
    cases,
    check_case,
    contribution,
    expected,
    run_case,
)

from dither.errors import ConfigError, DitherError, PeerError
from dither.reduce.algorithms.common import SubGroup, cuts, largest_power_of_two
from dither.reduce.algorithms.hierarchical import hierarchical
from dither.reduce.algorithms.naive import naive
from dither.reduce.algorithms.registry import ALGORITHMS, sum_over
from dither.reduce.algorithms.round_robin import partners
from dither.reduce.endpoint import Buffer, Endpoint
from dither.reduce.transports.threads import Threads, run_ranks, try_ranks

RANKS = (1, 2, 3, 4, 5, 8)
OWN = tuple(name for name in NAMES if name != "backend")  # threads have none


def hosts_of(ranks: int) -> list[int]:
    """Uneven hosts, not in a row: 0 1 1 0 1 1 ..."""
    return [0 if rank % 3 == 0 else 1 for rank in range(ranks)]


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("algorithm", OWN)
@pytest.mark.parametrize("rendezvous", [False, True], ids=["queued", "rendezvous"])
def test_sums_of_every_type_and_length(algorithm: str, ranks: int, rendezvous: bool) -> None:
    kinds = ("int16", "float32") if rendezvous else INTEGERS + FLOATS
    todo = list(cases(algorithms=[algorithm], kinds=kinds))

    def check(endpoint: Threads) -> list[str]:
        return [wrong for case in todo if (wrong := check_case(endpoint, case)) is not None]

    found = run_ranks(ranks, check, hosts=hosts_of(ranks), rendezvous=rendezvous, timeout=30.0)
    assert found == [[]] * ranks


@pytest.mark.parametrize("algorithm", OWN)
def test_long_messages(algorithm: str) -> None:
    for kind in ("int16", "float32"):
        case = Case(algorithm, kind, LENGTHS[-1])
        assert run_ranks(3, lambda e: check_case(e, case), hosts=[0, 1, 1]) == [None] * 3  # noqa: B023


@settings(max_examples=60, deadline=None)
@given(
    ranks=st.integers(1, 13),
    length=st.integers(0, 200),
    kind=st.sampled_from(INTEGERS + FLOATS),
    algorithm=st.sampled_from(OWN),
    data=st.data(),
)
def test_any_ranks_lengths_and_hosts(
    ranks: int, length: int, kind: str, algorithm: str, data: st.DataObject
) -> None:
    hosts = data.draw(st.lists(st.integers(0, 3), min_size=ranks, max_size=ranks))
    case = Case(algorithm, kind, length)
    found = run_ranks(ranks, lambda endpoint: check_case(endpoint, case), hosts=hosts)
    assert found == [None] * ranks


@pytest.mark.full
@settings(max_examples=1000, deadline=None)
@given(
    ranks=st.integers(1, 40),
    length=st.integers(0, 3000),
    kind=st.sampled_from(INTEGERS + FLOATS),
    algorithm=st.sampled_from(OWN),
    data=st.data(),
)
def test_any_ranks_lengths_and_hosts_at_length(
    ranks: int, length: int, kind: str, algorithm: str, data: st.DataObject
) -> None:
    rendezvous = data.draw(st.booleans())
    hosts = data.draw(st.lists(st.integers(0, 9), min_size=ranks, max_size=ranks))
    case = Case(algorithm, kind, length)
    found = run_ranks(
        ranks, lambda endpoint: check_case(endpoint, case), hosts=hosts, rendezvous=rendezvous
    )
    assert found == [None] * ranks


@pytest.mark.parametrize("algorithm", OWN)
def test_integers_wrap(algorithm: str) -> None:
    def add(endpoint: Threads) -> Buffer:
        buffer = np.array([32767, -32768, -1], np.int16)
        sum_over(endpoint, buffer, algorithm)
        return buffer

    for result in run_ranks(2, add):
        assert result.tolist() == [-2, 0, -2]


def test_the_check_finds_a_wrong_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(endpoint: Endpoint, buffer: Buffer) -> None:
        naive(endpoint, buffer)
        if endpoint.rank == 1 and buffer.size:
            buffer[-1] += 1

    from dither.reduce.algorithms import registry

    monkeypatch.setattr(registry, "ALGORITHMS", {**ALGORITHMS, "naive": forgetful})
    for kind in ("int16", "float64"):
        found = run_ranks(2, lambda e: check_case(e, Case("naive", kind, 5)))  # noqa: B023
        assert found[0] is None
        assert found[1] is not None


class Traffic(Counter[tuple[int, int]]):
    """Bytes by (sender, receiver)."""


def traffic(algorithm: str, ranks: int, length: int, hosts: list[int] | None = None) -> Traffic:
    """What one int16 sum sends."""
    lock, sent = threading.Lock(), Traffic()

    def observe(source: int, to: int, message: Buffer) -> None:
        with lock:
            sent[source, to] += message.nbytes

    case = Case(algorithm, "int16", length)
    run_ranks(ranks, lambda e: run_case(e, case), observe=observe, hosts=hosts)
    return sent


def sent_by(sent: Traffic, rank: int) -> int:
    return sum(size for (source, _), size in sent.items() if source == rank)


@pytest.mark.parametrize(
    ("algorithm", "ranks", "messages"),
    [
        ("naive", 5, 4.0),
        ("round_robin", 5, 4.0),
        ("round_robin", 4, 3.0),
        ("recursive_doubling", 8, 3.0),
        ("ring", 5, 2 * 4 / 5),
        ("ring", 8, 2 * 7 / 8),
        ("rabenseifner", 8, 2 * 7 / 8),
    ],
)
def test_each_rank_sends_what_the_documentation_says(
    algorithm: str, ranks: int, messages: float
) -> None:
    length = 8 * 5 * 100
    sent = traffic(algorithm, ranks, length)
    for rank in range(ranks):
        assert sent_by(sent, rank) == messages * length * 2


def test_a_binomial_tree_sends_each_message_up_and_down_once() -> None:
    sent = traffic("binomial", 6, 100)
    assert sum(sent.values()) == 2 * 5 * 200
    assert sent_by(sent, 0) == 3 * 200


def test_folding_costs_at_most_what_the_documentation_says() -> None:
    sent = traffic("rabenseifner", 7, 4000)
    assert max(sent_by(sent, rank) for rank in range(7)) <= 3 * 8000


def test_a_ring_talks_to_neighbours_only() -> None:
    assert set(traffic("ring", 5, 100)) == {(rank, (rank + 1) % 5) for rank in range(5)}


def test_only_one_rank_a_host_talks_across() -> None:
    hosts = [0, 1, 0, 1, 2, 0]
    sent = traffic("hierarchical", 6, 300, hosts)
    across = {pair: size for pair, size in sent.items() if hosts[pair[0]] != hosts[pair[1]]}
    assert {rank for pair in across for rank in pair} == {0, 1, 4}


@pytest.mark.parametrize("hosts", [[0, 0, 1, 1], [0, 1, 0, 1, 0, 1], [0] * 3, [0, 1, 2]])
def test_hosts_of_equal_ranks_share_long_messages(hosts: list[int]) -> None:
    for kind in ("int16", "float64"):
        case = Case("hierarchical", kind, 20_001)
        found = run_ranks(len(hosts), lambda e: check_case(e, case), hosts=hosts)  # noqa: B023
        assert found == [None] * len(hosts)


def test_each_rank_speaks_for_its_part_across() -> None:
    hosts, length = [0, 0, 1, 1, 2, 2], 30_000
    sent = traffic("hierarchical", 6, length, hosts)
    across = {pair: size for pair, size in sent.items() if hosts[pair[0]] != hosts[pair[1]]}
    # A ring of three hosts for each of the two parts.
    assert set(across) == {(0, 2), (2, 4), (4, 0), (1, 3), (3, 5), (5, 1)}
    assert set(across.values()) == {2 * 2 * length * 2 // 3 // 2}
    assert sent[0, 1] == sent[1, 0] == 2 * length * 2 // 2


def test_another_algorithm_may_go_across() -> None:
    lock, sent = threading.Lock(), Traffic()

    def observe(source: int, to: int, message: Buffer) -> None:
        with lock:
            sent[source, to] += message.nbytes

    def add(endpoint: Threads) -> int:
        buffer = np.full(30, endpoint.rank, np.int32)
        hierarchical(endpoint, buffer, across=naive)
        return int(buffer[-1])

    assert run_ranks(6, add, hosts=[0, 0, 1, 1, 2, 2], observe=observe) == [15] * 6
    assert sent[4, 0] == sent[0, 4] == sent[2, 4] == 120


@pytest.mark.parametrize("ranks", range(1, 18))
def test_all_pairs_meet_once_in_perfect_rounds(ranks: int) -> None:
    tables = [list(partners(rank, ranks)) for rank in range(ranks)]
    assert all(len(table) == ranks - 1 for table in tables)
    met = Counter(tuple(sorted((a, b))) for a, table in enumerate(tables) for b in table)
    assert met == Counter(dict.fromkeys(combinations(range(ranks), 2), 2))


@pytest.mark.parametrize(("length", "parts"), [(0, 3), (2, 5), (10, 3), (9, 3), (1, 1)])
def test_parts_cover_all_and_differ_by_one_at_most(length: int, parts: int) -> None:
    borders = cuts(length, parts)
    sizes = np.diff(borders)
    assert borders[0] == 0
    assert borders[-1] == length
    assert len(sizes) == parts
    assert sizes.max() - sizes.min() <= 1
    assert sizes[0] == sizes.max()


def test_largest_power_of_two() -> None:
    assert [largest_power_of_two(n) for n in (1, 2, 3, 4, 7, 8, 9)] == [1, 2, 2, 4, 4, 8, 8]


@pytest.mark.parametrize("algorithm", OWN)
def test_a_rank_that_fails_ends_the_others_at_once(algorithm: str) -> None:
    def add(endpoint: Threads) -> None:
        if endpoint.rank == 2:
            raise KeyError("lost")
        sum_over(endpoint, np.zeros(100, np.int32), algorithm)

    start = time.monotonic()
    outcomes = try_ranks(5, add, timeout=60.0, rendezvous=True)
    assert time.monotonic() - start < 10.0
    assert isinstance(outcomes.first_error, KeyError)
    others = [error for rank, error in outcomes.errors.items() if rank != 2]
    assert others
    assert all(isinstance(error, DitherError) for error in others)
    with pytest.raises(KeyError):
        run_ranks(5, add)


def test_many_ranks() -> None:
    case = Case("rabenseifner", "int32", 700)
    want = expected(300, case)
    for got in run_ranks(300, lambda endpoint: run_case(endpoint, case)):
        assert np.array_equal(got, want)


@pytest.mark.full
@pytest.mark.parametrize("algorithm", ["recursive_doubling", "binomial", "hierarchical"])
def test_a_thousand_ranks(algorithm: str) -> None:
    case = Case(algorithm, "int16", 300)
    hosts = [rank // 8 for rank in range(1000)]
    want = expected(1000, case)
    for got in run_ranks(1000, lambda e: run_case(e, case), hosts=hosts, timeout=600.0):
        assert np.array_equal(got, want)


def test_a_subgroup_sums_among_its_members() -> None:
    members = [4, 1, 3]

    def add(endpoint: Threads) -> list[int] | None:
        if endpoint.rank not in members:
            return None
        group = SubGroup(endpoint, members)
        assert group.hosts == (0, 1, 0)
        assert (group.kind, group.timeout) == ("threads", endpoint.timeout)
        buffer = np.array([endpoint.rank, group.rank])
        for algorithm in OWN:
            once = buffer.copy()
            sum_over(group, once, algorithm)
            assert once.tolist() == [8, 3]
        group.close()
        endpoint.send(endpoint.rank, buffer)
        endpoint.receive(endpoint.rank, buffer)
        return [int(value) for value in buffer]

    assert run_ranks(5, add, hosts=[0, 1, 0, 2, 2])[1] == [1, 1]


@pytest.mark.parametrize("members", [[0], [0, 1, 1]])
def test_a_subgroup_without_this_rank_or_with_one_twice_is_refused(members: list[int]) -> None:
    def add(endpoint: Threads) -> None:
        if endpoint.rank == 1:
            SubGroup(endpoint, members)

    with pytest.raises(ConfigError, match="distinct ranks"):
        run_ranks(2, add)


def refused(buffer: np.ndarray, algorithm: str = "ring") -> str:
    with pytest.raises(ConfigError) as info:
        run_ranks(2, lambda endpoint: sum_over(endpoint, buffer, algorithm))
    assert not isinstance(info.value, PeerError)
    return str(info.value)


@pytest.mark.parametrize(
    "buffer",
    [
        np.zeros(4, np.float16),
        np.zeros(4, np.complex128),
        np.zeros(4, bool),
        np.zeros(4, ">i4"),
        np.zeros(8, np.int32)[::2],
        np.frombuffer(bytes(8), np.int32),
        np.zeros(9, np.uint8)[1:].view(np.int32),
    ],
    ids=["half", "complex", "bool", "big-endian", "strided", "read-only", "unaligned"],
)
def test_what_cannot_be_summed_in_place_is_refused(buffer: np.ndarray) -> None:
    assert "a flat, contiguous, writable array" in refused(buffer)


def test_unknown_algorithms_are_refused_by_name() -> None:
    message = refused(np.zeros(2), "rign")
    assert "'rign'" in message
    assert "rabenseifner" in message


def test_a_back_end_that_has_none_is_refused_with_the_remedy() -> None:
    assert '"auto"' in refused(np.zeros(2, np.int32), "backend")


def test_contributions_differ_between_ranks() -> None:
    case = Case("ring", "int32", 100)
    assert not np.array_equal(contribution(0, case), contribution(1, case))
