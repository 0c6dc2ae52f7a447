"""Sums of few rows equal the dense sum, cost less, and go with no protection."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dither.errors import ConfigError
from dither.reduce.algorithms.sparse import SparseRows, check_sparse, degrees, sum_rows
from dither.reduce.endpoint import Buffer
from dither.reduce.transports.threads import run_ranks


def rows_of(rank: int, height: int, count: int, width: int = 3, kind: str = "int16") -> SparseRows:
    generator = np.random.default_rng((rank, height, count))
    indices = np.sort(generator.choice(height, count, replace=False)).astype(np.int64)
    values = generator.normal(size=(count, width)) * 2e4
    return SparseRows(indices, values.astype(np.int64).astype(kind))


def summed(ranks: int, rows: list[SparseRows], height: int) -> tuple[SparseRows, list[int]]:
    """The result, the same on all ranks, and the sizes of all messages."""
    lock, sent = threading.Lock(), list[int]()

    def observe(source: int, to: int, message: Buffer) -> None:
        with lock:
            sent.append(message.nbytes)

    found = run_ranks(
        ranks,
        lambda endpoint: sum_rows(endpoint, rows[endpoint.rank], height),
        rendezvous=True,
        observe=observe,
    )
    for other in found[1:]:
        assert np.array_equal(other.indices, found[0].indices)
        assert other.values.tobytes() == found[0].values.tobytes()
    return found[0], sent


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5, 6, 8, 12])
@pytest.mark.parametrize("kind", ["int16", "int32", "float32", "float64"])
@pytest.mark.parametrize(("height", "count"), [(0, 0), (1, 1), (40, 0), (50, 3), (64, 60)])
def test_the_sum_is_the_dense_sum(ranks: int, kind: str, height: int, count: int) -> None:
    rows = [rows_of(rank, height, count, kind=kind) for rank in range(ranks)]
    got, _ = summed(ranks, rows, height)
    want = rows[0].dense(height)
    for other in rows[1:]:
        want += other.dense(height)
    assert got.values.dtype == np.dtype(kind)
    if np.dtype(kind).kind == "i":
        assert np.array_equal(got.dense(height), want)
        assert np.array_equal(got.indices, np.flatnonzero(want.any(axis=1)))
    else:
        assert np.allclose(got.dense(height), want, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    ranks=st.integers(1, 11),
    height=st.integers(1, 60),
    width=st.integers(1, 4),
    data=st.data(),
)
def test_any_rows(ranks: int, height: int, width: int, data: st.DataObject) -> None:
    counts = [data.draw(st.integers(0, height)) for _ in range(ranks)]
    rows = [rows_of(rank, height, count, width) for rank, count in enumerate(counts)]
    got, _ = summed(ranks, rows, height)
    want = sum((r.dense(height) for r in rows), np.zeros((height, width), np.int16))
    assert np.array_equal(got.dense(height), want)


def test_rows_that_cancel_are_gone() -> None:
    one = SparseRows(np.array([2, 5]), np.array([[1], [7]], np.int16))
    other = SparseRows(np.array([5]), np.array([[-7]], np.int16))
    got, _ = summed(2, [one, other], 10_000)
    assert got.indices.tolist() == [2]


def test_few_rows_cost_few_bytes() -> None:
    height, width, ranks = 20_000, 16, 4
    rows = [rows_of(rank, height, 50, width) for rank in range(ranks)]
    _, sent = summed(ranks, rows, height)
    dense_ring = 2 * (ranks - 1) * height * width * 2
    assert sum(sent) < dense_ring / 40


def test_rows_denser_than_the_matrix_cost_no_more_than_dense() -> None:
    height, ranks = 3000, 6
    rows = [rows_of(rank, height, height) for rank in range(ranks)]
    _, sent = summed(ranks, rows, height)
    dense_ring = 2 * (ranks - 1) * height * 3 * 2
    headers = 8 * sum(size == 8 for size in sent)
    assert sum(sent) - headers <= dense_ring * 1.01


def test_degrees_multiply_to_the_number_of_ranks() -> None:
    for ranks in range(1, 400):
        assert np.prod(degrees(ranks), dtype=int) == ranks
    assert degrees(32) == [4, 4, 2]
    assert degrees(25) == [5, 5]


@pytest.mark.parametrize("protection", ["private", "masked", "encrypted", "anything"])
def test_protections_are_refused(protection: str) -> None:
    with pytest.raises(ConfigError, match="indices would tell tokens"):
        check_sparse(protection)


def test_clear_is_allowed() -> None:
    check_sparse("clear")


@pytest.mark.parametrize(
    "indices",
    [[3, 1, 2], [1, 1, 2], [-1, 0, 1]],
    ids=["falling", "twice", "negative"],
)
def test_bad_indices_are_refused(indices: list[int]) -> None:
    with pytest.raises(ConfigError, match="rising int64 indices"):
        SparseRows(np.array(indices), np.zeros((3, 2), np.int32))


def test_an_index_beyond_the_matrix_is_refused() -> None:
    rows = SparseRows(np.array([7]), np.ones((1, 1), np.int32))
    with pytest.raises(ConfigError, match="below the height 7"):
        run_ranks(1, lambda endpoint: sum_rows(endpoint, rows, 7))
