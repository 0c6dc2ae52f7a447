"""exact.c against mpmath: draws decided in arbitrary precision.

A draw is a function of two fractions of infinitely many bits, of which the first 64·(levels + 1)
are known. An answer is right if it is the rounding of every real number that they allow. Words are
fixed or seeded, so a failure is a defect.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np
import pytest
from mpmath import mpf

from dither import _native

ONES = 2**64 - 1
SIGMAS = (5e-324, 2.0**-1022, 1e-300, 0.3, 1.0, 1000.5, 2.0**26, np.nextafter(2.0**40, 0), 2.0**40)
WORDS = (0, 1, 2, 2**31, 2**44, 2**63, ONES - 1, ONES)
CONTINUATIONS: dict[str, Callable[[np.random.Generator], int]] = {
    "zeros": lambda _: 0,
    "ones": lambda _: ONES,
    "random": lambda random: int(random.integers(0, 2**64, dtype=np.uint64)),
}


@dataclass(frozen=True)
class Words:
    """A radius word, an angle word, and more of both in turn."""

    radius: int
    angle: int
    more: tuple[int, ...] = ()

    def draw(self, levels: int, sigma: float, *, second: bool) -> int | None:
        answer = _native.exact_draw(
            self.radius, self.angle, list(self.more[: 2 * levels]), float(sigma), second
        )
        return None if answer is None else int(answer)

    def ends(self, levels: int, sigma: float, *, second: bool) -> tuple[Any, Any]:
        """Return the least and the largest σ|X| that the known bits allow."""
        bits = 64 * (levels + 1)
        u = number((self.radius, *self.more[: 2 * levels : 2]))
        fraction = number((self.angle % 2**61, *self.more[1 : 2 * levels : 2]))
        far = mpmath.sqrt(-2 * mpmath.log(mpf(u) / 2**bits)) if u else mpmath.inf
        near = mpmath.sqrt(-2 * mpmath.log(mpf(u + 1) / 2**bits))
        turns = [mpf(f) / 2 ** (bits - 1) for f in (fraction, fraction + 1)]
        if second != bool(self.angle >> 61 & 1):
            low, high = (mpmath.sinpi(turn) for turn in turns)
        else:
            high, low = (mpmath.cospi(turn) for turn in turns)
        return sigma * near * low, sigma * far * high

    def negative(self, *, second: bool) -> bool:
        return bool(self.angle >> (62 if second else 63) & 1)


def number(words: tuple[int, ...]) -> int:
    return int.from_bytes(b"".join(word.to_bytes(8, "big") for word in words), "big")


def digits(value: Any, count: int) -> list[int]:
    """The first `count` words of a fraction, at the precision in force."""
    return [int(mpmath.floor(value * mpf(2) ** (64 * (i + 1)))) % 2**64 for i in range(count)]


def check(words: Words, levels: int, sigma: float, *, second: bool) -> bool:
    """Hold one answer against mpmath; return whether there was one."""
    # Also for the difference of two ends of the smallest σ.
    with mpmath.workprec(128 * (levels + 1) + 256):
        answer = words.draw(levels, sigma, second=second)
        low, high = words.ends(levels, sigma, second=second)
        if answer is None:
            # Slack: what exact.c may give away is far below 2^-16 of the interval's width, 2^-64
            # of the last known bit.
            half = mpmath.floor(low) + mpf(1) / 2
            wide = (high - low + sigma * mpf(2) ** (-64 * (levels + 1))) / 2**16
            assert low - wide <= half <= high + wide or high - low >= 1, "an answer was due"
            return False
        magnitude = -answer if words.negative(second=second) else answer
        assert magnitude - mpf(1) / 2 <= low
        assert high <= magnitude + mpf(1) / 2
        return True


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("levels", [0, 1, 2, 4])
def test_answers_are_mpmaths_at_extreme_words(sigma: float, levels: int) -> None:
    random = np.random.default_rng(levels)
    answers = 0
    for i, (radius, fraction) in enumerate(itertools.product(WORDS, WORDS)):
        # All eight octants come up, each with many words.
        angle = (i * 5 + i // 8) % 8 << 61 | fraction % 2**61
        more = [CONTINUATIONS[name](random) for name in CONTINUATIONS for _ in range(3)]
        words = Words(radius, angle, tuple(more[(i + k) % 9] for k in range(2 * levels)))
        answers += check(words, levels, sigma, second=bool(i % 3 % 2))
    assert answers > (40 if levels or sigma < 1000 else 25)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_answers_are_mpmaths_at_random_words(sigma: float) -> None:
    random = np.random.default_rng(11)
    word = CONTINUATIONS["random"]
    answers = 0
    for i in range(60):
        words = Words(word(random), word(random), tuple(word(random) for _ in range(8)))
        answers += check(words, i % 5, sigma, second=bool(i % 2))
    assert answers > 50


@pytest.mark.parametrize("sigma", [5e-324, 0.3, 2.0**40])
@pytest.mark.parametrize("levels", [31, 63, 64])
def test_answers_are_mpmaths_at_many_levels(sigma: float, levels: int) -> None:
    random = np.random.default_rng(levels)
    for name, word in CONTINUATIONS.items():
        for radius, angle in ((0, ONES), (ONES, 3 << 61), (12345, 5 << 61 | 999)):
            more = tuple(word(random) for _ in range(2 * levels))
            answered = check(Words(radius, angle, more), levels, sigma, second=levels % 2 == 0)
            assert answered or (radius == 0 and name == "zeros")


def test_more_levels_than_there_are_give_no_answer() -> None:
    words = Words(2**63, 0, (7,) * 132)
    assert words.draw(64, 1.0, second=False) == 1
    assert words.draw(65, 1.0, second=False) is None


@pytest.mark.parametrize("sigma", [1e-300, 0.3, 1000.5, 2.0**26, 2.0**40])
@pytest.mark.parametrize("name", CONTINUATIONS)
def test_an_answer_stands_whatever_bits_follow(sigma: float, name: str) -> None:
    random = np.random.default_rng(5)
    refined = 0
    for i in range(120):
        # Small words leave the radius wide open, so that few levels often do not suffice.
        radius = CONTINUATIONS["random"](random) >> (i % 16 * 4)
        more = tuple(CONTINUATIONS[name](random) for _ in range(6))
        words = Words(radius, CONTINUATIONS["random"](random), more)
        answers = [words.draw(levels, sigma, second=bool(i % 2)) for levels in range(4)]
        given = [answer for answer in answers if answer is not None]
        assert len(set(given)) <= 1
        assert given == answers[len(answers) - len(given) :], "an answer was withdrawn"
        refined += answers[0] is None and len(given) > 0
    assert refined > 5 or sigma < 1000


# ---- draws that lie on a half-integer but for one word far down -------------------------------


def beside_by_radius(sigma: float, half: int, word: int, *, above: bool) -> Words:
    """cos φ = 1, and u beside exp(-((half + ½)/σ)²/2) by a bit of radius word `word`."""
    with mpmath.workprec(64 * 70):
        u = mpmath.exp(-(((half + mpf(1) / 2) / mpf(sigma)) ** 2) / 2)
        # A larger u is a smaller radius.
        words = digits(u - (1 if above else -1) * mpf(2) ** (-64 * word - 8), 65)
    return Words(words[0], 0, tuple(x for u in words[1:] for x in (u, 0)))


def beside_by_angle(sigma: float, half: int, word: int, *, above: bool) -> Words:
    """u = ¼ and φ beside asin((half + ½)/(σ R)) by a bit of angle word `word`."""
    with mpmath.workprec(64 * 70):
        # 4^-1 is the word 2^62 and zeros; the unknown rest of u is far below what is asked here.
        sine = (half + mpf(1) / 2) / (mpf(sigma) * mpmath.sqrt(4 * mpmath.ln2))
        turn = mpmath.asin(sine) / (2 * mpmath.pi)
        words = digits(turn + (1 if above else -1) * mpf(2) ** (-64 * word - 8), 65)
    assert words[0] < 2**61
    return Words(2**62, words[0], tuple(x for angle in words[1:] for x in (0, angle)))


@pytest.mark.parametrize("make", [beside_by_radius, beside_by_angle])
@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize(
    ("word", "sigma", "half"),
    [(1, 1000.5, 700), (2, 2.0**40, 2**39), (3, 0.7, 0), (17, 1000.5, 12), (63, 1.1, 0)],
)
def test_a_draw_beside_a_half_integer_takes_the_levels_it_needs(
    make: Callable[..., Words], word: int, sigma: float, half: int, *, above: bool
) -> None:
    words, second = make(sigma, half, word, above=above), make is beside_by_angle
    assert words.draw(word - 1, sigma, second=second) is None
    assert words.draw(word, sigma, second=second) == half + above
    assert words.draw(min(word + 1, 64), sigma, second=second) == half + above


def test_a_draw_on_a_half_integer_is_never_decided() -> None:
    """u's expansion itself: the boundary stays inside the interval at every level."""
    with mpmath.workprec(64 * 70):
        u = digits(mpmath.exp(-mpf(1) / 8), 65)
    words = Words(u[0], 0, tuple(x for word in u[1:] for x in (word, 0)))
    for levels in (0, 1, 2, 5, 33, 64):
        assert words.draw(levels, 1.0, second=False) is None


@pytest.mark.parametrize("sine", [False, True])
def test_both_uncertainties_widen_the_interval(sine: bool) -> None:
    """Where the unknown bits of radius and angle weigh alike, so that ends exchanged would cancel.

    σ R(u) cos φ (or sin φ) is a half-integer, for a u that ends and a φ that does not.
    """
    sigma, second, radius = 2.0**40, sine, 2**58 if sine else 2**62
    with mpmath.workprec(64 * 70):
        square = -2 * mpmath.log(mpf(radius) / 2**64)
        weight = 2 * mpmath.pi * square * radius / 2**64
        # d ln R = du/(u R²); d ln sin φ = cot φ dφ, d ln cos φ = -tan φ dφ; dφ = 2π du.
        angle = mpmath.atan(weight if sine else 1 / weight)
        length = sigma * mpmath.sqrt(square)
        half = mpmath.floor(length * (mpmath.sin(angle) if sine else mpmath.cos(angle)))
        ratio = (half + mpf(1) / 2) / length
        turn = (mpmath.asin(ratio) if sine else mpmath.acos(ratio)) / (2 * mpmath.pi)
        found = digits(turn, 5)
    assert found[0] < 2**61
    words = Words(radius, found[0], tuple(x for angle in found[1:] for x in (0, angle)))
    for levels in range(5):
        assert words.draw(levels, sigma, second=second) is None
    nearer = Words(radius, found[0], (0, found[1] ^ 1 << 63))
    assert nearer.draw(1, sigma, second=second) in {int(half), int(half) + 1}
