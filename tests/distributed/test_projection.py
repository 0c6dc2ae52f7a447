"""Steps on more ranks than there are here: measured computing plus reckoned sums."""

from __future__ import annotations

import numpy as np
import pytest

from dither.errors import ConfigError
from dither.privacy.plan import Plan
from dither.privacy.trust import Trust
from dither.reduce.cost import Link, Network, seconds
from dither.train.distributed.projection import (
    Share,
    computing_time,
    largest_batch,
    project,
)

SHARES = (Share(8192, 8.3), Share(4096, 4.2), Share(8, 0.108))  # 0.1 + b/1000
NETWORK = Network(
    name="test",
    inside=Link(1e-6, 1e-10),
    across=Link(1e-5, 1e-9),
    seconds_per_reduced_byte=1e-10,
    ranks_per_host=4,
    cores=4,
    source="made up",
)


def test_computing_lies_on_lines_between_what_was_measured() -> None:
    known = sorted(SHARES, key=lambda share: share.batch)
    for batch in (4.0, 8.0, 100.0, 4096.0, 5000.0, 8192.0, 10_000.0):
        expected = 0.1 + batch / 1000
        assert computing_time(known, batch) == pytest.approx(expected, rel=2e-3)
    falling = (Share(8, 0.2), Share(16, 0.1))  # a noisy measurement never gives negative times
    assert computing_time(falling, 1000.0) == 0.0


@pytest.mark.parametrize(("mean", "ranks"), [(2048, 4), (128, 64), (8, 1024)])
def test_the_largest_of_many_samples_is_about_that_large(mean: int, ranks: int) -> None:
    draws = np.random.default_rng(5).poisson(mean, (400, ranks)).max(1).mean()
    assert largest_batch(mean, ranks) == pytest.approx(draws, rel=0.15)
    assert largest_batch(mean, ranks) > mean


def test_one_rank_has_no_slower_one() -> None:
    assert largest_batch(8192.0, 1) == 8192.0


def test_a_step_is_computing_and_the_fastest_sum() -> None:
    found = project(SHARES, batch_size=8192.0, dimension=1000, networks=[NETWORK], ranks=(2, 64))
    for point in found:
        batch = 8192.0 / point.ranks
        expected = 0.1 + largest_batch(batch, point.ranks) / 1000
        assert point.computing == pytest.approx(expected, rel=2e-3)
        assert point.summing == pytest.approx(seconds(point.algorithm, point.ranks, 4000, NETWORK))
        assert point.summing <= seconds("ring", point.ranks, 4000, NETWORK)
        assert point.seconds == point.computing + point.summing
        assert point.wire_bits == 32  # plain float32


def test_private_messages_have_the_width_of_their_lattice() -> None:
    plan = Plan(
        records=100_000, sampling_rate=0.01, steps=10, l2_clip=1.0, noise_multiplier=1.0,
        delta=1e-6, trust=Trust("local"),
    )  # fmt: skip
    found = project(
        SHARES, batch_size=1000.0, dimension=5000, networks=[NETWORK], ranks=(4, 1024), plan=plan
    )
    for point in found:
        assert point.wire_bits == plan.bind(1.0, 5000, point.ranks).wire_bits
        size = 5000 * point.wire_bits / 8
        assert point.summing == seconds(point.algorithm, point.ranks, size, NETWORK)


def test_ranks_beyond_a_hosts_cores_take_turns() -> None:
    crowded = Network(**{**vars(NETWORK), "ranks_per_host": 8})
    options = {"batch_size": 8192.0, "dimension": 10, "ranks": (8,)}
    (free,) = project(SHARES, networks=[NETWORK], **options)  # type: ignore[arg-type]
    (slow,) = project(SHARES, networks=[crowded], **options)  # type: ignore[arg-type]
    assert slow.computing == pytest.approx(2 * free.computing)


def test_one_size_draws_no_line() -> None:
    for shares in ((), SHARES[:1], (SHARES[0], SHARES[0])):
        with pytest.raises(ConfigError, match="two sizes"):
            project(shares, batch_size=1.0, dimension=1, networks=[NETWORK])
