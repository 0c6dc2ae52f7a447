"""`Plan.bind`: the only owner of σ."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dither.errors import ConfigError
from dither.privacy.events import Relation, SamplerKind, Unit
from dither.privacy.lattice import Lattice
from dither.privacy.plan import Plan
from dither.privacy.trust import CENTRAL, LOCAL, Trust

TRUSTS = [CENTRAL, LOCAL, Trust("distributed", 1), Trust("distributed", 3)]
TAIL = 9.0


def _plan(clip: float = 1.0, z: float = 1.0, batch: float = 100.0, trust: Trust = CENTRAL) -> Plan:
    return Plan(
        records=1_000_000,
        sampling_rate=batch / 1_000_000,
        steps=10,
        l2_clip=clip,
        noise_multiplier=z,
        delta=1e-7,
        trust=trust,
    )


def _numbers(lattice: Lattice) -> tuple[float, float, float]:
    """Wire σ, largest wire magnitude before noise, and the limit, all of one rank."""
    scale = 2.0**lattice.wire_shift
    return lattice.sigma / scale, lattice.clamp / scale, float(lattice.wire_limit)


@settings(max_examples=300, deadline=None)
@given(
    clip=st.floats(1e-6, 1e6),
    z=st.floats(0.7, 200.0),
    dimension=st.integers(1, 10**9),
    ranks=st.sampled_from([4, 5, 8, 64, 300]),
    trust=st.sampled_from(TRUSTS),
)
def test_sigma_is_z_times_charged_sensitivity_times_share(
    clip: float, z: float, dimension: int, ranks: int, trust: Trust
) -> None:
    plan = _plan(clip, z, trust=trust)
    lattice = plan.bind(clip, dimension, ranks)
    step = lattice.step
    assert math.frexp(step)[0] == 0.5  # a power of two
    assert step == 2.0**lattice.step_exponent
    assert step * math.sqrt(dimension) <= plan.lattice_slack * clip * (1 + 1e-12)
    assert step * math.sqrt(dimension) > plan.lattice_slack * clip / 2 * (1 - 1e-12)
    charged = clip + step * math.sqrt(dimension) + plan.numeric_slack * clip
    honest = {"central": ranks, "local": 1, "distributed": ranks - trust.colluders}[trust.name]
    assert lattice.sigma * step == pytest.approx(z * charged / math.sqrt(honest), rel=1e-13)
    assert plan.event == _plan(clip, z, trust=trust).event


@pytest.mark.parametrize("trust", TRUSTS, ids=str)
@pytest.mark.parametrize("ranks", [4, 8, 64, 200])
@pytest.mark.parametrize("z", [0.6, 1.0, 20.0, 181.0])
@pytest.mark.parametrize("batch", [1.0, 300.0, 1000.0])
def test_head_room_of_nine_sigma_for_every_rank(
    trust: Trust, ranks: int, z: float, batch: float
) -> None:
    """A rank's tail must not saturate, nor the sum overflow: that would truncate the noise."""
    lattice = _plan(z=z, batch=batch, trust=trust).bind(1.0, 5_000, ranks)
    sigma, largest, limit = _numbers(lattice)
    assert largest + TAIL * sigma + 1.0 <= limit
    assert ranks * limit <= 2 ** (lattice.wire_bits - 1) - 1
    assert sigma >= 4.0  # shares of one Gaussian, PRIVACY-REVIEW C
    shard = batch / ranks
    usual = shard + 9.0 * math.sqrt(shard)  # contributions in a shard's batch, nearly always fewer
    assert largest * 2.0**lattice.wire_shift * lattice.step >= usual


@settings(max_examples=200, deadline=None)
@given(
    z=st.floats(0.05, 200.0),
    batch=st.floats(1.0, 100_000.0),
    dimension=st.integers(1, 10**7),
    ranks=st.integers(1, 64),
)
def test_sixteen_bits_exactly_when_they_hold_every_rank(
    z: float, batch: float, dimension: int, ranks: int
) -> None:
    try:
        lattice = _plan(z=z, batch=batch).bind(1.0, dimension, ranks)
    except ConfigError as error:
        assume("32-bit" not in str(error))
        raise
    sigma, largest, _ = _numbers(lattice)
    need = ranks * (largest + TAIL * sigma + 1.0)
    assert lattice.wire_bits in {16, 32}
    if lattice.wire_bits == 16:
        assert need <= 2**15 - 1 + ranks  # ranks: the quotient in wire_limit is rounded down
        finest = ranks == 1 or lattice.wire_shift == 0 or sigma >= 128.0
        # The next finer wire would not have held them.
        assert finest or 2 * need + 2 * ranks >= 2**15
        assert lattice.wire_shift == 0 or 16.0 <= sigma < 256.0
    else:
        coarser = math.floor(math.log2(sigma / 16.0)) if ranks > 1 and sigma >= 16.0 else 0
        assert need / 2**coarser + 4 * ranks >= 2**15
        assert lattice.wire_shift == 0 or 128.0 <= sigma < 256.0


@pytest.mark.parametrize(("ranks", "bits"), [(2, 16), (10, 16), (64, 16), (150, 16), (400, 32)])
def test_contributions_of_many_ranks_travel_in_sixteen_bits(ranks: int, bits: int) -> None:
    """One contribution a rank (unit rank): a coarser wire holds a hundred ranks and more."""
    plan = Plan(
        records=ranks,
        sampling_rate=1.0,
        sampler=SamplerKind.FULL,
        steps=10,
        l2_clip=1.0,
        noise_multiplier=1.0,
        delta=1e-7,
        unit=Unit.RANK,
        relation=Relation.REPLACE_ONE,
        trust=LOCAL,
    )
    lattice = plan.bind(1.0, 10**6, ranks)
    sigma, largest, limit = _numbers(lattice)
    assert lattice.wire_bits == bits
    assert largest * 2.0**lattice.wire_shift * lattice.step == pytest.approx(1.0, rel=1e-3)
    assert largest + TAIL * sigma + 1.0 <= limit
    assert sigma >= 16.0  # rounding to the wire adds less than 1/3000 of the variance


def test_census_mlp_fits_sixteen_bits() -> None:
    assert _plan(z=1.0, batch=16.0).bind(1.0, 3_000).wire_bits == 16
    assert _plan(z=1.0, batch=4096.0).bind(1.0, 3_000).wire_bits == 32


def test_no_argument_of_bind_alters_the_event() -> None:
    plan = _plan(trust=LOCAL)
    before = (plan.event, plan.digest())
    for dimension in (1, 10, 10**6):
        for ranks in (1, 2, 64):
            plan.bind(1.0, dimension, ranks)
            assert (plan.event, plan.digest()) == before


@pytest.mark.parametrize("clip", [0.5, 2.0, math.nextafter(1.0, 2.0), 0.0])
def test_a_sum_of_another_clip_bound_is_refused(clip: float) -> None:
    with pytest.raises(ConfigError, match="a sum clipped to the plan's bound"):
        _plan().bind(clip, 10)


def test_noise_below_four_steps_is_refused() -> None:
    plan = dataclasses.replace(_plan(z=0.05), lattice_slack=0.5)
    with pytest.raises(ConfigError, match="at least 4 lattice steps"):
        plan.bind(1.0, 1)


def test_a_lattice_finer_than_the_core_takes_is_refused() -> None:
    with pytest.raises(ConfigError, match="at most 2\\^40 lattice steps"):
        dataclasses.replace(_plan(), lattice_slack=1e-13).bind(1.0, 10**6)


def test_a_sum_beyond_32_bits_is_refused() -> None:
    plan = dataclasses.replace(_plan(z=0.05), records=10**12, sampling_rate=0.5, delta=1e-13)
    with pytest.raises(ConfigError, match="fits 32-bit"):
        plan.bind(1.0, 10)
