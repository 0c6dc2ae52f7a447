"""Sums of one contribution a rank: plan, clipping, blocks, refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest
from jaxtyping import Integer

from dither.errors import BudgetExhaustedError, ConfigError, ReleaseError
from dither.noise.codec import decode, encode
from dither.noise.key import Key
from dither.noise.pool import FreshNoise, Noise
from dither.privacy.account import Account
from dither.privacy.accountant import epsilon
from dither.privacy.events import Gaussian, Relation, Unit
from dither.privacy.lattice import Lattice
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.privacy.trust import LOCAL
from dither.release.contribution import ContributionRelease, bound_lattice, contribution_plan
from dither.release.transport import FusedTransport, Solo, Transport


@final
class InBlocks(Transport):
    """One rank whose messages travel in blocks."""

    def __init__(self, block: int) -> None:
        self._block = block
        self.sizes: list[int] = []

    @property
    def world_size(self) -> int:
        return 1

    @property
    def block(self) -> int | None:
        return self._block

    def all_reduce(self, message: Integer[np.ndarray, " size"]) -> Integer[np.ndarray, " size"]:
        self.sizes.append(message.size)
        return message


@final
class Fused(FusedTransport):
    """One rank that notes what it is asked to add noise to."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    @property
    def world_size(self) -> int:
        return 1

    def all_reduce(self, message: Integer[np.ndarray, " size"]) -> Integer[np.ndarray, " size"]:
        raise AssertionError("the fused way was there")

    def release(
        self,
        values: np.ndarray,
        out: np.ndarray,
        *,
        lattice: Lattice,
        noise: Noise,
        factor: float = 1.0,
        scale: float = 1.0,
    ) -> int:
        self.asked.append({"values": values.copy(), "factor": factor, "scale": scale})
        out[:] = 0.0
        return 0


@pytest.fixture
def plan() -> Plan:
    return contribution_plan(
        1, l2_clip=2.0, releases=8, delta=1e-6, noise_multiplier=1.0, trust=LOCAL
    )


@pytest.fixture
def account(plan: Plan, tmp_path: Path) -> Account:
    ledger = Ledger.create(
        tmp_path / "ledger.sqlite", store="rank", unit=Unit.RANK, relation=Relation.REPLACE_ONE
    )
    return Account(ledger, "run", plan, lease=1)


def fixed_key() -> Key:
    return Key.agreed(bytes(32), cipher="chacha20", secret=False)


def test_a_plan_charges_a_replacement_without_sampling(plan: Plan) -> None:
    """Two contributions in a C-ball are 2C apart: ε at z is that of distance C at z/2."""
    assert plan.event == Gaussian(1.0)
    other = epsilon([(Gaussian(0.5), 8)], 1e-6, Relation.ZERO_OUT)
    assert plan.epsilon() == pytest.approx(other, rel=2e-3)


@pytest.mark.full
def test_a_budget_is_met() -> None:
    calibrated = contribution_plan(3, l2_clip=1.0, releases=5, delta=1e-6, epsilon=4.0)
    assert 3.98 < calibrated.epsilon() <= 4.0


@pytest.mark.parametrize("given", [{}, {"noise_multiplier": 1.0, "epsilon": 1.0}])
def test_either_noise_or_budget(given: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="either a noise_multiplier or an epsilon"):
        contribution_plan(2, l2_clip=1.0, releases=5, delta=1e-6, **given)


def test_a_plan_of_records_is_refused(account: Account, plan: Plan) -> None:
    account.plan = replace(plan, unit=Unit.RECORD)
    with pytest.raises(ConfigError, match="contribution_plan"):
        ContributionRelease(account, Solo(), FreshNoise(Key()), dimension=4)


def test_noise_that_is_not_secret_is_refused(account: Account) -> None:
    with pytest.raises(ReleaseError, match="dither's own noise"):
        ContributionRelease(account, Solo(), FreshNoise(fixed_key()), dimension=4)


@pytest.mark.parametrize("size", [0, 1, 1000, 1024])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_blocks_give_what_the_codec_gives(
    size: int, kind: type, plan: Plan, tmp_path: Path
) -> None:
    ledger = Ledger.create(
        tmp_path / "debug.sqlite",
        store="debug",
        unit=Unit.RANK,
        relation=Relation.REPLACE_ONE,
        sensitive=False,
    )
    account = Account(ledger, "run", plan, insecure="a fixed key")
    carrier = InBlocks(256)
    release = ContributionRelease(account, carrier, FreshNoise(fixed_key()), dimension=1024)
    values: np.ndarray = np.linspace(-0.01, 0.01, size).astype(kind)
    out: np.ndarray = np.empty(size, kind)
    release(values, out)
    lattice = bound_lattice(plan, 1024, 1)
    wanted: np.ndarray = np.empty(size, kind)
    whole = encode(values, lattice, fixed_key()).message
    assert np.array_equal(out, decode(whole, lattice, out=wanted))
    assert sum(carrier.sizes) == size
    assert max(carrier.sizes, default=0) <= 256


@pytest.mark.parametrize("norm", [0.0, 1.0, 1.999, 2.0, 2.001, 50.0, 1e30])
def test_what_is_sent_lies_in_the_ball(norm: float, account: Account) -> None:
    carrier = Fused()
    release = ContributionRelease(account, carrier, FreshNoise(Key()), dimension=512)
    values = np.random.default_rng(0).normal(size=512)
    values *= norm / float(np.linalg.norm(values))
    release(values, np.empty(512))
    (asked,) = carrier.asked
    sent = float(np.linalg.norm(asked["values"] * asked["factor"]))
    assert sent <= 2.0 * (1.0 + 1e-12)
    assert sent == pytest.approx(min(norm, 2.0), rel=1e-6)
    assert 0.0 <= asked["factor"] <= 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_contribution_that_is_not_finite_is_zero(bad: float, account: Account) -> None:
    carrier = Fused()
    release = ContributionRelease(account, carrier, FreshNoise(Key()), dimension=3)
    with pytest.warns(match="counts as zero"):
        release(np.array([1.0, bad, 1.0]), np.empty(3))
    assert not carrier.asked[0]["values"].any()


def test_every_call_is_charged_and_the_plan_is_the_end(account: Account) -> None:
    release = ContributionRelease(account, Fused(), FreshNoise(Key()), dimension=3)
    values, out = np.ones(3), np.empty(3)
    for call in range(1, 9):
        release(values, out)
        assert account.ledger.charged("run") == call
    with pytest.raises(BudgetExhaustedError):
        release(values, out)


def test_longer_vectors_are_refused_before_the_charge(account: Account) -> None:
    release = ContributionRelease(account, Solo(), FreshNoise(Key()), dimension=4)
    with pytest.raises(ConfigError, match="at most 4 values"):
        release(np.zeros(5), np.zeros(5))
    assert account.ledger.charged("run") == 0


@pytest.mark.parametrize("releases", [0, -3])
def test_a_promise_of_no_releases_is_refused_in_its_own_words(releases: int) -> None:
    with pytest.raises(ConfigError, match="whole number of releases"):
        contribution_plan(2, l2_clip=1.0, releases=releases, delta=1e-6, noise_multiplier=10.0)


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan, math.inf, 1e10])
def test_a_clip_out_of_range_is_refused_in_its_own_words(clip: float) -> None:
    with pytest.raises(ConfigError, match="clip, an L2 bound"):
        contribution_plan(2, l2_clip=clip, releases=1, delta=1e-6, noise_multiplier=10.0)
