"""The exact lattice draw as a whole: σ, centre, shape, tails, low bits.

Every verdict has a false-alarm rate of 1e-7 (laws.py) and a fresh key of the operating system, so
every run is a new one. What each verdict is for is shown by samplers that are wrong in that way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy import stats
from tests.noise import samplers
from tests.noise.laws import (
    ALARM,
    BLOCK,
    WIDE,
    Draws,
    Source,
    Tally,
    cells_fit,
    counts_fit,
    has_sigma,
    normal,
    uniform,
    within,
)

from dither import _native
from dither.noise import simd
from dither.noise.key import Key
from dither.noise.rounded import rounded_gaussian
from dither.noise.stream import fresh_words

Verdict = Callable[[Tally], bool]

FAST = 1 << 25
VERDICTS: dict[str, Verdict] = {
    "sigma": Tally.has_sigma,
    "centre": Tally.is_centred,
    "shape": Tally.shape_fits,
    "tail 4": partial(Tally.tail_fits, z=4.0),
    "tail 5": partial(Tally.tail_fits, z=5.0),
    "tail 6": partial(Tally.tail_fits, z=6.0),
    "far": Tally.far_fits,
    **{f"mod {1 << bits}": partial(Tally.residues_uniform, bits=bits) for bits in range(1, 9)},
}
DOORS = {
    "int32": samplers.core,
    "int64": samplers.core_int64,
    "encode": samplers.released,
}
RESIDUES = {name for name in VERDICTS if name.startswith("mod ")}
LESS = FAST // 4
# Sampler, draws, and the verdicts that must catch it.
WRONG: dict[str, tuple[Callable[[Source], Source], int, set[str]]] = {
    "sigma 2 % small": (lambda _: samplers.core(0.98 * WIDE), LESS, {"sigma", "shape"}),
    "sigma 2 % large": (lambda _: samplers.core(1.02 * WIDE), LESS, {"sigma", "shape"}),
    "sigma 0.2 % large": (lambda _: samplers.core(1.002 * WIDE), FAST, {"sigma"}),
    "even 50.6 %": (lambda s: samplers.even_more_often(s, 0.006), LESS, RESIDUES),
    "even 50.1 %": (lambda s: samplers.even_more_often(s, 0.001), FAST, {"mod 2", "mod 4"}),
    "multiples of 4": (lambda s: samplers.low_bits_dropped(s, 2), LESS, RESIDUES),
    "cut at 4": (lambda s: samplers.cut(s, 4 * WIDE), LESS, {"tail 4", "shape"}),
    "cut at 5": (lambda s: samplers.cut(s, 5 * WIDE), FAST, {"tail 5"}),
    "13 times too many at 5": (
        lambda s: samplers.heavier(s, 5 * WIDE, 6e-4),
        FAST,
        {"tail 5", "far"},
    ),
    "36 at 6": (lambda s: samplers.heavier(s, 6 * WIDE, 4e-4), FAST, {"tail 6"}),
    "centre off by 0.002": (lambda s: samplers.shifted(s, 2000), FAST, {"centre"}),
    "sum of twelve uniforms": (lambda _: samplers.uniform_sum(), LESS, {"shape", "tail 4"}),
    "float32 Box-Muller": (lambda _: samplers.float32_box_muller(), LESS, RESIDUES),
}


def _alarms(tally: Tally) -> set[str]:
    return {name for name, verdict in VERDICTS.items() if not verdict(tally)}


def _drawn(sigma: float, count: int) -> Draws:
    return rounded_gaussian(sigma, count, Key())


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("path", simd.available())
def test_draws_are_rounded_gaussians(door: str, path: str) -> None:
    """Fifteen verdicts: false alarm 1.5e-6 a case."""
    with simd.using(path):
        widest = path == simd.available()[-1] and door == "int32"
        tally = Tally.of(DOORS[door](), FAST if widest else LESS)
    assert _alarms(tally) == set()


@pytest.mark.parametrize("cipher", ["chacha12", "chacha20", "aes256"])
def test_every_cipher_makes_rounded_gaussians(cipher: str) -> None:
    """Fifteen verdicts: false alarm 1.5e-6 a case."""
    assert _alarms(Tally.of(samplers.core(key=Key(cipher)), FAST // 4)) == set()


@pytest.mark.parametrize("case", WRONG)
def test_wrong_samplers_are_caught(case: str) -> None:
    """Each by the verdicts named; these miss with probability below 1e-6.

    The closest: a cut at 5σ leaves 0 of 19.2 expected, whose p-value is 5e-9 without fail.
    """
    spoil, count, caught_by = WRONG[case]
    assert caught_by <= _alarms(Tally.of(spoil(samplers.core()), count))


def test_other_sigmas_are_rejected() -> None:
    """2 % is 164 deviations of the mean square away, 0.2 % is 16."""
    tally = Tally.of(samplers.core(), FAST)
    assert tally.has_sigma()
    assert not any(tally.has_sigma(factor) for factor in (0.98, 0.998, 1.002, 1.02))


@pytest.mark.full
def test_ten_billion_draws() -> None:
    """All verdicts on 10¹⁰ draws: 634 000 expected beyond 4σ, 5733 beyond 5σ, 19.7 beyond 6σ.

    False alarm 1.5e-6. A tail cut at any of these, or a quarter heavier beyond 5σ, is caught.
    """
    tally = Tally.of(samplers.core(), 10**10)
    assert _alarms(tally) == set()
    assert not any(tally.has_sigma(factor) for factor in (0.98, 0.9998, 1.0002, 1.02))
    for z in (4.0, 5.0, 6.0):
        cut = replace(tally, far=tally.far[tally.far <= z * WIDE])
        assert not cut.tail_fits(z)
    beyond = tally.far[tally.far > 5 * WIDE]
    heavier = replace(tally, far=np.concatenate([tally.far, beyond[::4]]))
    assert not heavier.tail_fits(5.0)


@pytest.mark.full
@pytest.mark.parametrize("door", ["int64", "encode"])
def test_two_billion_draws_through_the_other_doors(door: str) -> None:
    """False alarm 1.5e-6."""
    assert _alarms(Tally.of(DOORS[door](), 2 * 10**9)) == set()


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
def test_small_sigma_has_exact_probabilities(sigma: float) -> None:
    """χ² of each integer over 4 million draws: false alarm 1e-7; half a per cent of σ is caught."""
    drawn = _drawn(sigma, 4_000_000)
    assert cells_fit(drawn, sigma)
    for factor in (0.98, 0.995, 1.005, 1.02):
        assert not cells_fit(drawn, factor * sigma)
    assert not cells_fit(drawn + 1, sigma)
    assert not cells_fit(np.where(drawn == 0, 1, drawn), sigma)


@pytest.mark.full
@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
def test_small_sigma_over_a_billion_draws(sigma: float) -> None:
    """χ² of each integer out to 6σ; 0.03 % off σ is caught."""
    counts = np.zeros(129, np.int64)
    source = samplers.core(sigma)
    for _ in range(10**9 // BLOCK):
        counts += np.bincount(np.clip(source(BLOCK) + 64, 0, 128), minlength=129)
    assert counts_fit(counts, sigma)
    for factor in (0.9997, 1.0003):
        assert not counts_fit(counts, factor * sigma)


@pytest.mark.parametrize("sigma", [17.3, 12_345.6, 3e6, 2.0**26, 2.0**32, 2.0**40])
def test_other_widths_are_normal(sigma: float) -> None:
    """Kolmogorov-Smirnov with a uniform dither that smooths the steps, and the second moment.

    At 2⁴⁰ an eighth of the draws is decided in arbitrary precision.
    """
    count = 100_000
    drawn = _drawn(sigma, count).astype(np.float64)
    smooth = drawn + np.random.default_rng().random(count) - 0.5
    assert normal(smooth / sigma)
    assert not normal(1.05 * smooth / sigma)
    square = float(drawn @ drawn) / count
    assert has_sigma(square, count, sigma)
    assert not has_sigma(square, count, 0.97 * sigma)
    assert not has_sigma(square, count, 1.03 * sigma)
    assert within(float(drawn.mean()) / sigma * np.sqrt(count))


@pytest.mark.parametrize("sigma", [17.3, 12_345.6, 3e6, 2.0**40])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_low_bits_are_uniform_at_other_widths(sigma: float, bits: int) -> None:
    """The law's own deviation is below exp(−2π²·17.3²/16²) < 1e-10."""
    drawn = _drawn(sigma, 1_000_000 if sigma < 2**32 else 100_000)
    assert uniform(np.bincount(drawn & (2**bits - 1), minlength=2**bits))


@pytest.mark.parametrize("zeros", [20, 40, 60])
def test_far_radii_follow_the_law(zeros: int) -> None:
    """Given that the radius word starts with so many zeros, R² − 2·zeros·ln 2 is exponential.

    Out to 9σ and more, where no count reaches: the core's arbitrary precision on such words.
    Kolmogorov-Smirnov, false alarm 1e-7.
    """
    words = fresh_words(Key(), 2 * 6 * 2000).view(np.uint64).reshape(-1, 6).tolist()
    squares = np.zeros(len(words))
    for at, (radius, angle, *more) in enumerate(words):
        for second in (False, True):
            drawn = _native.exact_draw(radius >> zeros, angle, more, WIDE, second)
            assert drawn is not None
            squares[at] += (drawn / WIDE) ** 2
    beyond = squares / 2 - zeros * np.log(2)
    assert stats.kstest(beyond, "expon").pvalue > ALARM
    assert stats.kstest(1.5 * beyond, "expon").pvalue < ALARM
