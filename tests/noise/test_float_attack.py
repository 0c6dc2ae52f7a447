"""Low bits tell nothing of the input: attacks that break float noise, and fail on the lattice.

PRIVACY-REVIEW A1 (a shift of every coordinate by one fine step) and Mironov (CCS 2012; which floats
an input can reach). An attacker counts as guessing if his successes are likely, at 1e-7, for coins.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.noise import samplers
from tests.noise.attacks import (
    FloatAttack,
    FloatMechanism,
    IntegerMechanism,
    ShiftAttack,
    guessing,
)
from tests.noise.laws import WIDE, Integers, Reals, Source, uniform

from dither.noise.codec import decode, encode
from dither.noise.gaussian import fill_gaussian
from dither.noise.key import Key
from dither.noise.pool import NoisePool
from dither.privacy.lattice import Lattice

MILLION = 1_000_000


def _torch_normal(count: int) -> Integers:
    return samplers.rounded(torch.empty(count).normal_(0.0, WIDE).numpy())


def _shift(source: Source) -> IntegerMechanism:
    """Noise on zeros, or on ones."""
    return lambda shifted, count: source(count) + np.int32(shifted)


def _codec(pool: NoisePool | None = None) -> IntegerMechanism:
    """The release's own call, of zeros or of one fine step; the wire as fine as the noise."""
    key, grid = Key(), Lattice(-14, WIDE, 1 << 30, 0, 32, 1)

    def release(shifted: bool, count: int) -> Integers:
        values = np.full(count, grid.step * shifted, np.float32)
        return (pool.encode(values, grid) if pool else encode(values, grid, key)).message

    return release


# ---- a shift by one fine step --------------------------------------------------------------------


def _assert_the_shift_stays_hidden(mechanism: IntegerMechanism, trials: int) -> None:
    attack = ShiftAttack.learn(mechanism)
    assert guessing(attack.successes(mechanism, trials, MILLION), trials)


def test_a_shift_by_one_step_in_a_million_coordinates_stays_hidden() -> None:
    """An attacker right in four of five trials would be noticed. By law he has 0.02 % at best:
    the shift is 0.001 σ long."""
    _assert_the_shift_stays_hidden(_codec(), 100)


def test_the_pools_noise_hides_it_as_well() -> None:
    with NoisePool(WIDE, capacity=1 << 20) as pool:
        _assert_the_shift_stays_hidden(_codec(pool), 40)


@pytest.mark.full
def test_a_shift_stays_hidden_in_two_thousand_trials() -> None:
    """An attacker right in 56 % of them would be noticed."""
    _assert_the_shift_stays_hidden(_codec(), 2000)


NAIVE: dict[str, Callable[[], Source]] = {
    "our float32 Box-Muller": samplers.float32_box_muller,
    "torch.Tensor.normal_": lambda: _torch_normal,
}


@pytest.mark.parametrize("name", NAIVE)
def test_rounded_float32_noise_is_caught_by_parity(name: str) -> None:
    """P(even) = 0.536 by PRIVACY-REVIEW A1: 72 deviations in a million; false alarm 1e-7."""
    drawn = NAIVE[name]()(MILLION)
    parity = np.bincount(drawn & 1, minlength=2)
    assert not uniform(parity)
    assert parity[0] / MILLION == pytest.approx(0.536, abs=0.01)


@pytest.mark.parametrize("name", NAIVE)
@pytest.mark.parametrize("dimension", [10_000, MILLION])
def test_rounded_float32_noise_is_caught_by_the_distinguisher(name: str, dimension: int) -> None:
    """A hundredth of the coordinates suffices to be right each time."""
    mechanism = _shift(NAIVE[name]())
    attack = ShiftAttack.learn(mechanism)
    assert attack.successes(mechanism, 40, dimension) == 40


@pytest.mark.parametrize("share", [0.006, 0.001])
def test_even_numbers_a_little_too_often_are_caught(share: float) -> None:
    """50.6 % or 50.1 %: right each time, or in nine of ten trials. Missed with probability 1e-6."""
    mechanism = _shift(samplers.even_more_often(samplers.core(), share))
    attack = ShiftAttack.learn(mechanism)
    assert not guessing(attack.successes(mechanism, 100, MILLION), 100)


# ---- which floats can be reached -----------------------------------------------------------------


def _float_noise(kind: type[np.float32 | np.float64], value: float) -> FloatMechanism:
    """The naive mechanism: 0 or C, plus float noise of σ = 1, in one float type throughout."""
    key = Key()

    def release(second: bool, count: int) -> Reals:
        noise = np.empty(count, kind)
        fill_gaussian(noise, key)
        return (noise + kind(value * second)).astype(np.float64)

    return release


def _lattice_noise(shift: int, value: float) -> FloatMechanism:
    """`codec.encode` of 0 or C, decoded; σ = 1 is 2²⁰ fine steps."""
    key, grid = Key(), Lattice(-20, WIDE, 1 << 26, shift, 32, 1)

    def release(second: bool, count: int) -> Reals:
        values = np.full(count, value * second, np.float32)
        return decode(encode(values, grid, key).message, grid)

    return release


CLIPS = [1.0, 0.3]


@pytest.mark.parametrize("value", CLIPS)
@pytest.mark.parametrize(("kind", "bits"), [(np.float32, 24), (np.float64, 53)])
def test_mironovs_attack_breaks_float_noise(
    kind: type[np.float32 | np.float64], bits: int, value: float
) -> None:
    """128 coordinates' low digits name the input nearly always."""
    mechanism = _float_noise(kind, value)
    attack = FloatAttack.learn(mechanism, 2.0**-bits)
    assert attack.unreachable() > 0
    assert attack.successes(mechanism, 100, 128) > 95


@pytest.mark.parametrize("value", CLIPS)
@pytest.mark.parametrize(("shift", "digit"), [(0, 0), (0, 3), (0, 9), (4, 3), (12, 0), (12, 3)])
def test_mironovs_attack_fails_on_the_lattice(shift: int, digit: int, value: float) -> None:
    """On the fine lattice and on coarser wires, up to a step of σ/2⁸: an attacker who is right in
    59 % of 1000 trials would be noticed."""
    mechanism = _lattice_noise(shift, value)
    attack = FloatAttack.learn(mechanism, 2.0 ** (shift - 20 + digit))
    assert attack.unreachable() == 0
    assert guessing(attack.successes(mechanism, 1000, 128), 1000)


def test_zero_and_c_reach_the_same_integers() -> None:
    """Each within 4 σ of both inputs, from both: a miss has probability below e⁻⁸⁰ each."""
    grid, key = Lattice(0, 10.0, 1000, 0, 16, 1), Key()
    everything = set(range(-30, 41))
    for value in (0.0, 7.0, 10.49):
        messages = encode(np.full(2_000_000, value), grid, key).message
        assert everything <= set(np.unique(messages).tolist())


def test_integers_that_float32_noise_cannot_reach_are_noticed() -> None:
    """At σ = 2²⁶ steps a float32 of 2 σ is a multiple of 16: of 256 residues few are reached."""

    def residues(source: Source) -> int:
        drawn = source(MILLION)
        return np.unique(drawn[np.abs(drawn) > 2.0**27] & 255).size

    assert residues(samplers.float32_box_muller(2.0**26)) == 16
    assert residues(samplers.core(2.0**26)) == 256
