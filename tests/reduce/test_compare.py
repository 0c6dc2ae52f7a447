"""Ranks compare a secret; what travels says nothing of it."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from dither.errors import ReduceError
from dither.reduce.protections.compare import secret_tag
from dither.reduce.protections.keys import ClusterSecret
from dither.reduce.transports.threads import Threads, run_ranks, try_ranks


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_tags_are_the_same_exactly_where_values_are(ranks: int) -> None:
    def rank(endpoint: Threads) -> tuple[str, str]:
        mine = b"other" if endpoint.rank == 1 else b"records"
        return secret_tag(endpoint, b"records"), secret_tag(endpoint, mine)

    same, other = zip(*run_ranks(ranks, rank), strict=True)
    assert len(set(same)) == 1
    assert len(set(other)) == 2
    assert other[0] != other[1]


def test_the_same_value_has_another_tag_each_time() -> None:
    """A digest of the value, whatever its form, would not."""
    tags = {run_ranks(2, lambda endpoint: secret_tag(endpoint, b"records"))[0] for _ in range(8)}
    assert len(tags) == 8
    digests = (hashlib.sha256(b"records"), hmac.new(b"", b"records", "sha256"))
    assert not any(digest.hexdigest().startswith(tag) for digest in digests for tag in tags)


def test_ranks_of_another_cluster_learn_nothing() -> None:
    def rank(endpoint: Threads) -> str:
        secret = ClusterSecret(bytes([endpoint.rank] * 32))
        return secret_tag(endpoint, b"records", authentication=secret)

    outcomes = try_ranks(2, rank)
    assert all(isinstance(error, ReduceError) for error in outcomes.errors.values())
    assert len(outcomes.errors) == 2
