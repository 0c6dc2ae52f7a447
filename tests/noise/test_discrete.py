"""The discrete Gaussian: its coins digit by digit, its draws as a whole against the exact law.

Each statistical test has a false-alarm rate of at most 2e-7 for each comparison it makes;
operating-system entropy, so every run is a new one.
"""

from __future__ import annotations

import ast
import importlib.util
import itertools
import math
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from tests.noise.scripted import Scripted

from dither.errors import ConfigError
from dither.noise import discrete
from dither.noise.discrete import discrete_gaussian
from dither.noise.entropy import InsecureSeed, OsEntropy
from dither.noise.reference import rounded_gaussian

Draws = np.ndarray[tuple[int], np.dtype[np.int64]]
Law = np.ndarray[tuple[int], np.dtype[np.float64]]
SOURCE = Path(discrete.__file__)
ALARM = 1e-7
DIGITS = 2**16
HIGH = DIGITS - 1  # the digit that makes tails of every bias below 1 − 2⁻¹⁶
WIDE_TEN = Fraction(10**30 + 1, 10**29)  # 64 bits hold none of its numbers
BIASES = [(1, 3), (2, 7), (5, 8), (1, 1), (9, 10), (2**47, 3 * 2**46 + 1), (10**30, 10**31 + 7)]


def _script(*digits: Iterable[int]) -> Scripted:
    return Scripted(np.array(list(itertools.chain(*digits)), np.uint16).tobytes())


def _equal(number: int, count: int = DIGITS) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
    return np.full(count, number, np.int64 if number < 2**63 else np.object_)


@pytest.mark.parametrize(("numerator", "denominator"), [*BIASES, (0, 1), (0, 5**40)])
def test_a_coin_is_right_digit_by_digit(numerator: int, denominator: int) -> None:
    """All 2¹⁶ first digits, all that follow the one left open, and so on: n/d to 2⁻⁶⁴."""
    leading: list[int] = []
    rest = numerator
    for _ in range(4):
        boundary, rest = divmod(rest * DIGITS, denominator)
        before = ([digit] * DIGITS for digit in leading)
        script = _script(*before, range(DIGITS), [HIGH] * 4)
        heads = discrete._coins(_equal(numerator), denominator, script)
        assert heads[:boundary].all()
        assert not heads[boundary + 1 :].any()
        if numerator == denominator:
            return
        leading.append(boundary)


@pytest.mark.parametrize(("numerator", "denominator"), BIASES)
def test_exp_coin_has_its_probability_by_enumeration(numerator: int, denominator: int) -> None:
    """All first digits at the k-th toss, for k up to 9: heads γ/k, then 1 for tails at an odd k."""
    reached, total = 1.0, 0.0
    for level in range(1, 10):
        script = _script([0] * (DIGITS * (level - 1)), range(DIGITS), [HIGH] * (DIGITS + 4))
        result = discrete._unit_exp_coins(_equal(numerator), denominator, script)
        boundary = numerator * DIGITS // (denominator * level)
        odd = level % 2 == 1
        assert (result[:boundary] != odd).all()  # heads here, tails at the next toss
        assert (result[boundary + 1 :] == odd).all()
        heads = int(np.count_nonzero(result != odd)) / DIGITS
        total += reached * (1.0 - heads) * odd
        reached *= heads
    assert total == pytest.approx(math.exp(-numerator / denominator), abs=5 / DIGITS)


@pytest.mark.parametrize("gamma", [0, 1, 3, 10**40])
@pytest.mark.parametrize("successes", [0, 1, 2, 3, 4])
def test_whole_parts_of_gamma_take_as_many_successes(gamma: int, successes: int) -> None:
    """Of 1/e: tossed with 1 (any digit is heads), 1/2, 1/3: tails at the third is a success."""
    fraction = [HIGH]  # of bias 0: tails at the first toss, so 1
    script = _script(fraction, [HIGH, 0, HIGH] * successes, [HIGH, HIGH])
    result = discrete._exp_coins(_equal(gamma, 1), 1, script)
    assert result.tolist() == [successes >= gamma]
    assert (script.content == b"") == (gamma > 0)


@pytest.mark.parametrize("successes", [0, 1, 50, 500])
@pytest.mark.parametrize("sign", [0, 1])
def test_the_tail_has_no_end(successes: int, sign: int) -> None:
    script = _script([0] * 4, [HIGH], [HIGH, 0, HIGH] * successes, [HIGH, HIGH])
    script.content += bytes([254 + sign])
    drawn = discrete._discrete_laplace(1, 1, script)
    assert script.content == b""
    if successes == 0:
        assert drawn.tolist() == [0][sign:]  # the negative zero is refused
    else:
        assert drawn.tolist() == [-successes if sign else successes]


@pytest.mark.parametrize("end", [1, 2, 11, 16, 2**45 + 1])
def test_uniform_integers_refuse_what_is_beyond(end: int) -> None:
    width = (end - 1).bit_length()
    words = [0, end - 1, min(end, 2**width - 1), 2**width - 1]
    garbage = (2**64 - 1) >> width << width  # above the bits that count
    script = Scripted.words([word | garbage for word in words] + [0, 0])
    expected = [word if word < end else 0 for word in words]
    assert discrete._uniform(4, end, script).tolist() == expected


@pytest.mark.parametrize("scale", [1, 2, 11])
def test_proposals_follow_the_discrete_laplace_law(scale: int) -> None:
    drawn = discrete._discrete_laplace(200_000, scale, OsEntropy())
    support = np.arange(-40 * scale, 40 * scale + 1)
    weights = np.exp(-np.abs(support) / scale)
    assert _fits(drawn, weights / weights.sum())


@pytest.mark.parametrize("sigma_squared", [Fraction(1, 4), 1, Fraction(1024, 25), 10**4, 2**30])
def test_python_integers_and_int64_draw_the_same(
    sigma_squared: Fraction | int, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = discrete_gaussian(sigma_squared, 20_000, InsecureSeed(4))
    monkeypatch.setattr(discrete, "_INT64_END", 0)
    assert (discrete_gaussian(sigma_squared, 20_000, InsecureSeed(4)) == narrow).all()


def test_the_source_has_no_float() -> None:
    """No true division, no float constant, no float type and no float function of math."""
    allowed = {"isqrt"}
    for node in ast.walk(ast.parse(SOURCE.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.Div)
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float))
        name = getattr(node, "attr", getattr(node, "id", ""))
        assert not any(word in name for word in ("float", "double", "exp2", "sqrt", "log")) or (
            name in allowed
        )
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "math":
            assert name in allowed


def _law(sigma_squared: Fraction | float) -> Law:
    """Probabilities of −edge … edge; what lies beyond is below 1e-300."""
    edge = math.ceil(38 * math.sqrt(sigma_squared)) + 1
    weights: Law = np.exp(-(np.arange(-edge, edge + 1) ** 2) / (2 * float(sigma_squared)))
    law: Law = weights / weights.sum()
    return law


def _moment(law: Law, power: int) -> float:
    edge = law.size // 2
    return float(np.sum(law * np.arange(-edge, edge + 1.0) ** power))


def _fits(drawn: Draws, law: Law) -> bool:
    """χ² over cells with at least 100 expected, each tail merged into one."""
    edge, middle = 0, law.size // 2
    while law[: middle - edge].sum() * drawn.size >= 100.0:
        edge += 1
    inner = law[middle - edge : middle + edge + 1].copy()
    inner[0], inner[-1] = law[: middle - edge + 1].sum(), law[middle + edge :].sum()
    counts = np.bincount(np.clip(drawn, -edge, edge) + edge, minlength=inner.size)
    return bool(stats.chisquare(counts, inner * drawn.size).pvalue > ALARM)


def _has_sigma(drawn: Draws, sigma_squared: Fraction | float) -> bool:
    """Whether the mean square is within 5.33 deviations of the law's variance."""
    law = _law(sigma_squared)
    variance, fourth = _moment(law, 2), _moment(law, 4)
    deviation = math.sqrt((fourth - variance**2) / drawn.size)
    square = float(np.mean(drawn.astype(np.float64) ** 2))
    return abs(square - variance) < float(stats.norm.isf(ALARM / 2)) * deviation


SIGMAS_SQUARED = [Fraction(1, 4), 1, 10, 100, WIDE_TEN]


@pytest.mark.parametrize("sigma_squared", SIGMAS_SQUARED)
def test_draws_follow_the_law_and_no_other_sigma(sigma_squared: Fraction | int) -> None:
    """2 % off is 17 deviations and more at 400 000 draws: missed with probability < 1e-20."""
    drawn = discrete_gaussian(sigma_squared, 400_000, OsEntropy())
    assert _fits(drawn, _law(sigma_squared))
    assert _has_sigma(drawn, sigma_squared)
    for factor in (0.98, 1.02):
        assert not _has_sigma(drawn, float(sigma_squared) * factor**2)
    assert not _fits(drawn + 1, _law(sigma_squared))


@pytest.mark.full
@pytest.mark.parametrize("sigma_squared", [Fraction(1, 4), 1, 10, 100])
def test_ten_million_draws_reject_half_a_per_cent(sigma_squared: Fraction | int) -> None:
    """And tails at 4 and 5 σ, where 1/4 and 1 have a cell or two."""
    drawn = discrete_gaussian(sigma_squared, 10_000_000, OsEntropy())
    assert _fits(drawn, _law(sigma_squared))
    assert _has_sigma(drawn, sigma_squared)
    for factor in (0.995, 1.005):
        assert not _has_sigma(drawn, float(sigma_squared) * factor**2)
    for z in (4.0, 5.0):
        assert _tail_fits(drawn, sigma_squared, z)


def test_a_rounded_gaussian_is_told_apart() -> None:
    assert not _fits(rounded_gaussian(1.0, 200_000, OsEntropy()), _law(1))


def _tail_fits(drawn: Draws, sigma_squared: Fraction | int, z: float) -> bool:
    law = _law(sigma_squared)
    limit = z * math.sqrt(sigma_squared)
    beyond = float(law[np.abs(np.arange(law.size) - law.size // 2) > limit].sum())
    found = int(np.count_nonzero(np.abs(drawn) > limit))
    return bool(stats.binomtest(found, drawn.size, beyond).pvalue > ALARM)


def test_four_sigma_tail() -> None:
    """About 51 of a million expected; one cut there, or seven times heavier, is told apart."""
    drawn = discrete_gaussian(100, 1_000_000, OsEntropy())
    assert _tail_fits(drawn, 100, 4.0)
    assert not _tail_fits(np.clip(drawn, -40, 40), 100, 4.0)
    assert not _tail_fits(np.concatenate([drawn, drawn[np.abs(drawn) > 40].repeat(6)]), 100, 4.0)


@pytest.mark.parametrize("sigma_squared", [Fraction(1, 4), Fraction(1, 3), 1, 2, 10, 100])
def test_variance_lies_within_the_papers_bounds(sigma_squared: Fraction | int) -> None:
    """1/(exp(1/σ²) − 1) ≤ Var ≤ σ²(1 − a/(exp(a) − 1)), a = 4π²σ²; small σ too."""
    sigma2 = float(sigma_squared)
    variance = _moment(_law(sigma_squared), 2)
    exponent = 4 * math.pi**2 * sigma2
    upper = sigma2 * (1 - exponent * math.exp(-exponent) / -math.expm1(-exponent))
    assert 1 / math.expm1(1 / sigma2) <= variance <= upper * (1 + 1e-14)
    if sigma_squared <= Fraction(1, 3):
        assert variance <= 3 * math.exp(-1 / (2 * sigma2))
    if sigma_squared >= 1:
        assert variance >= sigma2 * (1 - 3e-7)  # as the docstring says
    drawn = discrete_gaussian(sigma_squared, 200_000, OsEntropy())
    assert _has_sigma(drawn, sigma_squared)


def test_signs_are_symmetric() -> None:
    """χ² of k against −k, for each k with 100 draws and more."""
    drawn = discrete_gaussian(10, 400_000, OsEntropy())
    counts = np.bincount(np.clip(drawn, -16, 16) + 16, minlength=33)
    up, down = counts[17:], counts[:16][::-1]
    often = up + down >= 100
    distance = float(np.sum((up - down)[often] ** 2 / (up + down)[often]))
    assert often.sum() >= 10
    assert stats.chi2.sf(distance, often.sum()) > ALARM


@pytest.mark.parametrize(("sigma_squared", "modulus"), [(100, m) for m in (2, 3, 4, 8)])
def test_residues_are_uniform(sigma_squared: int, modulus: int) -> None:
    """The law's own deviation is below exp(−2π²σ²/m²) < 1e-13 here."""
    drawn = discrete_gaussian(sigma_squared, 200_000, OsEntropy())
    counts = np.bincount(drawn % modulus, minlength=modulus)
    assert stats.chisquare(counts).pvalue > ALARM


@pytest.mark.parametrize("log_sigma", [20, 45])
def test_large_sigma_is_normal_with_uniform_low_bits(log_sigma: int) -> None:
    drawn = discrete_gaussian(2 ** (2 * log_sigma), 50_000, OsEntropy())
    assert stats.kstest(np.ldexp(drawn.astype(np.float64), -log_sigma), "norm").pvalue > ALARM
    for bits in (1, 4, 8):
        counts = np.bincount(drawn & (2**bits - 1), minlength=2**bits)
        assert stats.chisquare(counts).pvalue > ALARM


def test_neighbouring_draws_are_uncorrelated() -> None:
    drawn = discrete_gaussian(10, 200_000, OsEntropy()).astype(np.float64)
    for lag in (1, 2, 8):
        for left, right in ((drawn[lag:], drawn[:-lag]), (drawn[lag:] ** 2, drawn[:-lag] ** 2)):
            correlation = float(np.corrcoef(left, right)[0, 1])
            assert abs(correlation) * np.sqrt(left.size) < 5.4


def test_a_vanishing_sigma_draws_zeros() -> None:
    assert not discrete_gaussian(Fraction(1, 10**40), 1000, OsEntropy()).any()


@pytest.mark.parametrize("count", [0, 1, 7, 70_000])
def test_size_and_type(count: int) -> None:
    for sigma_squared in (3, WIDE_TEN):
        drawn = discrete_gaussian(sigma_squared, count, OsEntropy())
        assert drawn.shape == (count,)
        assert drawn.dtype == np.int64


def test_no_draw_takes_no_entropy() -> None:
    assert discrete_gaussian(1, 0, Scripted(b"")).size == 0


def test_a_seed_repeats_and_calls_use_fresh_bits() -> None:
    one, two = InsecureSeed(9), InsecureSeed(9)
    first = discrete_gaussian(100, 5000, one)
    assert (discrete_gaussian(100, 5000, two) == first).all()
    assert (discrete_gaussian(100, 5000, one) != first).any()
    assert (discrete_gaussian(100, 5000, InsecureSeed(10)) != first).any()


@pytest.mark.parametrize("bad", [0, -1, Fraction(-1, 3), 2**90 + 1, Fraction(2**91 + 1, 2)])
def test_sigma_out_of_range_is_refused(bad: Fraction | int) -> None:
    with pytest.raises(ConfigError, match=r"a sigma squared in \(0, 2\^90\]"):
        discrete_gaussian(bad, 3, InsecureSeed(0))


@pytest.mark.parametrize("bad", [2.25, 1.0, math.nan, math.inf, "3", None, np.float64(4.0)])
def test_sigma_that_is_not_rational_is_refused(bad: object) -> None:
    """In a copy of the module that the suite's annotation checks do not guard."""
    spec = importlib.util.spec_from_file_location("unguarded", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    unguarded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unguarded)
    with pytest.raises(ConfigError, match="an exact sigma squared, a Fraction or an int"):
        unguarded.discrete_gaussian(bad, 3, InsecureSeed(0))


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ConfigError, match="a count of 0 or more"):
        discrete_gaussian(1, -1, InsecureSeed(0))
