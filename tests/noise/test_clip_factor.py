"""The L2 norm, the factor that clips to a bound, and encoding with a factor.

Norms and bounds are checked in exact rational arithmetic: nothing here is random but fixed draws.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from dither import _native
from dither.errors import ConfigError, ReleaseError
from dither.noise import codec, simd
from dither.noise.key import Key
from dither.noise.pool import FreshNoise, NoisePool
from dither.privacy.lattice import Lattice

GRID = Lattice(-40, 2.0**20, 1 << 40, 12, 32, 1)
SIZES = (1, 2, 31, 32, 33, 4095, 4097, 20_000)
KINDS = ("float32", "float64")

Array = np.ndarray[Any, np.dtype[Any]]


def numbers(size: int, kind: str) -> Array:
    generator = np.random.default_rng(size)
    magnitudes = 2.0 ** generator.integers(-40, 40, size)
    return (generator.normal(size=size) * magnitudes).astype(kind)


def squared(values: Array) -> Fraction:
    """The exact sum of squares."""
    return sum((Fraction(float(value)) ** 2 for value in values), Fraction(0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_the_norm_is_within_its_stated_error(size: int, kind: str) -> None:
    values = numbers(size, kind)
    norm = Fraction(codec.l2_norm(values))
    error = Fraction(size // 4096 + 140, 2**53)
    assert (norm * (1 - error)) ** 2 <= squared(values) <= (norm * (1 + error)) ** 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_the_norm_has_the_same_bits_on_every_instruction_set(size: int, kind: str) -> None:
    norms = set()
    for name in simd.available():
        with simd.using(name):
            norms.add(codec.l2_norm(numbers(size, kind)).hex())
    assert len(norms) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_clipped_values_stay_in_the_ball_exactly(size: int, kind: str) -> None:
    values = numbers(size, kind)
    norm = codec.l2_norm(values)
    for bound in (norm * 0.999, norm * (1 - 1e-15), norm, norm / 1e9, 1e-30):
        factor = codec.clip_factor(values, bound)
        clipped = values.astype(np.float64) * factor
        assert 0 < factor < 1
        assert squared(clipped) <= Fraction(bound) ** 2
        assert squared(clipped) >= (Fraction(bound) * (1 - Fraction(1, 10**12))) ** 2
    assert codec.clip_factor(values, norm * 1.001) == 1


def test_nothing_has_the_norm_zero_and_needs_no_clipping() -> None:
    assert codec.l2_norm(np.zeros(0)) == codec.l2_norm(np.zeros(5)) == 0
    assert codec.clip_factor(np.zeros(3), 1.0) == 1


def test_huge_values_have_a_norm_too() -> None:
    assert codec.l2_norm(np.array([1e308, -1e308])) == pytest.approx(2**0.5 * 1e308, rel=1e-14)
    assert codec.clip_factor(np.array([1e308, 0]), 1.0) == pytest.approx(1e-308, rel=1e-12)
    with pytest.raises(ReleaseError):
        codec.l2_norm(np.full(9, 1.7e308))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_values_that_are_not_finite_are_refused(wrong: float, kind: str) -> None:
    for at in (0, 31, 4095, 4998):
        values = np.zeros(4999, kind)
        values[at] = wrong
        with pytest.raises(ReleaseError):
            codec.l2_norm(values)
        with pytest.raises(ReleaseError):
            codec.clip_factor(values, 1.0)


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan"), float("inf"), 2.0**401, 2.0**-401])
def test_bounds_out_of_range_are_refused(bound: float) -> None:
    with pytest.raises(ConfigError, match="bound"):
        codec.clip_factor(np.ones(3), bound)
    assert _native.clip_factor(1.0, 3, bound) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [1 / 3, 1.0, 0.0, 1 - 2.0**-53, 1e-300, 5e-324])
@pytest.mark.parametrize("name", simd.available())
def test_a_factor_multiplies_the_values_first(name: str, factor: float, kind: str) -> None:
    values = numbers(5000, kind)
    products = values.astype(np.float64) * factor
    with simd.using(name):
        got = codec.encode(values, GRID, Key.agreed(bytes(32)), factor=factor)
        want = codec.encode(products, GRID, Key.agreed(bytes(32)))
    np.testing.assert_array_equal(got.message, want.message)
    assert got.saturated == want.saturated
    assert want.saturated > 0 or factor < 1e-3


def test_a_pool_and_fresh_noise_take_factors_too() -> None:
    values = numbers(5000, "float64")
    want = codec.encode(values * 0.25, GRID, Key.agreed(bytes(32)))
    fresh = FreshNoise(Key.agreed(bytes(32))).encode(values, GRID, factor=0.25)
    np.testing.assert_array_equal(fresh.message, want.message)
    with NoisePool(GRID.sigma, Key.agreed(bytes(32))) as pool:
        while pool.stats().ready < values.size:
            pass
        pooled = pool.encode(values, GRID, factor=0.25)
    np.testing.assert_array_equal(pooled.message, want.message)


@pytest.mark.parametrize("factor", [-1e-9, 1 + 2.0**-52, float("nan"), float("inf")])
def test_other_factors_are_refused_before_noise_is_used(factor: float) -> None:
    key = Key()
    with pytest.raises(ConfigError, match="factor"):
        codec.encode(np.ones(3), GRID, key, factor=factor)
    assert key.position == 0
    with NoisePool(GRID.sigma) as pool:
        with pytest.raises(ConfigError, match="factor"):
            pool.encode(np.ones(3), GRID, factor=factor)
        assert pool.stats().used == pool.stats().dry == 0


def test_a_programs_arithmetic_changes_no_norm() -> None:
    """Torch can have subnormal numbers flushed to zero; the core counts them all the same."""
    values = np.full(64, 2.0**-140, np.float32)
    try:
        assert torch.set_flush_denormal(True)
        assert float(torch.from_numpy(values).double().sum()) == 0.0  # the control
        assert codec.l2_norm(values) == pytest.approx(2.0**-137, rel=1e-9)
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize(("largest", "bound"), [(1e300, 1.0), (1e308, 1e-9), (1e154, 1e-100)])
def test_huge_contributions_end_on_the_bound_or_at_zero(largest: float, bound: float) -> None:
    """Never beyond it, also where the factor is a subnormal number, which rounds by more."""
    values = np.full(1, largest)
    factor = codec.clip_factor(values, bound)
    squares = sum((Fraction(float(value * factor)) ** 2 for value in values), Fraction(0))
    assert squares <= Fraction(bound) ** 2
    assert squares == 0 if bound / largest < 1e-310 else squares > Fraction(bound) ** 2 / 2
