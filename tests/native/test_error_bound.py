"""The error bound of kernels/gauss64.h: its parts, and the error itself against mpmath.

The lattice draw is exact only if float64's x is never farther from the true normal X than MARGIN.
X is known as an interval: the words are the first bits of two infinitely long fractions. An error
here is the distance from x to the farther end. Words are fixed, so a failure is a defect.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np
import pytest
from mpmath import mpf
from tests.native.building import NATIVE, run

from dither import _native
from dither.noise import simd

HEADER = (NATIVE / "src" / "kernels" / "gauss64.h").read_text()
BOUND = 2.0**-45.8
EPSILON = mpf(2) ** -53
FAST_FROM, FAST_END = 2**44, 2**64 - 2**30
PRECISION = 160


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    with mpmath.workprec(PRECISION):
        yield


@dataclass(frozen=True)
class Reach:
    """Where |X1| and |X2| of a pair of words can lie, and their signs."""

    low: tuple[Any, Any]
    high: tuple[Any, Any]
    negative: tuple[bool, bool]

    @classmethod
    def of(cls, radius: int, angle: int) -> Reach:
        far, near = (mpmath.sqrt(-2 * mpmath.log(mpf(m) / 2**64)) for m in (radius, radius + 1))
        fraction = angle % 2**61
        first, last = (mpmath.cos_sin(mpmath.pi * f / 2**63) for f in (fraction, fraction + 1))
        cosine, sine = (near * last[0], far * first[0]), (near * first[1], far * last[1])
        one, two = (sine, cosine) if angle >> 61 & 1 else (cosine, sine)
        signs = bool(angle >> 63), bool(angle >> 62 & 1)
        return cls((one[0], two[0]), (one[1], two[1]), signs)

    def error(self, which: int, x: float) -> float:
        """Largest possible |x - X|, rounded up."""
        magnitude = -mpf(x) if self.negative[which] else mpf(x)
        return float(max(magnitude - self.low[which], self.high[which] - magnitude))


def worst(words: list[tuple[int, int]], normals: dict[str, Any]) -> dict[str, float]:
    """Largest error of each path; `normals` has a row of two for each pair of words."""
    errors = dict.fromkeys(normals, 0.0)
    for i, (radius, angle) in enumerate(words):
        reach = Reach.of(radius, angle)
        for path, values in normals.items():
            error = max(reach.error(which, float(values[i][which])) for which in range(2))
            errors[path] = max(errors[path], error)
    return errors


def test_a_wrong_normal_is_seen() -> None:
    """The oracle itself: by hand at u = e^-2, φ = π/8 (R = 2), and a float's error more."""
    radius, fraction = int(mpmath.floor(2**64 * mpmath.exp(-2))), 2**60
    x = (2 * mpmath.cos(mpmath.pi / 8), 2 * mpmath.sin(mpmath.pi / 8))
    for octant in range(8):
        reach = Reach.of(radius, octant << 61 | fraction)
        one, two = x[:: -1 if octant & 1 else 1]
        one, two = -one if octant & 4 else one, -two if octant & 2 else two
        assert max(reach.error(0, float(one)), reach.error(1, float(two))) < 2.0**-51
        assert reach.error(0, float(one) + 2.0**-45) > BOUND
        assert reach.error(1, -float(two)) > 1


def fill(path: str, count: int) -> tuple[list[tuple[int, int]], Any]:
    """Pairs of words of one key, read twice: as words, and as the normals made of them."""
    words, normals = np.empty(2 * count, np.uint32), np.empty(count)
    with simd.using(path):
        _native.stream(simd.kernels(), _native.Key(bytes(range(32)), 20), words)
        _native.gaussian(simd.kernels(), _native.Key(bytes(range(32)), 20), normals)
    rows = words.view(np.uint64).reshape(-1, 2, 8)
    pairs = np.stack([rows[:, 0].ravel() | np.uint64(1), rows[:, 1].ravel()], axis=1)
    values = normals.reshape(-1, 2, 8).swapaxes(1, 2).reshape(-1, 2)
    return [(int(m), int(w)) for m, w in pairs], values


def test_ordinary_words_are_within_the_bound() -> None:
    count = 16 * 640
    words: list[tuple[int, int]] = []
    normals = {}
    for path in simd.available():
        words, normals[path] = fill(path, count)
    inside = [i for i, (m, _) in enumerate(words) if FAST_FROM <= m < FAST_END]
    assert len(inside) > count // 2 - 8
    errors = worst([words[i] for i in inside], {p: n[inside] for p, n in normals.items()})
    # Ordinary words know u to all of float64: only roundings are left.
    assert all(error < 2.0**-49 for error in errors.values()), errors


def reported(program: list[str]) -> tuple[list[tuple[int, int]], dict[str, Any]]:
    """The adversarial words of native/tests/words.c, and each path's normals of them."""
    words: dict[tuple[int, int], None] = {}
    normals: dict[str, list[Any]] = {}
    for line in run([*program, "normals"]).splitlines():
        path, *numbers = line.split()
        radius, angle, *bits = (int(number, 16) for number in numbers)
        words[radius, angle] = None
        normals.setdefault(path, []).append((radius, angle, np.array(bits, np.uint64).view(float)))
    rows = {p: {(m, w): values for m, w, values in rows} for p, rows in normals.items()}
    return list(words), {p: [found[pair] for pair in words] for p, found in rows.items()}


def check_chosen_words(program: list[str], paths: tuple[str, ...]) -> None:
    words, normals = reported(program)
    assert set(normals) == set(paths)
    assert len(words) > 3000
    assert all(FAST_FROM <= m < FAST_END for m, _ in words)
    errors = worst(words, normals)
    assert all(error < BOUND for error in errors.values()), errors
    # The words are bad enough: the bound's largest part, 2^-46.4, is met nearly.
    assert all(error > 2.0**-46.5 for error in errors.values()), errors


@pytest.mark.xdist_group("core_program")
def test_chosen_words_are_within_the_bound(core_program: list[str]) -> None:
    check_chosen_words(core_program, simd.available())


@pytest.mark.full
@pytest.mark.xdist_group("arm_program")
def test_chosen_words_are_within_the_bound_on_neon(arm_program: list[str]) -> None:
    check_chosen_words(arm_program, ("portable", "neon"))


# ---- the parts of the bound, derived anew ------------------------------------------------------


def coefficients(name: str) -> list[Any]:
    found = re.search(name + r"\[\] = \{(.*?)\};", HEADER, re.DOTALL)
    assert found
    return [mpf(float.fromhex(text.strip())) for text in found[1].split(",")]


def number(pattern: str) -> Any:
    found = re.search(pattern + r"\s*(-?0x[0-9a-f.]+p[+-]?\d+)", HEADER)
    assert found, pattern
    return mpf(float.fromhex(found[1]))


def polynomial(terms: list[Any], z: Any) -> Any:
    return mpmath.polyval(terms[::-1], z)


def largest(error: Any, end: Any, points: int = 3000) -> Any:
    """Largest |error| on a grid over (0, end]; it has fewer than ten bumps there."""
    return max(abs(error(end * i / points)) for i in range(1, points + 1))


def log_error() -> Any:
    """Of s·(z P(z) - 4) for -2 ln((1+s)/(1-s)), relative."""
    terms = coefficients("LOG_POLY")
    end = (mpmath.sqrt(2) - 1) / (mpmath.sqrt(2) + 1)  # f in [√½, √2)

    def error(s: Any) -> Any:
        exact = -2 * mpmath.log((1 + s) / (1 - s))
        return (s * (s * s * polynomial(terms, s * s) - 4) - exact) / exact

    return largest(error, end)


def cosine_error() -> Any:
    terms = coefficients("COS_POLY")
    return largest(lambda t: 1 + t * t * polynomial(terms, t * t) - mpmath.cospi(t / 4), mpf(1))


def sine_error() -> Any:
    terms = coefficients("SIN_POLY")
    return largest(lambda t: t * polynomial(terms, t * t) - mpmath.sinpi(t / 4), mpf(1))


def log_and_root(exponent: int, f: Any, polynomial_error: Any) -> Any:
    """Bound of |computed R - R(m)| in ε, for u = 2^exponent f. All roundings are of relative ε.

    Exponent < 0: g = f - 1 is exact; g + 2 and the quotient make 2 ε of s, and z P - 4 adds 1.1 ε
    (its first term is 1 % of it), the product 1 ε. Exponent 0: g = (m - 2^64)/2^64 has 1 ε of its
    own, which s takes over 1.2 times. e·ln 2: one rounding, and 0.3 ε of the constant. m itself is
    rounded from 2^53 on.
    """
    y = -2 * (exponent * mpmath.ln2 + mpmath.log(f))
    of_f = abs(2 * mpmath.log(f))
    if exponent == 0:
        absolute = of_f * (5.3 + polynomial_error)
    else:
        constant = abs(-number("e \\*") / 2 / mpmath.ln2 - 1) / EPSILON
        absolute = of_f * (4.1 + polynomial_error) - exponent * 2 * mpmath.ln2 * (1 + constant) + y
        absolute += 2 if exponent >= -11 else 0
    return absolute / (2 * mpmath.sqrt(y)) + mpmath.sqrt(y)


def unknown_radius(u: Any) -> Any:
    """Of the bits of u below 2^-64, in ε: |dR| = du / (u R)."""
    return mpf(2) ** -64 / (u * mpmath.sqrt(-2 * mpmath.log(u + mpf(2) ** -64))) / EPSILON


def of_radius() -> Any:
    """Bound of |computed R - R|, in ε, over the lanes that the fast path keeps."""
    log_part, root_half = log_error() / EPSILON, mpmath.sqrt(mpf(1) / 2)
    bounds = [unknown_radius(1 - mpf(2) ** -34) + log_and_root(0, 1 - mpf(2) ** -34, log_part)]
    for exponent in range(-20, 1):
        for i in range(65):
            f = root_half + (mpmath.sqrt(2) - root_half) * i / 64
            u = f * mpf(2) ** exponent
            if mpf(2) ** -20 <= u < 1:
                bounds.append(unknown_radius(u) + log_and_root(exponent, f, log_part))
    return max(bounds)


def of_angle() -> Any:
    """Bound of |computed cosine or sine - true one|, in ε. t is within ε of the angle.

    Cosine: 0.28 (z), 0.27 (the polynomial), 0.25 (its product with z), 0.5 (the sum, below 1).
    Sine: 0.08 (z), 0.57 (the polynomial, below 1), 0.5 (the product, below 1).
    """
    half, cosine, sine = mpmath.sqrt(mpf(1) / 2), cosine_error() / EPSILON, sine_error() / EPSILON
    return max(mpmath.pi / 4 * half + cosine + 1.3, mpmath.pi / 4 + sine + 1.15)


def test_the_parts_add_up_to_the_bound() -> None:
    radius = mpmath.sqrt(40 * mpmath.ln2)  # at u = 2^-20, the largest
    assert radius < 5.27
    parts = (of_radius(), radius * of_angle(), 2 * radius)
    claims = [float(x) for x in re.findall(r"≤ ([\d.]+) ε", HEADER)]
    assert len(claims) == len(parts)
    for part, claim in zip(parts, claims, strict=True):
        assert claim - 1 < part <= claim
    total = re.search(r"less than (\d+) ε = 2\^(-[\d.]+)", HEADER)
    assert total
    assert sum(claims) <= float(total[1])
    assert float(total[1]) * float(EPSILON) <= 2.0 ** float(total[2]) <= BOUND


def test_the_margin_is_three_times_the_bound() -> None:
    margin = number("define MARGIN")
    assert 3 * BOUND < margin < 4 * BOUND


def test_the_lanes_that_are_left_out_contain_all_beyond_the_bound() -> None:
    """LEAST and MOST, of -2 ln u, lie inside the limits by more than the error of -2 ln u."""
    for name, m, sign in (("LEAST", FAST_END, 1), ("MOST", FAST_FROM, -1)):
        limit = -2 * mpmath.log(mpf(m) / 2**64)
        inwards = sign * (number(f"define {name}") - limit) / limit
        assert 1e-8 < inwards < 1e-4


def test_the_angle_is_read_in_the_middle_of_its_last_bit() -> None:
    """1 + k/2^52 less this constant is (k + ½)/2^52."""
    assert 1 - number(r"0x3ff0000000000000u\) -") == EPSILON
