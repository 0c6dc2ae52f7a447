"""Tests of AllReduce as an mpi4py user writes them: nothing in here knows of dither.

Run on any number of ranks, for instance ``mpiexec -n 2 python -m pytest allreduce_mpi4py.py``. Sums
are compared with a tolerance, as sums of floats are; contributions have a norm of at most 2.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import pytest
from mpi4py import MPI

COMM = MPI.COMM_WORLD
RANK, SIZE = COMM.Get_rank(), COMM.Get_size()
TOLERANCE = 0.6


def close(found: Sequence[float], expected: list[float]) -> bool:
    return all(abs(a - b) < TOLERANCE for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("code", ["f", "d", "i", "l", "q"])
def test_a_sum_of_every_type(code: str) -> None:
    total = array(code, [7] * 4)
    COMM.Allreduce(array(code, [1, -1, 0, 1]), total, op=MPI.SUM)
    assert close(total, [SIZE, -SIZE, 0, SIZE])


def test_in_place() -> None:
    values = array("d", [0.5, -0.5, 1.0])
    COMM.Allreduce(MPI.IN_PLACE, values)
    assert close(values, [0.5 * SIZE, -0.5 * SIZE, SIZE])


def test_the_contribution_is_left_alone() -> None:
    values = array("d", [0.5, 1.0])
    COMM.Allreduce(values, array("d", [0.0, 0.0]))
    assert values == array("d", [0.5, 1.0])


def test_all_ranks_get_the_same_numbers() -> None:
    total = array("d", [0.0] * 50)
    COMM.Allreduce(array("d", [0.1 * (RANK + 1)] * 50), total)
    first = array("d", total)
    COMM.Bcast(first, root=0)
    assert first == total


def test_a_sum_of_nothing() -> None:
    COMM.Allreduce(array("d"), array("d"))


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 1000])
def test_all_lengths(count: int) -> None:
    total = array("f", [0.0] * count)
    COMM.Allreduce(array("f", [1.0] + [0.0] * (count - 1)), total)
    assert close(total, [SIZE] + [0.0] * (count - 1))


def test_a_long_vector_has_the_right_mean() -> None:
    count = 40_000
    total = array("d", [0.0] * count)
    COMM.Allreduce(array("d", [0.01] * count), total)
    assert abs(sum(total) / count - 0.01 * SIZE) < 0.003


def test_reduce_to_every_root() -> None:
    found = array("d")
    for root in range(SIZE):
        total = array("d", [0.0])
        COMM.Reduce(array("d", [1.0]), total if root == RANK else None, root=root)
        found.extend(total if root == RANK else [])
    assert close(found, [SIZE])  # not before: the ranks stay together


def test_several_under_way() -> None:
    totals = [array("d", [0.0]) for _ in range(5)]
    values = [array("d", [0.3 * i]) for i in range(5)]
    requests = [COMM.Iallreduce(values[i], totals[i]) for i in range(5)]
    while not MPI.Request.Testall(requests):
        pass
    assert all(close(total, [0.3 * i * SIZE]) for i, total in enumerate(totals))


def test_a_persistent_sum() -> None:
    values, total = array("d", [0.0]), array("d", [0.0])
    request = COMM.Allreduce_init(values, total)
    for turn in range(3):
        values[0] = 0.5 * turn
        request.Start()
        request.Wait()
        assert close(total, [0.5 * turn * SIZE])
    request.Free()


def test_a_part_of_the_ranks() -> None:
    part = COMM.Split(RANK % 2)
    total = array("d", [0.0])
    part.Allreduce(array("d", [1.0]), total)
    assert close(total, [part.Get_size()])
    part.Free()


def test_copies_of_a_communicator() -> None:
    for _ in range(10):
        copy = COMM.Dup()
        total = array("i", [0])
        copy.Allreduce(array("i", [1]), total)
        assert close(total, [SIZE])
        copy.Free()


def test_gradient_descent_meets_at_the_mean() -> None:
    """Each rank pulls towards its own corner; all walk together and end in between."""
    place = array("d", [0.0, 0.0])
    corner = (1.0, -1.0) if RANK % 2 == 0 else (-1.0, 1.0)
    mean = (1.0, -1.0) if SIZE == 1 else ((SIZE % 2) / SIZE, -(SIZE % 2) / SIZE)
    for step in range(30):
        pull = array("d", [c - p for c, p in zip(corner, place, strict=True)])
        COMM.Allreduce(MPI.IN_PLACE, pull)
        place = array("d", [p + f / SIZE / (step + 1) for p, f in zip(place, pull, strict=True)])
    assert close(place, list(mean))
