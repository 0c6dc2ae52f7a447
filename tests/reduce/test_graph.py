"""No t ranks can cut a mask graph apart, and what would follow if they could."""

from __future__ import annotations

import math
from itertools import combinations

import networkx as nx  # type: ignore[import-untyped]
import pytest

from dither.errors import ConfigError
from dither.privacy.accountant import epsilon
from dither.privacy.calibrate import noise_multiplier
from dither.privacy.events import SampledGaussian
from dither.privacy.trust import Trust
from dither.reduce.protections.graph import check_degree, mask_degree, neighbours

CASES = [(size, t) for size in range(1, 15) for t in range(size)]
RECORDS, BATCH, STEPS, DELTA = 1_060_000, 4096, 1000, 1e-7


def graph(size: int, degree: int) -> nx.Graph:
    found = nx.Graph()
    found.add_nodes_from(range(size))
    found.add_edges_from(
        (rank, other) for rank in range(size) for other in neighbours(rank, size, degree)
    )
    return found


@pytest.mark.parametrize(("size", "colluders"), CASES)
def test_the_graph_stays_whole_without_any_t_ranks(size: int, colluders: int) -> None:
    """By brute force: every set of t ranks, where there are up to 10 ranks."""
    degree = mask_degree(size, colluders)
    whole = graph(size, degree)
    assert degree == size - 1 or degree >= colluders + 1
    assert {d for _, d in whole.degree()} == {degree}
    for rank in range(size):
        around = neighbours(rank, size, degree)
        assert rank not in around
        assert all(rank in neighbours(other, size, degree) for other in around)
    if size > 10:
        assert nx.node_connectivity(whole) > min(colluders, size - 2)  # of a complete graph R - 1
        return
    for taken in combinations(range(size), colluders):
        rest = whole.copy()
        rest.remove_nodes_from(taken)
        assert nx.is_connected(rest)


@pytest.mark.parametrize("size", range(3, 31))
def test_connectivity_is_the_degree(size: int) -> None:
    """Harary's theorem, by networkx's flows."""
    for degree in range(2, size):
        if degree * size % 2 == 0:
            assert nx.node_connectivity(graph(size, degree)) == degree


@pytest.mark.parametrize(("size", "colluders"), CASES)
def test_no_regular_graph_has_fewer_edges(size: int, colluders: int) -> None:
    """A degree below it cannot exist, or leaves a graph that t ranks cut apart."""
    for degree in range(mask_degree(size, colluders)):
        if degree * size % 2 == 0:
            assert nx.node_connectivity(graph(size, degree)) <= colluders
        with pytest.raises(ConfigError, match="neighbours a rank to mask"):
            check_degree(size, colluders, degree)


@pytest.mark.parametrize(("size", "colluders"), [(1, 1), (2, 2), (3, 3), (8, 8), (8, 20), (3, -1)])
def test_too_many_colluders_are_refused(size: int, colluders: int) -> None:
    with pytest.raises(ConfigError, match="trust local"):
        mask_degree(size, colluders)
    with pytest.raises(ConfigError, match="trust local"):
        check_degree(size, colluders, size - 1)


def test_a_ring_against_two_is_refused_with_the_reason() -> None:
    check_degree(8, 1, 2)
    check_degree(8, 2, 3)
    with pytest.raises(ConfigError, match=r"2 neighbours: they could isolate a rank.* 1/6 of the"):
        check_degree(8, 2, 2)


@pytest.mark.parametrize(
    ("rank", "size", "degree"), [(8, 8, 2), (-1, 8, 2), (0, 7, 3), (0, 4, 4), (0, 4, -1)]
)
def test_there_is_no_such_graph(rank: int, size: int, degree: int) -> None:
    with pytest.raises(ConfigError, match="a degree below"):
        neighbours(rank, size, degree)


def test_a_graph_that_cannot_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="a degree below"):
        check_degree(7, 1, 3)


@pytest.mark.parametrize(
    ("size", "arc", "found"),
    [(8, 1, 19.6), (8, 2, 6.4), (64, 1, 504.0)],
    ids=["A3-lone-8", "A3-arc-8", "A3-lone-64"],
)
def test_what_a_ring_costs_whom_two_neighbours_isolate(size: int, arc: int, found: float) -> None:
    """PRIVACY-REVIEW A3, computed: the ledger says 1; an arc of m ranks has m/(R−t) of the noise.

    The pair at its ends takes its pads away from the sum of the arc's messages.
    """
    cut = graph(size, 2)
    colluders = (0, arc + 1)
    cut.remove_nodes_from(colluders)
    isolated = min(nx.connected_components(cut), key=len)
    assert isolated == set(range(1, arc + 1))
    rate = BATCH / RECORDS
    z = noise_multiplier(1.0, delta=DELTA, rate=rate, steps=STEPS)
    charged = epsilon([(SampledGaussian(rate, z), STEPS)], DELTA)
    assert 0.98 < charged <= 1.0
    share = Trust("distributed", len(colluders)).rank_share(size)
    left = z * share * math.sqrt(arc)
    true = epsilon([(SampledGaussian(rate, left), STEPS)], DELTA)
    assert true == pytest.approx(found, rel=0.03)
