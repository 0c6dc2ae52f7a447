"""What colluding ranks that see the whole network learn of the others: their sum, and no more.

A secret bit per coordinate says which of two values a victim sends. Colluders know everybody else's
message, take all pads they share from what they saw, and guess the bits from every sum of what is
left. A verdict "they learn something" is wrong with probability 1e-10 at most, so all verdicts of a
test together with less than 1e-6; "they learn nothing", if a guess is right with probability 0.525
or more, with 0.01 at most (`test_the_power_of_the_verdict` computes both).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dither.noise.stream import add_mask, subtract_mask
from dither.reduce.protections.graph import neighbours
from dither.reduce.protections.masked import Masks
from dither.reduce.transports.threads import run_ranks

COORDINATES = 1 << 15
ALARM = 1e-10
SMALL, LARGE = 100, 900
GROUPS = [(3, 1), (4, 1), (4, 2), (5, 2), (6, 3), (7, 1), (8, 2)]
Integers = np.ndarray[tuple[int], np.dtype[Any]]


@cache
def threshold() -> int:
    """Right guesses beyond chance, either way, that are learning."""
    return int(stats.binom(COORDINATES, 0.5).isf(ALARM / 2)) + 1


def learns(right: int) -> bool:
    return right > threshold() or COORDINATES - right > threshold()


def test_the_power_of_the_verdict() -> None:
    chance = stats.binom(COORDINATES, 0.5)
    assert 0 < 2 * chance.sf(threshold()) <= ALARM
    assert stats.binom(COORDINATES, 0.525).sf(threshold()) >= 0.99
    # All verdicts of the largest test: coalitions, times sets of honest ranks with the victim.
    assert 28 * 2**5 * ALARM < 1e-6


@dataclass(frozen=True)
class View:
    """What a coalition has after one masked sum.

    Attributes:
        left: What each honest rank sent, less the pads that the coalition shares with it.
        clear: What each honest rank put in.
        bits: The secret bits of each honest rank.
    """

    left: dict[int, Integers]
    clear: dict[int, Integers]
    bits: dict[int, Integers]

    def right_guesses(self, members: frozenset[int], victim: int) -> int:
        """Right guesses of a victim's bits from the sum of what these ranks sent."""
        rest = self.left[victim].copy()
        for other in members - {victim}:
            rest += self.left[other] - self.clear[other]
        guess = rest > (SMALL + LARGE) // 2
        return int((guess == self.bits[victim]).sum())

    def sets(self, victim: int) -> Iterator[frozenset[int]]:
        """All proper subsets of the honest ranks with the victim in them."""
        others = sorted(set(self.left) - {victim})
        for count in range(len(others)):
            for some in combinations(others, count):
                yield frozenset({victim, *some})


def view(ranks: list[Masks], coalition: tuple[int, ...], dtype: str, seed: int) -> View:
    """Let the honest ranks send; the coalition makes its pads with its own keys."""
    random = np.random.default_rng(seed)
    size, degree = len(ranks), ranks[0].degree
    honest = [rank for rank in range(size) if rank not in coalition]
    bits = {rank: random.integers(0, 2, COORDINATES).astype(bool) for rank in honest}
    clear = {rank: np.where(bits[rank], LARGE, SMALL).astype(dtype) for rank in honest}
    left = {rank: clear[rank].copy() for rank in honest}
    for rank in honest:
        ranks[rank].apply(left[rank])
    for rank in coalition:
        around = neighbours(rank, size, degree)
        for other, key, sign in zip(around, ranks[rank].keys, ranks[rank].signs, strict=True):
            # The other end did the opposite. Pads among colluders are made too, to stay in step.
            pad = left.get(other, np.zeros(COORDINATES, dtype))
            (add_mask if sign > 0 else subtract_mask)(pad, key)
    return View(left, clear, bits)


def agreed(size: int, colluders: int) -> list[Masks]:
    return run_ranks(size, lambda endpoint: Masks.agree(endpoint, colluders=colluders))


@pytest.mark.parametrize("dtype", ["int16", "int32"])
@pytest.mark.parametrize(("size", "colluders"), GROUPS)
def test_no_coalition_of_t_learns_more_than_the_sum(size: int, colluders: int, dtype: str) -> None:
    """Every coalition, and every way to add up what the others sent."""
    ranks = agreed(size, colluders)
    for seed, coalition in enumerate(combinations(range(size), colluders)):
        seen = view(ranks, coalition, dtype, seed)
        honest = frozenset(seen.left)
        victim = min(honest)
        for members in seen.sets(victim):
            assert not learns(seen.right_guesses(members, victim)), (coalition, members)
        # The sum of all of them is what masks do not hide: there the attack works.
        assert seen.right_guesses(honest, victim) == COORDINATES


@pytest.mark.parametrize("dtype", ["int16", "int32"])
def test_two_on_a_ring_read_who_stands_between(dtype: str) -> None:
    """Mutant 31: t = 2 on a ring. The verdict must see it."""
    ring = agreed(8, 1)
    assert {masks.degree for masks in ring} == {2}
    seen = view(ring, (2, 4), dtype, 0)
    assert seen.right_guesses(frozenset({3}), 3) == COORDINATES
    assert learns(seen.right_guesses(frozenset({3}), 3))
    # Two further apart read the sum of the arc between them.
    seen = view(ring, (2, 5), dtype, 1)
    assert not learns(seen.right_guesses(frozenset({3}), 3))
    assert learns(seen.right_guesses(frozenset({3, 4}), 3))


def test_one_more_than_the_threshold_reads_a_rank() -> None:
    """So the tests above do not pass for want of power: t + 1 = 3 neighbours are enough."""
    ranks = agreed(8, 2)
    seen = view(ranks, neighbours(0, 8, ranks[0].degree), "int32", 0)
    assert learns(seen.right_guesses(frozenset({0}), 0))


def test_a_slight_leak_is_seen() -> None:
    """One coordinate in ten sent in clear."""
    seen = view(agreed(4, 1), (2,), "int32", 0)
    seen.left[0][::10] = seen.clear[0][::10]
    assert learns(seen.right_guesses(frozenset({0}), 0))
