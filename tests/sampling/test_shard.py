"""A rank's rows of a data set."""

from __future__ import annotations

import pytest

from dither.errors import ConfigError
from dither.sampling.shard import rank_rows


@pytest.mark.parametrize(("records", "ranks"), [(0, 1), (1, 3), (10, 3), (1001, 7), (8, 8)])
def test_ranks_rows_are_disjoint_even_and_whole(records: int, ranks: int) -> None:
    parts = [rank_rows(records, rank, ranks) for rank in range(ranks)]
    assert [row for part in parts for row in part] == list(range(records))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("records", "rank", "ranks"), [(5, 2, 2), (5, -1, 2), (-1, 0, 1), (5, 0, 0)]
)
def test_no_such_rank(records: int, rank: int, ranks: int) -> None:
    with pytest.raises(ConfigError, match=r"world\.rank"):
        rank_rows(records, rank, ranks)
