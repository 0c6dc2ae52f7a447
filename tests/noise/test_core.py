"""The door to the C core: arrays in place, refusals in words, and nothing left of a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.noise.processes import mappings

from dither import _native
from dither.errors import ConfigError, DitherError, NoiseError, ReleaseError
from dither.noise.core import Buffer, core_errors
from dither.noise.gaussian import fill_gaussian
from dither.noise.key import Key
from dither.noise.rounded import fill_rounded_gaussian
from dither.noise.stream import add_mask

KINDS: dict[str, tuple[type[DitherError], str]] = {
    "no_entropy": (NoiseError, "the C core's work done, got reason"),
    "no_memory": (NoiseError, "the C core's work done, got reason"),
    "no_thread": (NoiseError, "the C core's work done, got reason"),
    "forked": (NoiseError, "a key of this process"),
    "closed": (NoiseError, "an open pool"),
    "not_finite": (ReleaseError, "a finite clipped sum"),
    "bad_sigma": (ConfigError, "a sigma in"),
    "bad_grid": (ConfigError, "a lattice with"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_refusal_of_the_core_is_one_of_ours(kind: str) -> None:
    error, text = KINDS[kind]
    with pytest.raises(DitherError, match=text) as caught, core_errors("a pear"):
        raise _native.StatusError(f"{kind}: reason")
    assert type(caught.value) is error
    assert caught.value.fix
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("kind", [TypeError, ValueError, BufferError])
def test_wrong_arguments_are_named(kind: type[Exception]) -> None:
    with pytest.raises(ConfigError, match="expected a pear, got an apple"), core_errors("a pear"):
        raise kind("an apple\nwith a long story")
    with pytest.raises(ConfigError, match="another type, shape"), core_errors("a pear"):
        raise kind("f(): incompatible function arguments. The following argument")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError, ZeroDivisionError, MemoryError])
def test_other_errors_pass(kind: type[BaseException]) -> None:
    with pytest.raises(kind), core_errors("a pear"):
        raise kind


def test_the_core_names_its_refusals_by_kind() -> None:
    """Kinds that can be had on purpose, so that the table above is the core's own."""
    grid = _native.Grid(0, 10, 0, 10, 32)
    made = _native.Kernels([])
    with pytest.raises(_native.StatusError, match="bad_sigma: "):
        _native.lattice(made, Key().native, -1.0, np.zeros(1, np.int64))
    with pytest.raises(_native.StatusError, match="not_finite: "):
        _native.encode(made, Key().native, 1.0, grid, np.array([np.nan]), np.zeros(1, np.int32))
    with pytest.raises(_native.StatusError, match="bad_grid: "):
        _native.decode(made, _native.Grid(0, -1, 0, 1, 32), np.zeros(1, np.int32), np.zeros(1))


# ---- arrays --------------------------------------------------------------------------------------


def fill_lattice(out: Buffer, key: Key) -> None:
    fill_rounded_gaussian(out, 1e6, key)


FILLS: list[tuple[Callable[[Any, Key], None], str]] = [
    (add_mask, "int16"),
    (add_mask, "int32"),
    (add_mask, "int64"),
    (fill_lattice, "int32"),
    (fill_lattice, "int64"),
    (fill_gaussian, "float32"),
    (fill_gaussian, "float64"),
]


def ids(value: object) -> str:
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("fill", "kind"), FILLS, ids=ids)
def test_arrays_and_tensors_are_filled_where_they_lie(
    fill: Callable[[Any, Key], None], kind: str
) -> None:
    """The same numbers into both, a neighbour on either side untouched, even at odd addresses."""
    results = []
    for offset in (0, 1, 3):
        room = np.zeros(1002, kind)
        fill(room[1 + offset : 1001 - offset], Key.agreed(bytes(32)))
        assert room[1 + offset : 1001 - offset].any()
        assert not room[: 1 + offset].any()
        assert not room[1001 - offset :].any()
        results.append(room[1 + offset :][:900])
    tensor = torch.zeros(1002, dtype=getattr(torch, kind))
    place = tensor.data_ptr()
    fill(tensor[1:1001], Key.agreed(bytes(32)))
    assert tensor.data_ptr() == place
    results.append(tensor[1:901].numpy())
    assert all((one == results[0]).all() for one in results)
    assert isinstance(tensor, Buffer)
    assert isinstance(results[0], Buffer)
    assert not isinstance([1.0], Buffer)


@pytest.mark.parametrize(("fill", "kind"), FILLS, ids=ids)
def test_what_cannot_be_filled_in_place_is_refused(
    fill: Callable[[Any, Key], None], kind: str
) -> None:
    """nanobind would fill a copy of a strided array and throw it away, without a word."""
    fixed = np.zeros(8, kind)
    fixed.flags.writeable = False
    tensor = torch.zeros(16, dtype=getattr(torch, kind))
    for out in (np.zeros(16, kind)[::2], np.zeros(8, kind)[::-1], np.zeros((2, 4), kind), fixed):
        with pytest.raises(ConfigError):
            fill(out, Key())
        assert not out.any()
    for other in (tensor[::2], tensor.reshape(4, 4), tensor.to("meta")):
        with pytest.raises(ConfigError):
            fill(other, Key())
    assert not tensor.any()
    for wrong in (np.zeros(8, np.uint8), np.zeros(8, bool), np.zeros(8, np.complex128)):
        with pytest.raises(ConfigError):
            fill(wrong, Key())
        assert not wrong.any()


# ---- a system that gives nothing -----------------------------------------------------------------


SHORT = """
import os, resource, sys
from pathlib import Path
from dither.errors import NoiseError
from dither.noise.key import Key
from dither.noise.pool import NoisePool
key = Key()
limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limit += int(sys.argv[1])
def left():
    return len(os.listdir("/proc/self/task")), Path("/proc/self/smaps").read_text().count(" wf ")
before = left()
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    NoisePool(1000.0, key, capacity=int(sys.argv[2]))
except NoiseError as error:
    print(left() == before, error)
"""


@pytest.mark.parametrize(
    ("room", "capacity", "told"),
    [(1 << 26, 1 << 28, "out of memory"), (3 << 20, 1, "no thread could be started")],
    ids=["no-memory", "no-thread"],
)
def test_a_pool_that_cannot_be_had_leaves_nothing(room: int, capacity: int, told: str) -> None:
    """In a process of little address space: no ring, or a ring but no stack for the thread."""
    mappings()  # skips where there is no /proc
    done = subprocess.run(
        [sys.executable, "-c", SHORT, str(room), str(capacity)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith("True expected the C core's work done")
    assert told in done.stdout
