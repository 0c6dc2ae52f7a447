"""Costs are those of the algorithms that run, and what is measured gives the model back."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from dither.errors import ConfigError
from dither.reduce import cost
from dither.reduce.algorithms.registry import ALGORITHMS
from dither.reduce.cost import Counts, Link, Network, Speed, Stage, counts, seconds
from dither.reduce.endpoint import Buffer, Endpoint
from dither.reduce.fit import Point, fit
from dither.reduce.networks import CLUSTER_25G, FRONTIER_LIKE, LAPTOP, NETWORKS, measured_networks
from dither.reduce.transports.threads import Threads, run_ranks

ALPHA, BETA, GAMMA = 3.0, 0.5, 0.25
N = 4096.0
FLAT = Network("flat", Link(0, 0), Link(ALPHA, BETA), GAMMA, ranks_per_host=1, cores=1, source="")


@pytest.mark.parametrize(
    ("algorithm", "ranks", "expected"),
    [
        ("naive", 5, Counts(4, 4 * N, 4 * N)),
        ("round_robin", 4, Counts(3, 3 * N, 3 * N)),
        ("round_robin", 5, Counts(5, 5 * N, 4 * N)),
        ("binomial", 8, Counts(6, 6 * N, 3 * N)),
        ("binomial", 5, Counts(6, 6 * N, 3 * N)),
        ("recursive_doubling", 8, Counts(3, 3 * N, 3 * N)),
        ("recursive_doubling", 6, Counts(4, 4 * N, 3 * N)),
        ("ring", 4, Counts(6, 1.5 * N, 0.75 * N)),
        ("ring", 5, Counts(8, 1.6 * N, 0.8 * N)),
        ("rabenseifner", 8, Counts(6, 1.75 * N, 0.875 * N)),
        ("rabenseifner", 3, Counts(4, 3 * N, 1.5 * N)),
        ("hierarchical", 4, Counts(2, 2 * N, 2 * N)),  # short: hosts exchange whole messages
        ("backend", 4, Counts(4, 1.5 * N, 0.75 * N)),
    ],
)
def test_counts_worked_out_by_hand(algorithm: str, ranks: int, expected: Counts) -> None:
    found = counts(algorithm, ranks, N)
    assert (found.steps, found.size, found.reduced) == pytest.approx(
        (expected.steps, expected.size, expected.reduced)
    )
    steps = expected.steps * ALPHA + expected.size * BETA + expected.reduced * GAMMA
    assert seconds(algorithm, ranks, N, FLAT) == pytest.approx(steps)


@pytest.mark.parametrize("algorithm", cost.ALGORITHMS)
def test_one_rank_sends_nothing(algorithm: str) -> None:
    assert counts(algorithm, 1, N) == Counts(0, 0, 0)


class Clocked(Endpoint):
    """An endpoint with a clock of its own, by which messages take α + nβ and nothing else time."""

    def __init__(self, inner: Threads) -> None:
        self._inner, self.clock = inner, 0.0

    rank = property(lambda self: self._inner.rank)
    world_size = property(lambda self: self._inner.world_size)
    hosts = property(lambda self: self._inner.hosts)
    timeout = property(lambda self: self._inner.timeout)

    def send(self, to: int, message: Buffer) -> None:
        self.clock += ALPHA + BETA * message.nbytes
        self._inner.send(to, np.array([self.clock]))
        self._inner.send(to, message)

    def receive(self, source: int, out: Buffer) -> None:
        then = np.zeros(1)
        self._inner.receive(source, then)
        self._inner.receive(source, out)
        self.clock = max(self.clock, float(then[0]))

    def exchange(self, to: int, message: Buffer, source: int, out: Buffer) -> None:
        self.send(to, message)
        self.receive(source, out)

    def close(self) -> None:
        self._inner.close()


@pytest.mark.parametrize("ranks", [2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name != "backend"])
def test_the_model_is_the_time_of_the_algorithm_that_runs(algorithm: str, ranks: int) -> None:
    """Run each on ranks that keep the model's time, free of adding."""
    size = 960 * 16  # short for `hierarchical`; divisible by all numbers of ranks

    def run(inner: Threads) -> float:
        endpoint = Clocked(inner)
        ALGORITHMS[algorithm](endpoint, np.ones(size // 4, np.int32))
        return endpoint.clock

    clock = max(run_ranks(ranks, run, hosts=range(ranks)))
    model = seconds(algorithm, ranks, size, replace(FLAT, seconds_per_reduced_byte=0.0))
    if ranks & (ranks - 1) == 0 or algorithm in {"naive", "ring", "round_robin"}:
        assert clock == pytest.approx(model)
    else:
        assert 0.6 * model <= clock <= model * 1.0001


def test_ranks_of_a_host_share_its_link() -> None:
    """Four hosts of two ranks, n = 1024: worked out by hand from who sends where."""
    network = replace(FLAT, inside=Link(1.0, 0.125), ranks_per_host=2, cores=2)
    n, far, near = 1024.0, ALPHA, 1.0

    def send(size: float, sharers: int) -> float:
        return far + size * max(sharers * BETA, 0.125) if sharers else near + size * 0.125

    steps = {
        # Distances 1 (one of two crosses), 2 .. 6 (both), 7 (one).
        "naive": 2 * send(n, 1) + 5 * send(n, 2) + 7 * n * GAMMA,
        "ring": 14 * send(n / 8, 1) + 7 / 8 * n * GAMMA,
        "recursive_doubling": send(n, 0) + 2 * send(n, 2) + 3 * n * GAMMA,
        "rabenseifner": 2 * (send(n / 2, 2) + send(n / 4, 2) + send(n / 8, 0)) + 7 / 8 * n * GAMMA,
        "binomial": 2 * (send(n, 0) + 2 * send(n, 1)) + 3 * n * GAMMA,
        "hierarchical": 2 * send(n, 0) + 2 * send(n, 1) + 3 * n * GAMMA,
        "backend": send(n, 0) + 2 * send(n, 2) + 3 * n * GAMMA,
    }
    assert {name: seconds(name, 8, n, network) for name in steps} == pytest.approx(steps)


def test_hosts_full_of_ranks_are_worth_a_hierarchy() -> None:
    network = replace(CLUSTER_25G, ranks_per_host=2, cores=2)
    flat = min(seconds(name, 8, 1 << 24, network) for name in ("recursive_doubling", "naive"))
    assert seconds("hierarchical", 8, 1 << 24, network) < flat


def test_ranks_beyond_the_cores_take_turns() -> None:
    two = replace(LAPTOP, cores=2)
    assert seconds("ring", 8, N, two) == pytest.approx(4 * seconds("ring", 8, N, LAPTOP))


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_every_network_has_a_fastest_algorithm_up_to_8192_ranks(network: Network) -> None:
    for ranks in (2, 3, 1000, 8192):
        short = cost.fastest(ranks, 64, network)
        long = cost.fastest(ranks, 1 << 26, network)
        assert 0 < short[1] < long[1] < 1e4
        assert cost.fastest(ranks, 0, network)[1] > 0
    assert long[0] in {"ring", "rabenseifner", "hierarchical", "backend"}
    assert "assumed" in network.source


def test_shared_bytes_shape_the_choice() -> None:
    """Bytes rule long messages, steps short ones."""
    assert cost.fastest(64, 1 << 26, FRONTIER_LIKE)[0] != cost.fastest(64, 8, FRONTIER_LIKE)[0]


def test_protections_by_hand() -> None:
    speed = Speed(noise=8.0, encode=4.0, mask=2.0, add=1.0, decode=0.5)
    found = {p.name: p for p in cost.protections(speed, wire_bits=16, neighbours=3)}
    assert {name: (p.bytes_per_coordinate, p.ready, p.ahead) for name, p in found.items()} == {
        "clear": (4, 0.0, 0.0),
        "private": (2, 4.5, 8.0),
        "masked": (2, 5.5, 8.0 + 3 * 2.0),
        "encrypted": (4, 5.5, 3 * 2.0),
    }
    ready = cost.predicted(found["private"], 100, 4, FLAT, algorithm="ring")
    assert ready == pytest.approx(seconds("ring", 4, 200, FLAT) + 450.0)
    made = cost.predicted(found["private"], 100, 4, FLAT, algorithm="ring", sustained=True)
    assert made == pytest.approx(ready + 800.0)


POINTS = [
    (name, ranks, size)
    for name in ("naive", "ring", "recursive_doubling")
    for ranks in (2, 4)
    for size in (64, 4096, 1 << 16, 1 << 20, 1 << 24)
]


def _points(noise: float) -> list[Point]:
    generator = np.random.default_rng(5)
    found = []
    for name, ranks, size in POINTS:
        c = counts(name, ranks, size)
        exact = 2e-6 * c.steps + 3e-10 * c.size + 1e-10 * c.reduced
        found.append(Point(name, ranks, size, exact * math.exp(noise * generator.normal())))
    return found


def test_the_fit_returns_what_made_the_points() -> None:
    exact = fit(_points(0.0))
    assert (exact.link.latency, exact.link.seconds_per_byte) == pytest.approx((2e-6, 3e-10))
    assert exact.seconds_per_reduced_byte == pytest.approx(1e-10)
    assert exact.error < 1e-9
    noisy = fit(_points(0.03))
    assert noisy.link.latency == pytest.approx(2e-6, rel=0.1)
    assert noisy.link.seconds_per_byte == pytest.approx(3e-10, rel=0.15)
    assert noisy.seconds_per_reduced_byte == pytest.approx(1e-10, rel=0.5)
    assert 0.01 < noisy.error < 0.06


def test_the_fit_has_no_negative_costs() -> None:
    points = [Point(p.algorithm, p.world_size, p.size, max(1e-7, p.seconds)) for p in _points(1.0)]
    found = fit(points)
    assert min(*vars(found.link).values(), found.seconds_per_reduced_byte) >= 0.0


@pytest.mark.parametrize(
    "points",
    [
        [],
        [Point("ring", 2, size, 1e-6 * size) for size in (64, 4096, 1 << 20)],
        [Point(name, 2, 64, 1.0) for name in ("ring", "naive", "binomial")][:2],
        [Point("ring", 2, 64, 0.0)],
    ],
    ids=["none", "one algorithm", "too few", "no time"],
)
def test_points_that_tell_too_little_are_refused(points: list[Point]) -> None:
    with pytest.raises(ConfigError):
        fit(points)


@pytest.mark.parametrize(
    "arguments", [("sparse", 2, 8), ("ring", 0, 8), ("ring", 2, -1)], ids=["name", "ranks", "size"]
)
def test_nonsense_is_refused(arguments: tuple[str, int, int]) -> None:
    with pytest.raises(ConfigError):
        counts(*arguments)


def test_measured_networks_say_what_is_measured() -> None:
    laptop, cluster, frontier = measured_networks(fit(_points(0.0)), cores=2, machine="Example")
    assert laptop.source.startswith("measured here: Example, 2 cores")
    assert laptop.inside.latency == pytest.approx(2e-6)
    assert laptop.cores == 2
    assert cluster.across == CLUSTER_25G.across
    assert "assumed" in cluster.source
    assert "inside a host as measured" in frontier.source


def test_stages_are_stated_a_step_each() -> None:
    assert cost.stages("ring", 4, 8.0, ranks_per_host=2) == (
        Stage(3, 2.0, 2.0, 1),
        Stage(3, 2.0, 0.0, 1),
    )
