"""Plain floating-point normals: the right law, in place, and alike on every instruction set.

They are not for releases; test_float_attack.py shows why. Comparisons with a law have a false-alarm
rate of 1e-7 each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tests.noise.arrays import Maker, refused, untouched
from tests.noise.laws import ALARM, Reals, normal, within
from tests.noise.oracle import normals, pairs

from dither.errors import ConfigError
from dither.noise import simd
from dither.noise.gaussian import fill_gaussian
from dither.noise.key import Key
from dither.noise.stream import fresh_words

Floats = np.ndarray[tuple[int], np.dtype[np.floating[Any]]]
Kind = type[np.float32 | np.float64]
KINDS = [np.float32, np.float64]
ROW = {np.float32: 16, np.float64: 8}
SUPERBLOCK = {np.float32: 256, np.float64: 128}


def _drawn(kind: Kind, count: int, key: Key | None = None) -> Floats:
    drawn = np.full(count, np.nan, kind)
    fill_gaussian(drawn, key or Key())
    return drawn


def _is_standard(reals: Reals) -> bool:
    """Kolmogorov-Smirnov, mean, second and fourth moment."""
    count = reals.size
    fourth = float(np.mean(reals**4)) - 3
    return (
        normal(reals)
        and within(float(reals.mean()) * np.sqrt(count))
        and _has_unit_variance(reals)
        and within(fourth / np.sqrt(96 / count))
    )


def _has_unit_variance(reals: Reals) -> bool:
    low, high = stats.chi2.isf([1 - ALARM / 2, ALARM / 2], reals.size)
    return bool(low < float(reals @ reals) < high)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", simd.available())
def test_draws_are_standard_normal(kind: Kind, path: str) -> None:
    with simd.using(path):
        drawn = _drawn(kind, 1_000_000).astype(np.float64)
    assert _is_standard(drawn)
    for factor in (0.98, 1.02):
        assert not _has_unit_variance(factor * drawn)
    assert not _is_standard(drawn + 0.01)
    assert not _is_standard(np.clip(drawn, -3, 3))


def test_other_laws_are_caught() -> None:
    """Of mean 0 and variance 1: uniform, and a sum of twelve."""
    generator = np.random.default_rng()
    assert not normal(generator.uniform(-np.sqrt(3), np.sqrt(3), 100_000))
    assert not _is_standard(generator.random((12, 1_000_000)).sum(axis=0) - 6)


@pytest.mark.parametrize("kind", KINDS)
def test_partners_are_independent(kind: Kind) -> None:
    """Cosine and sine parts, and their squares; a correlation of 1 % is caught."""
    parts = _drawn(kind, 1 << 21).astype(np.float64).reshape(-1, 2, ROW[kind])
    one, two = parts[:, 0].reshape(-1), parts[:, 1].reshape(-1)
    root = np.sqrt(one.size)
    assert within(float(one @ two) / root)
    assert within(float((one**2 - 1) @ (two**2 - 1)) / 2 / root)
    assert not within(float(one @ (two + 0.01 * one)) / root)


def test_float64_normals_are_those_of_their_words() -> None:
    """Box-Muller on the words of the same key, to 2⁻⁴⁴."""
    drawn = _drawn(np.float64, 1 << 20, Key.agreed(bytes(32)))
    words = fresh_words(Key.agreed(bytes(32)), 2 << 20).view(np.uint64)
    expected = np.stack([one.reshape(-1, 8) for one in normals(*pairs(words))], axis=1).reshape(-1)
    known = ~np.isnan(expected)
    assert np.count_nonzero(~known) < 200
    assert np.abs(drawn - expected)[known].max() < 2.0**-44


def test_float32_normals_are_those_of_their_words() -> None:
    """Box-Muller in float64 on the words of the same key, to 4 units of the radius' last place."""
    drawn = _drawn(np.float32, 1 << 20, Key.agreed(bytes(32)))
    words = fresh_words(Key.agreed(bytes(32)), 1 << 20).reshape(-1, 2, 16)
    radius, angle = words[:, 0].astype(np.float64), words[:, 1]
    length = np.sqrt(-2 * np.log((radius + 0.5) * 2.0**-32))
    turn = ((angle & np.uint32((1 << 29) - 1)).astype(np.float64) + 0.5) * 2.0**-29 * (np.pi / 4)
    swap = (angle >> np.uint32(29) & np.uint32(1)).astype(bool)
    ratios = np.where(swap, np.sin(turn), np.cos(turn)), np.where(swap, np.cos(turn), np.sin(turn))
    signs = (1.0 - 2.0 * (angle >> np.uint32(bit) & np.uint32(1)) for bit in (31, 30))
    expected = np.stack([s * length * r for s, r in zip(signs, ratios, strict=True)], axis=1)
    error = np.abs(drawn.reshape(-1, 2, 16) - expected) / length[:, None, :]
    assert error.max() < 4 * 2.0**-23


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", simd.available())
def test_instruction_sets_agree_to_a_few_units_in_the_last_place(kind: Kind, path: str) -> None:
    outputs = []
    for name in ("portable", path):
        with simd.using(name):
            outputs.append(_drawn(kind, 1 << 20, Key.agreed(bytes(32))))
    apart = np.abs(outputs[0] - outputs[1]) / np.spacing(np.abs(outputs[0]))
    assert apart.max() <= 8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 7, 15, 16, 127, 128, 129, 255, 256, 257, 5000])
def test_any_size_is_filled_and_uses_whole_superblocks(kind: Kind, count: int) -> None:
    key = Key.agreed(bytes(32))
    whole = _drawn(kind, 6000, Key.agreed(bytes(32)))
    room = np.full(count + 2, 99, kind)
    fill_gaussian(room[1:-1], key)
    assert np.array_equal(room[1:-1], whole[:count])
    assert room[0] == room[-1] == 99  # nothing beside it was touched
    assert key.position == -(-count // SUPERBLOCK[kind])


@pytest.mark.parametrize(("kind", "end"), [(np.float32, 6.77), (np.float64, 9.43)])
def test_the_ends_are_where_they_are_said_to_be(kind: Kind, end: float) -> None:
    """The smallest radius word: √(2·33·ln 2) and √(2·64·ln 2); nothing is infinite or NaN."""
    drawn = _drawn(kind, 1 << 22)
    assert np.isfinite(drawn).all()
    assert 4.5 < np.abs(drawn).max() < end


def test_calls_and_keys_differ() -> None:
    key = Key()
    draws = [_drawn(np.float64, 1000, one) for one in (key, key, Key())]
    assert len({draw.tobytes() for draw in draws}) == 3
    assert np.intersect1d(draws[0], draws[1]).size == 0


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_torch_tensors_are_filled_in_place(kind: torch.dtype) -> None:
    tensor = torch.zeros(1000, dtype=kind)
    address, inner = tensor.data_ptr(), tensor[100:900]
    fill_gaussian(inner, Key.agreed(bytes(32)))
    assert tensor.data_ptr() == address
    numpy_kind = np.float32 if kind == torch.float32 else np.float64
    assert tensor[100:900].tolist() == _drawn(numpy_kind, 800, Key.agreed(bytes(32))).tolist()
    assert not tensor[:100].any()
    assert not tensor[900:].any()


REFUSED: dict[str, Maker] = {
    **refused(np.float32, torch.float32),
    "int32": lambda: np.zeros(8, np.int32),
    "float16": lambda: np.zeros(8, np.float16),
    "torch, int64": lambda: torch.zeros(8, dtype=torch.int64),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_arrays_are_refused_and_stay_as_they_are(case: str) -> None:
    array, key = REFUSED[case](), Key()
    with pytest.raises(ConfigError, match="a contiguous one-dimensional float32 or float64 array"):
        fill_gaussian(array, key)
    assert key.position == 0
    assert untouched(array)
