"""Every instruction set computes the same, at every size and address, and nothing beside it.

Keys are fixed, so nothing here is random: a failure is a defect.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from tests.native.operations import EXACT, LATTICES, NORMALS, Array, key, paths

SIZES = (0, 1, 2, 3, 7, 8, 9, 15, 17, 127, 128, 129, 255, 256, 257, 1023, 1025, 2049, 10_000)
PATHS = paths()
OTHERS = [name for name in PATHS if name != "plain"]
FENCE, PATTERN = 64, 0xA5
# Bytes past a cache line: odd ones, and whole elements of every size.
OFFSETS = (1, 2, 3, 4, 5, 7, 8, 12, 24, 40)


def fresh(kind: Any, count: int) -> Array:
    return np.full(count, 1, kind)


class Fenced:
    """Allocates at an address so many bytes off, and remembers what lies around."""

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.made: list[tuple[bytearray, int]] = []

    def __call__(self, kind: Any, count: int) -> Array:
        size = count * np.dtype(kind).itemsize
        memory = bytearray([PATTERN]) * (FENCE + self.offset + size + FENCE)
        base = np.frombuffer(memory, np.uint8).ctypes.data
        start = FENCE - base % FENCE + self.offset  # that many bytes past a cache line
        self.made.append((memory, start))
        return np.frombuffer(memory, kind, count, start)

    def intact(self, arrays: list[int]) -> bool:
        return all(
            set(memory[:start] + memory[start + size :]) == {PATTERN}
            for (memory, start), size in zip(self.made, arrays, strict=True)
        )


@pytest.mark.parametrize("cipher", [12, 20, 256])
@pytest.mark.parametrize("name", EXACT)
def test_all_paths_give_the_same(name: str, cipher: int) -> None:
    for count in SIZES:
        if cipher != 20 and count > 2049:  # AES without instructions is slow
            continue
        first = key(cipher)
        expected = EXACT[name](PATHS["plain"], first, count, fresh)
        for path in OTHERS:
            mine = key(cipher)
            got = EXACT[name](PATHS[path], mine, count, fresh)
            for a, b in zip(got, expected, strict=True):
                np.testing.assert_array_equal(a, b, f"{path}, {count}")
            assert mine.position == first.position


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", [*LATTICES, "stream"])
def test_a_longer_fill_begins_with_a_shorter_one(name: str, path: str) -> None:
    (longest,) = EXACT[name](PATHS[path], key(), max(SIZES), fresh)
    assert len(np.unique(longest)) > 1 or "0.01" in name
    for count in SIZES:
        (some,) = EXACT[name](PATHS[path], key(), count, fresh)
        np.testing.assert_array_equal(some, longest[:count])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", [n for n in LATTICES if n.startswith("int32")])
def test_int32_and_int64_draws_are_the_same(name: str, path: str) -> None:
    (narrow,) = EXACT[name](PATHS[path], key(), 5000, fresh)
    (wide,) = EXACT[name.replace("int32", "int64")](PATHS[path], key(), 5000, fresh)
    np.testing.assert_array_equal(narrow, wide)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", [*EXACT, *NORMALS])
def test_any_address_will_do_and_nothing_beside_is_written(name: str, path: str) -> None:
    operation = {**EXACT, **NORMALS}[name]
    for offset, count in itertools.product(OFFSETS, (1, 7, 129, 2053)):
        expected = operation(PATHS[path], key(), count, fresh)
        fenced = Fenced(offset)
        got = operation(PATHS[path], key(), count, fenced)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a, b)
        sizes = [len(memory) - 2 * FENCE - offset for memory, _ in fenced.made]
        assert fenced.intact(sizes)


def test_the_fence_sees_a_byte_before_and_a_byte_behind() -> None:
    for beside in (-1, 3 * 4):
        fenced = Fenced(5)
        array = fenced(np.int32, 3)
        assert array.ctypes.data % FENCE == 5
        array[:] = -1
        assert fenced.intact([12])
        memory, start = fenced.made[0]
        memory[start + beside] ^= 1
        assert not fenced.intact([12])


@pytest.mark.parametrize("path", OTHERS)
def test_normals_of_all_paths_are_close(path: str) -> None:
    """To the last bits only: contraction to fused multiply-add differs."""
    for name, bound in (("gaussian float32", 2e-5), ("gaussian float64", 1e-13)):
        (expected,) = NORMALS[name](PATHS["plain"], key(), 10_000, fresh)
        (got,) = NORMALS[name](PATHS[path], key(), 10_000, fresh)
        np.testing.assert_allclose(got, expected, rtol=0, atol=bound)
