"""Repeated noise and float noise are found; dither's own is neither."""

from __future__ import annotations

import numpy as np
import pytest

from dither.audit.noise_attacks import (
    FALSE_ALARM,
    WIDE,
    attack_parity,
    attack_pool,
    autocorrelation,
    find_reuse,
    float32_box_muller,
    lattice_sampler,
)
from dither.errors import ConfigError

SIZE = 1 << 17


def test_the_pool_repeats_nothing_and_a_block_used_twice_is_found() -> None:
    """Each search gives a false alarm with probability 1e-6."""
    honest, reused = attack_pool(np.random.default_rng(0))
    assert not honest.found
    assert honest.noise_left > 1.2
    assert reused.found
    # From 30,000 in the third release to 1,000 in the tenth, of 65,536 numbers each.
    assert reused.lag == (9 * 65536 + 1000) - (2 * 65536 + 30000)
    assert reused.noise_left < 0.1


@pytest.mark.parametrize("length", [2500, 8192, 40_000])
def test_the_score_of_a_repeat_is_as_reckoned(length: int) -> None:
    """L/√(n − l); with 2500 of 131,072 numbers that is 8.7, just above the threshold."""
    values = np.random.default_rng(length).standard_normal(SIZE)
    values[60_000 : 60_000 + length] = values[1000 : 1000 + length]
    scores = autocorrelation(values)
    assert scores[59_000] == pytest.approx(length / np.sqrt(SIZE - 59_000), abs=5.0)
    found = find_reuse("x", values, np.zeros(SIZE), 1.0, repeated=1024)
    assert found.lag == 59_000
    assert found.found


def test_fresh_noise_gives_no_alarm() -> None:
    """Twenty streams, each with a false alarm of 1e-6."""
    random = np.random.default_rng(4)
    for _ in range(20):
        values = random.standard_normal(1 << 15)
        assert not find_reuse("fresh", values, np.zeros(values.size), 1.0).found


def test_scores_of_fresh_noise_are_standard_normal() -> None:
    scores = autocorrelation(np.random.default_rng(5).standard_normal(SIZE))[1:]
    assert scores.std() == pytest.approx(1.0, abs=0.02)
    assert np.abs(scores).max() < 7.5


def test_a_few_numbers_are_not_searched() -> None:
    with pytest.raises(ConfigError):
        find_reuse("x", np.zeros(1000), np.zeros(1000), 1.0)


def test_float_noise_on_a_lattice_is_told_by_parity_and_the_lattices_own_is_not() -> None:
    """P(even) = 0.536 at σ = 2²⁰ steps (PRIVACY-REVIEW A1); a shift of 1e-4 σ is told each time."""
    random = np.random.default_rng(0)
    naive = attack_parity("naive", float32_box_muller(WIDE, random), generator=random)
    assert naive.leaks
    assert naive.even == pytest.approx(0.536, abs=0.002)
    assert naive.low > 0.53
    assert naive.advantage > 0.98
    ours = attack_parity("ours", lattice_sampler(WIDE), generator=random)
    assert not ours.leaks
    assert ours.low < 0.5 < ours.high
    assert ours.high - ours.low < 0.005
    assert ours.ceiling == pytest.approx(100 / 2**20 / np.sqrt(2 * np.pi), rel=1e-3)
    assert ours.confidence == 1.0 - FALSE_ALARM


def test_a_slight_preference_for_even_numbers_is_told() -> None:
    random = np.random.default_rng(1)
    own = lattice_sampler(WIDE)

    def biased(count: int) -> np.ndarray:
        drawn = own(count)
        return np.asarray(drawn - (drawn & 1) * (random.random(count) < 0.04).astype(np.int32))

    assert attack_parity("biased", biased, generator=random).leaks
