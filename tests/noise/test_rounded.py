"""Each lattice draw is the rounding of its bits; where they go, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
import torch
from tests.noise.arrays import Maker, refused, untouched
from tests.noise.laws import Draws, binomial
from tests.noise.oracle import (
    WORDS,
    Pair,
    Words,
    expected_draws,
    further_words,
    next_words,
)

from dither.errors import ConfigError
from dither.noise import simd
from dither.noise.key import Key
from dither.noise.rounded import fill_rounded_gaussian, rounded_gaussian

SIGMAS = [0.3, 1.0, 4.0, 12_345.6, 2.0**20, 2.0**26, 2.0**32, 1.7e11, 2.0**40]
# Keys among whose first 2048 draws at σ = 2⁴⁰ is one that 64 bits leave open, found by search.
OPEN = {
    "chacha20": [151, 630, 1512, 1904, 1883, 3730, 3534, 5405],
    "aes256": [9, 1193, 4388, 4743, 4811, 5921, 7601, 8516],
}


def _material(number: int) -> bytes:
    return number.to_bytes(32, "little")


def _count(sigma: float) -> int:
    """As many as the oracle decides in a tenth of a second."""
    return 2048 if sigma > 2**36 else 1 << 18


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("path", simd.available())
def test_every_draw_is_the_rounding_of_its_bits(sigma: float, path: str) -> None:
    """The oracle reads the words of the same key, by the portable path."""
    with simd.using(path):
        drawn = rounded_gaussian(sigma, _count(sigma), Key.agreed(_material(1)))
    with simd.using("portable"):
        words = next_words(Key.agreed(_material(1)), drawn.size)
    assert np.array_equal(drawn, expected_draws(words, sigma))


@pytest.mark.full
def test_a_billion_draws_are_the_roundings_of_their_bits() -> None:
    """About a thousand of them decided in arbitrary precision, by core and oracle."""
    sigma, part = 2.0**20, 1 << 20
    mine, theirs = (Key.agreed(_material(2)) for _ in range(2))
    drawn, redone = np.empty(part, np.int32), 0
    for _ in range(10**9 // part + 1):
        redone += fill_rounded_gaussian(drawn, sigma, mine)
        assert np.array_equal(drawn, expected_draws(next_words(theirs, part), sigma))
    assert redone > 500


@pytest.mark.full
@pytest.mark.parametrize("cipher", OPEN)
def test_redone_draws_are_the_roundings_of_their_bits(cipher: str) -> None:
    """An eighth of 500 000 draws, of which none or one needs further bits."""
    part = 1 << 13
    mine, theirs = (Key.agreed(_material(3), cipher=cipher) for _ in range(2))
    for _ in range(500_000 // part):
        start = theirs.position
        more = partial(_further, cipher, _material(3), start)
        drawn = rounded_gaussian(2.0**40, part, mine)
        assert np.array_equal(drawn, expected_draws(next_words(theirs, part), 2.0**40, more))


def _further(cipher: str, material: bytes, start: int, pair: int) -> Sequence[int]:
    """Words for a pair counted from superblock `start`."""
    words: list[int] = further_words(cipher, material, start * (WORDS // 2) + pair)[:4].tolist()
    return words


@pytest.mark.parametrize("cipher", OPEN)
def test_open_draws_are_decided_by_further_bits(cipher: str) -> None:
    """By the pair's own superblock of the refining stream; another's would not do."""
    sigma, wrong = 2.0**40, 0
    for number in OPEN[cipher]:
        material, taken = _material(number), list[int]()
        drawn = rounded_gaussian(sigma, 2048, Key.agreed(material, cipher=cipher))
        words = next_words(Key.agreed(material, cipher=cipher), 2048)

        def more(pair: int) -> Sequence[int]:
            taken.append(pair)  # noqa: B023 - called before the next round
            return _further(cipher, material, 0, pair)  # noqa: B023

        assert np.array_equal(drawn, expected_draws(words, sigma, more))
        (pair,) = taken  # the search found one
        first = pair // 8 * 16 + pair % 8
        for at in (first, first + 8):
            mutant = Pair(
                int(words[first]), int(words[first + 8]), _further(cipher, material, 1, pair)
            )
            wrong += mutant.draw(sigma, second=at > first) != drawn[at]
    assert wrong > 0  # each open one with probability ½


def _float64(words: Words, sigma: float) -> Draws:
    """The mutant that never redoes: Box-Muller in float64, rounded."""
    rows = words.reshape(-1, 2, 8)
    radius, angle = rows[:, 0], rows[:, 1]
    length = np.sqrt(-2.0 * np.log((radius.astype(np.float64) + 0.5) * 2.0**-64))
    turn = (angle & np.uint64((1 << 61) - 1)).astype(np.float64) * 2.0**-61 * (np.pi / 4)
    swap = (angle >> np.uint64(61) & np.uint64(1)).astype(bool)
    parts = np.where(swap, np.sin(turn), np.cos(turn)), np.where(swap, np.cos(turn), np.sin(turn))
    signs = (1.0 - 2.0 * (angle >> np.uint64(bit) & np.uint64(1)) for bit in (63, 62))
    draws = [np.rint(sigma * sign * length * part) for sign, part in zip(signs, parts, strict=True)]
    rounded: Draws = np.stack(draws, axis=1).reshape(-1).astype(np.int64)
    return rounded


def _partners_exchanged(words: Words, sigma: float) -> Draws:
    exact = expected_draws(words, sigma).reshape(-1, 2, 8)
    return np.ascontiguousarray(exact[:, ::-1]).reshape(-1)


def _one_step_off_once(words: Words, sigma: float) -> Draws:
    draws = expected_draws(words, sigma)
    draws[77] += 1
    return draws


WRONG: dict[str, tuple[Callable[[Words, float], Draws], float, int]] = {
    "float64 without redoing": (_float64, 2.0**40, 1 << 13),
    "partners exchanged": (_partners_exchanged, 2.0**20, 1 << 10),
    "sigma off by 2⁻³⁵": (
        lambda w, sigma: expected_draws(w, sigma * (1 + 2.0**-35)),
        2.0**20,
        1 << 18,
    ),
    "one step off once": (_one_step_off_once, 2.0**20, 1 << 18),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_draws_are_noticed(case: str) -> None:
    mutant, sigma, count = WRONG[case]
    words = next_words(Key.agreed(_material(4)), count)
    assert not np.array_equal(mutant(words, sigma), expected_draws(words, sigma))


@pytest.mark.parametrize("sigma", [0.3, 1e4, 2.0**20, 2.0**26])
def test_both_widths_and_both_calls_draw_the_same(sigma: float) -> None:
    keys = [Key.agreed(_material(5)) for _ in range(3)]
    narrow, wide = np.empty(300_001, np.int32), np.empty(300_001, np.int64)
    redone = [fill_rounded_gaussian(narrow, sigma, keys[0])]
    redone.append(fill_rounded_gaussian(wide, sigma, keys[1]))
    assert np.array_equal(narrow, wide)
    assert np.array_equal(wide, rounded_gaussian(sigma, wide.size, keys[2]))
    assert redone[0] == redone[1]
    assert len({key.position for key in keys}) == 1


@pytest.mark.parametrize("count", [0, 1, 7, 8, 127, 128, 129, 1023, 1025, 5000])
def test_any_size_is_filled_and_uses_whole_superblocks(count: int) -> None:
    key, again = Key.agreed(_material(6)), Key.agreed(_material(6))
    whole = rounded_gaussian(1e6, 6000, again)
    room = np.full(count + 2, -1, np.int64)
    fill_rounded_gaussian(room[1:-1], 1e6, key)
    assert np.array_equal(room[1:-1], whole[:count])
    assert room[0] == room[-1] == -1  # nothing beside it was touched
    assert key.position == -(-count // WORDS)
    after = rounded_gaussian(1e6, 100, key)
    start = WORDS * -(-count // WORDS)
    assert np.array_equal(after, whole[start : start + 100])


@pytest.mark.parametrize(
    ("sigma", "count", "share"),
    [(2.0**20, 2_000_000, 2.0**-23), (2.0**32, 500_000, 2.0**-11), (2.0**40, 50_000, 2.0**-3)],
)
def test_as_many_draws_are_redone_as_the_margin_says(
    sigma: float, count: int, share: float
) -> None:
    """2·2⁻⁴⁴ σ of them, and each pair whose radius word is below 2⁴⁴: exact binomial, 1e-7."""
    redone = fill_rounded_gaussian(np.empty(count, np.int64), sigma, Key())
    assert binomial(redone, count, share + 2.0**-20)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_torch_tensors_are_filled_in_place(kind: torch.dtype) -> None:
    tensor = torch.zeros(1000, dtype=kind)
    inner = tensor[100:900]
    address = tensor.data_ptr()
    fill_rounded_gaussian(inner, 1e6, Key.agreed(_material(7)))
    assert tensor.data_ptr() == address
    assert tensor[100:900].tolist() == rounded_gaussian(1e6, 800, Key.agreed(_material(7))).tolist()
    assert not tensor[:100].any()
    assert not tensor[900:].any()


REFUSED: dict[str, Maker] = {
    **refused(np.int32, torch.int32),
    "float64": lambda: np.zeros(8),
    "torch, float32": lambda: torch.zeros(8),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_arrays_are_refused_and_stay_as_they_are(case: str) -> None:
    array, key = REFUSED[case](), Key()
    with pytest.raises(ConfigError, match="a contiguous one-dimensional int32 or int64 array"):
        fill_rounded_gaussian(array, 100.0, key)
    assert key.position == 0
    assert untouched(array)


@pytest.mark.parametrize("sigma", [0.0, -1.0, -0.0, math.nan, math.inf, 2.0**40 * 1.01])
def test_sigma_out_of_range_is_refused(sigma: float) -> None:
    key = Key()
    with pytest.raises(ConfigError, match=r"a sigma in \(0, 2\^40\] lattice steps"):
        rounded_gaussian(sigma, 3, key)
    assert key.position == 0


def test_int32_ends_at_two_to_the_26() -> None:
    key = Key()
    with pytest.raises(ConfigError, match=r"2\^26\] lattice steps"):
        fill_rounded_gaussian(np.zeros(8, np.int32), 2.0**26 * (1 + 2.0**-52), key)
    assert key.position == 0


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ConfigError, match="a count of 0 or more"):
        rounded_gaussian(1.0, -1, Key())


def test_a_vanishing_sigma_draws_zeros() -> None:
    assert not rounded_gaussian(5e-324, 10_000, Key()).any()
