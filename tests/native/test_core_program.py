"""The C core outside Python and on another processor: the same integers for one key.

Keys are fixed, so a failure is a defect.
"""

from __future__ import annotations

import subprocess
from typing import Any

import numpy as np
import pytest
from tests.native.building import RUN_SECONDS, run
from tests.native.operations import SMALL_SIGMAS, key

from dither import _native
from dither.noise import simd

COUNT = 4099
NAME_BYTES = 16


def _words(kernels: Any, ours: Any) -> list[Any]:
    """What `report_draws` of native/tests/report.c writes, in its order: streams and masks."""
    words = np.empty(COUNT, np.uint32)
    _native.stream(kernels, ours, words)
    made = [words.copy()]
    _native.stream_at(kernels, ours, 9, 2**28 - 2, words)
    made.append(words.copy())
    for kind in (np.uint16, np.uint32, np.uint64):
        whole = COUNT * 4 // np.dtype(kind).itemsize * np.dtype(kind).itemsize // 4
        _native.mask(kernels, ours, words[:whole].view(kind), kind is np.uint32)
        made.append(words.copy())
    _native.stream(kernels, key(256), words)
    return [*made, words]


def _lattices(kernels: Any, ours: Any) -> list[Any]:
    made = []
    large = (1.0, 2.0**32, 2.0**40)
    for kind, sigmas in ((np.int32, SMALL_SIGMAS), (np.int64, large)):
        for sigma in sigmas:
            draws = np.empty(COUNT, kind)
            _native.lattice(kernels, ours, sigma, draws)
            made.append(draws)
    return made


def _codec(kernels: Any, ours: Any) -> list[Any]:
    made: list[Any] = []
    wide = (np.arange(COUNT) - 2000) * 0.3125
    narrow = wide.astype(np.float32)
    noise = np.empty(COUNT, np.int32)
    grids = (
        (_native.Grid(4, 3000, 3, 900, 16), np.int16),
        (_native.Grid(12, 1 << 30, 5, 1 << 20, 32), np.int32),
    )
    for grid, kind in grids:
        messages = [np.empty(COUNT, kind) for _ in range(3)]
        _native.encode(kernels, ours, 2.0**20, grid, narrow, messages[0])
        _native.encode(kernels, ours, 40.5, grid, wide, messages[1])
        _native.lattice(kernels, ours, 77.0, noise)
        _native.encode_ready(kernels, noise, grid, narrow, messages[2])
        _native.decode(kernels, grid, messages[2], narrow, 1 / 3)
        made += [*messages, narrow.copy()]
        _native.decode(kernels, grid, messages[2], narrow)
        made.append(narrow.copy())
    return made


def expected(path: str) -> list[Any]:
    with simd.using(path):
        kernels, ours = simd.kernels(), key()
        return [part(kernels, ours) for part in (_words, _lattices, _codec)]


def compare(report: bytes, paths: list[str], ours: str) -> None:
    """Hold a report against this extension's output by its path `ours`."""
    arrays = [array for part in expected(ours) for array in part]
    size = NAME_BYTES + sum(array.nbytes for array in arrays)
    assert len(report) == size * len(paths)
    for i, path in enumerate(paths):
        rest = report[i * size : (i + 1) * size]
        assert rest[:NAME_BYTES].rstrip(b"\0").decode() == path
        rest = rest[NAME_BYTES:]
        for number, array in enumerate(arrays):
            got = np.frombuffer(rest[: array.nbytes], array.dtype)
            np.testing.assert_array_equal(got, array, f"{path}, output {number}")
            rest = rest[array.nbytes :]


def draws(command: list[str]) -> bytes:
    done = subprocess.run(
        [*command, "draws"], capture_output=True, check=False, timeout=RUN_SECONDS
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.xdist_group("core_program")
def test_the_core_alone_draws_what_the_extension_draws(core_program: list[str]) -> None:
    report = draws(core_program)
    for path in simd.available():
        compare(report, list(simd.available()), path)


@pytest.mark.xdist_group("core_program")
def test_a_report_that_differs_in_a_bit_is_seen(core_program: list[str]) -> None:
    report = bytearray(draws(core_program))
    report[-1] ^= 1
    with pytest.raises(AssertionError, match=simd.available()[-1]):
        compare(bytes(report), list(simd.available()), "portable")


@pytest.mark.full
@pytest.mark.xdist_group("arm_program")
def test_the_core_passes_its_own_tests_on_neon(arm_program: list[str]) -> None:
    said = run(arm_program)
    assert "path neon" in said
    assert said.count(" passed") == 8


@pytest.mark.full
@pytest.mark.xdist_group("arm_program")
def test_neon_draws_what_this_processor_draws(arm_program: list[str]) -> None:
    compare(draws(arm_program), ["portable", "neon"], simd.available()[-1])
