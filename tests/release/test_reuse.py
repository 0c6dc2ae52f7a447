"""The reuse attack: two releases subtracted leave twice the noise, never less."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any, final

import numpy as np
import pytest
import torch
from jaxtyping import Float, Integer
from scipy import stats
from tests.release.conftest import RUN, bounded

from dither.errors import ReleaseError
from dither.noise.codec import Encoded, Grid, encode_ready
from dither.noise.key import Key
from dither.noise.pool import FreshNoise, Noise, NoisePool
from dither.noise.rounded import rounded_gaussian
from dither.privacy.account import Account
from dither.privacy.lattice import Lattice
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.release import release as release_module
from dither.release.release import release_sum

CHUNKS = [60_000, 40_000, 100_000]
SIZE = sum(CHUNKS)
ALARM = 1e-7
RUNS = 10  # coordinates that name a place: 90 bits of entropy on the wire, compared by 64

Released = np.ndarray[tuple[int], np.dtype[np.int64]]


@final
class Reusing:
    """A broken pool: its draws come again, whole, moved, of the other sign, or a share of them."""

    def __init__(self, manner: str) -> None:
        self.manner = manner
        self.old: dict[int, np.ndarray[Any, np.dtype[np.int64]]] = {}

    def encode(
        self,
        values: Float[np.ndarray, " size"],
        grid: Grid,
        *,
        out: Integer[np.ndarray, " size"] | None = None,
        factor: float = 1.0,
    ) -> Encoded:
        assert factor == 1.0
        noise = fresh = rounded_gaussian(grid.sigma, values.size, Key())
        old = self.old.setdefault(values.size, fresh)
        if old is not fresh:
            again = np.random.default_rng().random(values.size) < 0.05
            noise = {
                "whole": old,
                "moved": np.roll(old, 1234),
                "negated": -old,
                "a twentieth": np.where(again, old, fresh),
            }[self.manner]
        return encode_ready(values, noise.astype(np.int32), grid, out=out)


def attacks(one: Released, two: Released, lattice: Lattice) -> set[str]:
    """Which attacks succeed on two releases of one sum, in wire steps; false alarm 3e-7 in all.

    The variance of their difference, their correlation, and runs that occur in both.
    """
    found = set()
    sigma = np.ldexp(lattice.sigma, -lattice.wire_shift)
    low, high = stats.chi2.isf([1 - ALARM / 2, ALARM / 2], one.size)
    if not low < float(np.sum((one - two) ** 2.0)) / (2 * sigma**2) < high:
        found.add("variance")
    if abs(np.corrcoef(one, two)[0, 1]) * np.sqrt(one.size) > stats.norm.isf(ALARM / 2):
        found.add("correlation")
    factors = np.random.default_rng().integers(0, 2**63, RUNS, np.uint64) * np.uint64(2)
    names = [
        sum(
            words.view(np.uint64)[at : words.size - RUNS + at] * (factors[at] + np.uint64(1))
            for at in range(RUNS)
        )
        for words in (one, two)
    ]
    if np.intersect1d(*names).size or any(np.unique(name).size < name.size for name in names):
        found.add("repetition")
    return found


@pytest.fixture
def lattice(plan: Plan) -> Lattice:
    return plan.bind(plan.l2_clip, SIZE)


@pytest.fixture
def account(ledger: Ledger, plan: Plan) -> Account:
    return Account(ledger, RUN, plan, lease=64)


def release(account: Account, noise: Noise, lattice: Lattice) -> Released:
    """Release one and the same sum, in chunks, and take what is known of it away."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(-50, 50, (SIZE,), generator=generator, dtype=torch.int64)
    values = torch.split(steps.to(torch.float64) * lattice.wire_step, CHUNKS)
    parts = [{str(index): part.clone()} for index, part in enumerate(values)]
    tensors = release_sum(bounded(account.plan, *parts), account, noise=noise).tensors
    total = torch.cat([tensors[str(index)] for index in range(len(parts))]) / lattice.wire_step
    found: Released = (total.to(torch.int64) - steps).numpy()
    return found


@pytest.fixture(params=["fresh", "pool of many", "pool of few"])
def noise(request: pytest.FixtureRequest, lattice: Lattice) -> Iterator[Noise]:
    if request.param == "fresh":
        yield FreshNoise(Key())
        return
    capacity = 2**20 if request.param == "pool of many" else 1
    with NoisePool(lattice.sigma, capacity=capacity) as pool:
        yield pool


def test_no_two_releases_share_noise(account: Account, noise: Noise, lattice: Lattice) -> None:
    """Three pairs of releases, 3e-7 each: false alarm 1e-6; also through a pool run dry."""
    releases = [release(account, noise, lattice) for _ in range(3)]
    for one, two in combinations(releases, 2):
        assert attacks(one, two, lattice) == set()


@pytest.mark.parametrize(
    ("manner", "expected"),
    [
        ("whole", {"variance", "correlation", "repetition"}),
        ("moved", {"repetition"}),
        ("negated", {"variance", "correlation"}),
        ("a twentieth", {"correlation"}),
    ],
)
def test_a_pool_that_reuses_is_found_out(
    account: Account,
    lattice: Lattice,
    manner: str,
    expected: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A twentieth moves the variance by 16 deviations and the correlation by 22."""
    broken = Reusing(manner)
    with pytest.raises(ReleaseError, match="is not dither's"):
        release(account, broken, lattice)
    monkeypatch.setattr(release_module, "is_private", lambda noise: True)  # the door left open
    one, two = (release(account, broken, lattice) for _ in range(2))
    assert expected <= attacks(one, two, lattice)
