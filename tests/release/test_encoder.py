"""Messages of several ranks: their sum carries the noise that the trust table says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from tests.noise.processes import in_child

from dither.errors import ConfigError, NoiseError
from dither.noise.key import Key
from dither.noise.pool import FreshNoise, Noise, NoisePool
from dither.privacy.lattice import Lattice
from dither.privacy.plan import Plan
from dither.privacy.trust import CENTRAL, LOCAL, Trust
from dither.release.encoder import Encoder

ALARM = 1e-7
SIZE = 20_000

Source = Callable[[float], Noise]


@pytest.fixture(params=["fresh", "pool"])
def source(request: pytest.FixtureRequest) -> Iterator[Source]:
    """Makes noise of a σ, from a key of its own."""
    with ExitStack() as pools:

        def pooled(sigma: float) -> Noise:
            return pools.enter_context(NoisePool(sigma))

        yield pooled if request.param == "pool" else lambda _: FreshNoise(Key())


def _fits(noise: np.ndarray[tuple[int], np.dtype[np.float64]], sigma: float) -> bool:
    low, high = stats.chi2.isf([1 - ALARM / 2, ALARM / 2], noise.size)
    return bool(low < float(np.sum(noise**2)) / sigma**2 < high)


@pytest.mark.parametrize(
    ("trust", "ranks"),
    [*((t, r) for t in (CENTRAL, LOCAL) for r in (1, 4, 16))]
    + [(Trust("distributed", t), r) for t, r in ((0, 2), (1, 4), (3, 16))],
    ids=str,
)
@pytest.mark.parametrize("z", [1.5, 60.0])
def test_the_sum_of_all_ranks_carries_the_tables_noise(
    plan: Plan, trust: Trust, ranks: int, z: float, source: Source
) -> None:
    """χ², false alarm 1e-7; 2/3 and 3/2 of σ are rejected, and so is a saturated tail."""
    plan = replace(plan, trust=trust, noise_multiplier=z)
    lattice = plan.bind(plan.l2_clip, SIZE, ranks)
    encoder = Encoder(lattice, source(lattice.sigma))
    values = np.full(SIZE, 0.7)
    messages = [encoder.encode(values).message for _ in range(ranks)]
    total = messages[0].copy()
    for message in messages[1:]:
        total += message  # in the wire's own type: it must not wrap
    assert (total == np.sum(messages, axis=0, dtype=np.int64)).all()
    noise = encoder.decode(total) - ranks * values
    charged = plan.l2_clip * (1 + plan.numeric_slack) + lattice.step * math.sqrt(SIZE)
    sigma = plan.noise_multiplier * charged * trust.sum_multiple(ranks)
    assert _fits(noise, sigma)
    assert not _fits(noise, sigma * 2 / 3)
    assert not _fits(noise, sigma * 3 / 2)
    assert abs(noise.mean()) < 6 * sigma / math.sqrt(SIZE) + ranks * lattice.wire_step
    limit = lattice.wire_limit
    assert max(int(np.abs(message.astype(np.int64)).max()) for message in messages) < limit


def test_every_rank_and_call_draws_its_own_noise(plan: Plan, source: Source) -> None:
    """Correlation of two messages, |r|·√n < 5.4: false alarm 7e-8."""
    lattice = plan.bind(plan.l2_clip, SIZE, 2)
    encoder = Encoder(lattice, source(lattice.sigma))
    one, two = (encoder.encode(np.zeros(SIZE)).message.astype(float) for _ in range(2))
    assert abs(np.corrcoef(one, two)[0, 1]) * math.sqrt(SIZE) < 5.4


def test_saturation_is_counted_before_noise(plan: Plan, source: Source) -> None:
    lattice = plan.bind(plan.l2_clip, 4)
    huge = 2.0 * lattice.clamp * lattice.step
    encoder = Encoder(lattice, source(lattice.sigma))
    assert encoder.encode(np.array([0.0, huge, -huge, 1.0])).saturated == 2


def test_noise_that_cannot_serve_the_lattice_is_refused_at_once(plan: Plan) -> None:
    """Before a sample or a step is spent on it: another σ, a closed pool, wild numbers."""
    lattice = plan.bind(plan.l2_clip, SIZE)
    with NoisePool(lattice.sigma * (1 + 2**-52)) as other:
        with pytest.raises(NoiseError, match="one pool for each plan"):
            Encoder(lattice, other)
        assert other.stats().used + other.stats().dry == 0
    with NoisePool(lattice.sigma) as right:
        Encoder(lattice, right)
    with pytest.raises(NoiseError, match="an open pool"):
        Encoder(lattice, right)
    wild: list[Lattice] = [replace(lattice, sigma=2.0**41), replace(lattice, clamp=2**51)]
    for numbers in wild:
        with pytest.raises(ConfigError):
            Encoder(numbers, FreshNoise(Key()))


def test_a_key_agreed_before_a_fork_is_refused_at_once(plan: Plan) -> None:
    lattice, noise = plan.bind(plan.l2_clip, SIZE), FreshNoise(Key.agreed(bytes(32)))

    def child() -> bytes:
        with pytest.raises(NoiseError, match="after fork"):
            Encoder(lattice, noise)
        return b"refused"

    assert in_child(child) == b"refused"
    assert Encoder(lattice, noise).encode(np.zeros(9)).message.any()
