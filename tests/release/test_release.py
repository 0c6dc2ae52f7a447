"""The one door: charge first, noise on everything, once per sample."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, final

import numpy as np
import pytest
import torch
from jaxtyping import Integer
from scipy import stats
from tests.release.conftest import RUN, bounded, ticket
from torch import Tensor

from dither.errors import (
    BudgetExhaustedError,
    ConfigError,
    NoiseError,
    ReleaseError,
    SamplingError,
)
from dither.noise.entropy import InsecureSeed
from dither.noise.key import Key
from dither.noise.pool import FreshNoise, NoisePool
from dither.privacy.account import Account
from dither.privacy.events import Relation
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.privacy.ticket import SampleTicket
from dither.privacy.trust import Trust
from dither.release.bounded_sum import BoundedSum
from dither.release.chunk import BLOCK, SHORT
from dither.release.release import release_sum
from dither.release.transport import Solo, Transport


@final
class Watching(Transport):
    """A transport of one rank that looks into the ledger file before anything leaves."""

    def __init__(self, ledger: Ledger) -> None:
        self.path = ledger.path
        self.charged: list[int] = []
        self.sizes: list[int] = []

    @property
    def world_size(self) -> int:
        return 1

    def all_reduce(self, message: Integer[np.ndarray, " size"]) -> Integer[np.ndarray, " size"]:
        self.charged.append(Ledger.open(self.path).charged(RUN))
        self.sizes.append(message.size)
        return message


@final
class Broken(Transport):
    """A transport that fails at its n-th message."""

    def __init__(self, at: int) -> None:
        self.left = at

    @property
    def world_size(self) -> int:
        return 1

    def all_reduce(self, message: Integer[np.ndarray, " size"]) -> Integer[np.ndarray, " size"]:
        self.left -= 1
        if self.left == 0:
            raise ConnectionError("a rank went away")
        return message


def test_the_charge_is_durable_before_anything_leaves(account: Account) -> None:
    carrier = Watching(account.ledger)
    for call in range(1, 4):
        released = release_sum(bounded(account.plan), account, carrier)
        assert set(released.tensors) == {"weight", "bias"}
        assert account.ledger.charged(RUN) == call  # once a call, not once a chunk
    assert carrier.charged == [1, 1, 2, 2, 3, 3]
    assert carrier.sizes == [3, 4] * 3
    assert account.ledger.events(RUN) == [(account.plan.event, 1)] * 3


def test_chunks_made_late_are_made_after_the_charge(account: Account) -> None:
    seen: list[int] = []

    def chunks() -> Iterator[Mapping[str, Tensor]]:
        for name in "abc":
            seen.append(account.ledger.charged(RUN))
            yield {name: torch.zeros(2, dtype=torch.float64)}

    lazy = BoundedSum(chunks(), 6, account.plan.l2_clip, ticket(account.plan))
    assert list(release_sum(lazy, account).tensors) == ["a", "b", "c"]
    assert seen == [1, 1, 1]


def test_one_sample_is_released_once(account: Account) -> None:
    carrier = Watching(account.ledger)
    once = bounded(account.plan)
    release_sum(once, account, carrier)
    with pytest.raises(SamplingError, match="released before"):
        release_sum(once, account, carrier)
    with pytest.raises(SamplingError, match="released before"):
        release_sum(replace(once, chunks=({"a": torch.zeros(7, dtype=torch.float64)},)), account)
    assert account.ledger.charged(RUN) == 1
    assert len(carrier.sizes) == 2


@pytest.mark.parametrize("at", [1, 2])
def test_a_failed_transport_leaves_charge_and_spent_ticket(account: Account, at: int) -> None:
    once = bounded(account.plan)
    with pytest.raises(ConnectionError):
        release_sum(once, account, Broken(at))
    assert account.ledger.charged(RUN) == 1
    with pytest.raises(SamplingError, match="take the next batch"):
        release_sum(once, account)
    assert account.ledger.charged(RUN) == 1
    release_sum(bounded(account.plan), account)
    assert account.ledger.charged(RUN) == 2


@pytest.mark.parametrize("dimension", [6, 8])
def test_another_number_of_coordinates_than_declared_is_refused(
    account: Account, dimension: int
) -> None:
    carrier = Watching(account.ledger)
    with pytest.raises(ReleaseError, match=f"a sum of {dimension} coordinates"):
        release_sum(bounded(account.plan, dimension=dimension), account, carrier)
    # What would go beyond the declared γ√d never leaves.
    assert sum(carrier.sizes) <= dimension


def test_a_name_in_two_chunks_is_refused_before_it_leaves(account: Account) -> None:
    carrier = Watching(account.ledger)
    part = {"a": torch.zeros(2, dtype=torch.float64)}
    with pytest.raises(ReleaseError, match="each one once"):
        release_sum(bounded(account.plan, part, part), account, carrier)
    assert carrier.sizes == [2]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_sum_that_is_not_finite_never_leaves(account: Account, bad: float) -> None:
    carrier = Watching(account.ledger)
    part = {"a": torch.tensor([0.0, bad], dtype=torch.float64)}
    with pytest.raises(ReleaseError, match="a finite clipped sum"):
        release_sum(bounded(account.plan, part), account, carrier)
    assert carrier.sizes == []


def test_another_clip_bound_is_refused_uncharged(account: Account) -> None:
    other = replace(bounded(account.plan), l2_clip=account.plan.l2_clip / 2)
    with pytest.raises(ConfigError, match="clipped to the plan's bound"):
        release_sum(other, account)
    assert account.ledger.charged(RUN) == 0


def test_another_sampling_rate_is_refused_uncharged(account: Account) -> None:
    other = replace(account.plan, sampling_rate=0.02)
    with pytest.raises(SamplingError, match="as charged"):
        release_sum(bounded(other), account)
    assert account.ledger.charged(RUN) == 0


def test_an_exhausted_plan_lets_nothing_out(ledger: Ledger, plan: Plan) -> None:
    account = Account(ledger, RUN, replace(plan, steps=2))
    carrier = Watching(ledger)
    for _ in range(2):
        release_sum(bounded(account.plan), account, carrier)
    with pytest.raises(BudgetExhaustedError):
        release_sum(bounded(account.plan), account, carrier)
    assert len(carrier.sizes) == 4


def test_known_noise_is_refused_by_a_private_account(account: Account) -> None:
    once = bounded(account.plan)
    known = InsecureSeed(1).key()
    shared = Key.agreed(bytes(32))  # who shares it can take the noise away, or make it again
    with pytest.raises(ReleaseError, match="is shared"):
        release_sum(once, account, noise=FreshNoise(shared))
    with pytest.raises(ReleaseError, match="operating system's entropy"):
        release_sum(once, account, noise=FreshNoise(known))
    sigma = account.plan.bind(account.plan.l2_clip, 7).sigma
    with (
        NoisePool(sigma, known) as pool,
        pytest.raises(ReleaseError, match="operating system's entropy"),
    ):
        release_sum(once, account, noise=pool)
    assert account.ledger.charged(RUN) == 0
    release_sum(once, account)  # nothing was spent by the refusal


def test_noise_that_cannot_serve_the_plan_is_refused_before_anything_is_spent(
    account: Account,
) -> None:
    carrier = Watching(account.ledger)
    once = bounded(account.plan)
    sigma = account.plan.bind(account.plan.l2_clip, 7).sigma
    with NoisePool(sigma / 2) as wrong, pytest.raises(NoiseError, match="one pool for each plan"):
        release_sum(once, account, carrier, wrong)
    with NoisePool(sigma) as closed:
        pass
    with pytest.raises(NoiseError, match="an open pool"):
        release_sum(once, account, carrier, closed)
    assert account.ledger.charged(RUN) == 0
    assert carrier.sizes == []
    with NoisePool(sigma) as right:
        release_sum(once, account, carrier, right)
        assert right.stats().used + right.stats().dry == 7
    assert account.ledger.charged(RUN) == 1


def test_known_noise_takes_an_account_of_infinite_epsilon(ledger: Ledger, plan: Plan) -> None:
    account = Account(ledger, RUN, plan, insecure="seed 1")
    one, two = (
        release_sum(bounded(plan), account, noise=FreshNoise(InsecureSeed(1).key())).tensors["bias"]
        for _ in range(2)
    )
    assert torch.equal(one, two)
    assert ledger.epsilon(plan.delta) == math.inf


def test_shapes_types_and_values_come_back(account: Account) -> None:
    """Values survive little noise: σ is 0.009, so 0.4 off is 44 σ and has probability 0."""
    tiny = replace(account.plan, noise_multiplier=0.03, l2_clip=0.3)
    quiet = Account(account.ledger, "quiet", tiny)
    parts = (
        {"a": torch.tensor([[1.0, -2.0], [3.0, 4.0]], dtype=torch.float64)},
        {"b": torch.tensor([5.0], dtype=torch.float64), "c": torch.tensor(-6.0).double()},
    )
    released = release_sum(bounded(tiny, *parts), quiet)
    for part in parts:
        for name, tensor in part.items():
            assert released.tensors[name].dtype == torch.float64
            assert released.tensors[name].shape == tensor.shape
            assert torch.allclose(released.tensors[name], tensor, rtol=0.0, atol=0.4)
    assert released.saturated == 0


def test_saturation_is_reported_to_the_operator(account: Account) -> None:
    part = {"a": torch.tensor([1e9, 0.0, -1e9], dtype=torch.float64)}
    released = release_sum(bounded(account.plan, part), account)
    assert released.saturated == 2
    assert released.tensors["a"].abs().max() < 1e4  # clamped to the largest usual sum


def test_sensitivity_of_a_sum_follows_the_relation(plan: Plan) -> None:
    once = bounded(plan)
    assert once.sensitivity(Relation.ZERO_OUT) == plan.l2_clip
    assert once.sensitivity(Relation.ADD_REMOVE) == plan.l2_clip
    assert once.sensitivity(Relation.REPLACE_ONE) == 2 * plan.l2_clip


def test_solo_is_a_transport_of_one_rank() -> None:
    message = np.arange(5, dtype=np.int16)
    assert isinstance(Solo(), Transport)
    assert Solo().world_size == 1
    assert (Solo().all_reduce(message) == message).all()


@final
class Passing(Transport):
    """A transport of one rank that is not `Solo`: whole messages go through it."""

    @property
    def world_size(self) -> int:
        return 1

    def all_reduce(self, message: Integer[np.ndarray, " size"]) -> Integer[np.ndarray, " size"]:
        return message.copy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1 / 96.3, -2.5])
@pytest.mark.parametrize("carrier", [None, Passing()], ids=["solo", "a transport"])
def test_released_is_the_noisy_sum_times_the_scale(
    ledger: Ledger, plan: Plan, dtype: torch.dtype, scale: float, carrier: Transport | None
) -> None:
    """Bit for bit what two more passes over the float64 sum would make of it."""
    account = Account(ledger, RUN, plan, insecure="a fixed key", lease=1)
    part = {"a": torch.randn(3, 70_001).double(), "b": torch.randn(4), "c": torch.randn(150_000)}

    def released(**options: Any) -> dict[str, Tensor]:
        noise = FreshNoise(Key.agreed(bytes(32), secret=False))
        return release_sum(bounded(plan, part), account, carrier, noise, **options).tensors

    plain, scaled = released(), released(scale=scale, dtype=dtype)
    for name, tensor in plain.items():
        assert tensor.dtype == torch.float64
        assert scaled[name].dtype == dtype
        assert scaled[name].shape == part[name].shape
        assert torch.equal(scaled[name], (tensor * scale).to(dtype))
    assert account.ledger.charged(RUN) == 2  # neither scale nor type costs anything


def test_a_message_in_blocks_is_the_message_in_one(ledger: Ledger, plan: Plan) -> None:
    """One rank alone never holds its whole message; for one key it releases the same."""
    account = Account(ledger, RUN, plan, insecure="a fixed key")
    sizes = {"a": 5, "b": 3 * BLOCK + 77, "c": BLOCK, "d": SHORT - 1, "e": 9}
    part = {name: torch.randn(size, dtype=torch.float64) for name, size in sizes.items()}
    found = [
        release_sum(
            bounded(plan, part),
            account,
            carrier,
            FreshNoise(Key.agreed(bytes(32), secret=False)),
        ).tensors
        for carrier in (None, Passing())
    ]
    assert all(torch.equal(found[0][name], found[1][name]) for name in sizes)
    assert all(not torch.equal(found[0][name], part[name]) for name in sizes)


@pytest.mark.parametrize(
    "options",
    [{"scale": 0.0}, {"scale": math.nan}, {"scale": math.inf}, {"dtype": torch.float16}],
    ids=str,
)
def test_a_scale_or_type_that_cannot_be_had_costs_nothing(
    account: Account, options: dict[str, Any]
) -> None:
    once = bounded(account.plan)
    with pytest.raises(ConfigError):
        release_sum(once, account, **options)
    assert account.ledger.charged(RUN) == 0
    release_sum(once, account)  # the sample is not spent


CALLS = 700
Noise = np.ndarray[tuple[int, int], np.dtype[np.float64]]


@pytest.fixture(scope="module", params=["default", "pool"])
def noise(
    plan: Plan, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Noise:
    """CALLS × 12 coordinates of released empty batches, in three chunks of 1, 4 and 7."""
    folder = tmp_path_factory.mktemp("noise")
    ledger = Ledger.create(folder / "ledger.sqlite", store="records")
    account = Account(ledger, RUN, plan, lease=1000)
    parts = [{str(n): torch.zeros(n, dtype=torch.float64)} for n in (1, 4, 7)]
    rows = []
    with NoisePool(plan.bind(plan.l2_clip, 12).sigma) as pool:
        source = pool if request.param == "pool" else None
        for _ in range(CALLS):
            tensors = release_sum(bounded(plan, *parts), account, noise=source).tensors
            rows.append(torch.cat([tensors["1"], tensors["4"], tensors["7"]]).numpy())
        taken = pool.stats().used + pool.stats().dry
    assert taken == (CALLS * 12 if request.param == "pool" else 0)
    return np.stack(rows)


def test_every_zero_of_an_empty_batch_gets_the_right_noise(noise: Noise, plan: Plan) -> None:
    """χ² a coordinate, false alarm 12·1e-8; 2/3 and 3/2 of σ are rejected on each of them.

    Those are 10 and more deviations away, missed with probability below 1e-12.
    """
    lattice = plan.bind(plan.l2_clip, 12)
    sigma = plan.noise_multiplier * (
        plan.l2_clip * (1 + plan.numeric_slack) + lattice.step * math.sqrt(12)
    )
    low, high = stats.chi2.isf([1 - 5e-9, 5e-9], CALLS)
    energy = (noise**2).sum(axis=0)
    assert ((low < energy / sigma**2) & (energy / sigma**2 < high)).all()
    for wrong in (2 / 3, 3 / 2):
        scaled = energy / (wrong * sigma) ** 2
        assert ((scaled < low) | (scaled > high)).all()
    assert np.abs(noise.mean(axis=0)).max() < 6 * sigma / math.sqrt(CALLS) + lattice.wire_step


def test_noise_is_independent_over_chunks_and_calls(noise: Noise) -> None:
    """66 correlations in a call and 144 with the next one, |r|·√n < 6: false alarm 210·2e-9."""
    within = np.asarray(np.corrcoef(noise, rowvar=False))
    np.fill_diagonal(within, 0.0)
    following = np.corrcoef(noise[1:], noise[:-1], rowvar=False)[:12, 12:]
    assert np.abs(within).max() * math.sqrt(CALLS) < 6
    assert np.abs(following).max() * math.sqrt(CALLS) < 6


def test_released_values_are_on_the_wire_lattice(noise: Noise, plan: Plan) -> None:
    steps = noise / plan.bind(plan.l2_clip, 12).wire_step
    assert (steps == np.rint(steps)).all()


def test_a_sample_that_repeats_is_refused(ledger: Ledger, plan: Plan) -> None:
    """A seeded sampler under OS noise would void the amplification that the plan charges."""
    account = Account(ledger, RUN, plan)
    ticket = SampleTicket(plan.sampler, plan.sampling_rate, secret=False)
    with pytest.raises(ReleaseError, match="sample that repeats"):
        release_sum(replace(bounded(plan), ticket=ticket), account)
    assert account.steps_charged == 0


def test_shares_of_noise_without_masks_are_refused(ledger: Ledger, plan: Plan) -> None:
    spread = replace(plan, trust=Trust("distributed", 1))
    account = Account(ledger, RUN, spread)
    with pytest.raises(ReleaseError, match="masks"):
        release_sum(bounded(spread), account)
    assert account.steps_charged == 0


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(20, dtype=torch.float64)[::2],
        torch.zeros(200_000)[::2],
        torch.zeros(10, 3)[:, 1],
        torch.zeros(1).expand(12),
        torch.ones(8, dtype=torch.complex64).conj().imag,
    ],
    ids=["strided", "long and strided", "a column", "expanded", "negative bit"],
)
def test_layouts_that_the_core_cannot_read_are_released_all_the_same(
    account: Account, tensor: Tensor
) -> None:
    released = release_sum(bounded(account.plan, {"w": tensor}), account)
    assert released.tensors["w"].shape == tensor.shape
    assert account.ledger.charged(RUN) == 1
