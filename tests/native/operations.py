"""Every filling, masking, encoding and decoding call of the C core, in one shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dither import _native
from dither.noise import simd

Array = np.ndarray[tuple[int], np.dtype[Any]]
Allocate = Callable[[Any, int], Array]
"""Makes an array of a type and size: plainly, or at an odd address."""
Operation = Callable[[Any, Any, int, Allocate], list[Array]]
"""Takes kernels, a key, a size and an allocator; returns what it wrote."""

SECRET = bytes(range(32))
SMALL_SIGMAS = (0.01, 0.3, 1.0, 4.0, 1000.5, 2.0**20, 2.0**22, 2.0**26)
SIGMAS = (*SMALL_SIGMAS, 2.0**32, 2.0**40)
GRIDS = {
    16: _native.Grid(4, 3000, 3, 900, 16),
    32: _native.Grid(12, 1 << 30, 5, 1 << 20, 32),
}
WIRE = {16: np.int16, 32: np.int32}


def key(cipher: int = 20) -> Any:
    """A key of fixed bytes."""
    return _native.Key(SECRET, cipher)


def paths() -> dict[str, Any]:
    """The kernels of every instruction set, and the most portable code there is."""
    found = {}
    for name in simd.available():
        with simd.using(name):
            found[name] = simd.kernels()
    return {"plain": _native.Kernels([]), **found}


def _numbers(count: int) -> Array:
    """Fixed numbers, some beyond the grids' clamps, some beside a tie, some neither."""
    numbers = np.random.default_rng(7).normal(0, 200, count)
    numbers[::5] = np.round(numbers[::5] * 16) / 16 + 1 / 32
    numbers[::7] *= 1e7
    return numbers


def _stream(kernels: Any, key: Any, count: int, new: Allocate) -> list[Array]:
    words = new(np.uint32, count)
    _native.stream(kernels, key, words)
    return [words]


def _stream_at(kernels: Any, key: Any, count: int, new: Allocate) -> list[Array]:
    # The block counter crosses 2³² after two superblocks of ChaCha.
    words = [new(np.uint32, count) for _ in range(2)]
    _native.stream_at(kernels, key, 3, 2**28 - 2, words[0])
    _native.stream_at(kernels, key, 2**32 - 1, 2**60 - 1, words[1])
    return words


def _mask(kind: type[np.generic]) -> Operation:
    def operation(kernels: Any, key: Any, count: int, new: Allocate) -> list[Array]:
        values = [new(kind, count) for _ in range(2)]
        for subtract, array in enumerate(values):
            array[:] = np.arange(count).astype(kind)
            _native.mask(kernels, key, array, bool(subtract))
        return values

    return operation


def _lattice(kind: type[np.generic], sigma: float) -> Operation:
    def operation(kernels: Any, key: Any, count: int, new: Allocate) -> list[Array]:
        draws = new(kind, count)
        _native.lattice(kernels, key, sigma, draws)
        return [draws]

    return operation


def _norm(kind: type[np.generic]) -> Operation:
    def operation(kernels: Any, key: Any, count: int, new: Allocate) -> list[Array]:
        values = new(kind, count)
        values[:] = np.random.default_rng(3).normal(size=count).astype(kind)
        return [np.array([_native.norm(kernels, values)])]

    return operation


def _encode(kind: type[np.generic], bits: int, factor: float, *, ready: bool) -> Operation:
    def operation(kernels: Any, key: Any, count: int, new: Allocate) -> list[Array]:
        values, message = new(kind, count), new(WIRE[bits], count)
        values[:] = _numbers(count).astype(kind)
        if not ready:
            saturated = _native.encode(kernels, key, 40.5, GRIDS[bits], values, message, factor)
            return [message, np.array([saturated])]
        noise = new(np.int32, count)
        _native.lattice(kernels, key, 2.0**20, noise)
        saturated = _native.encode_ready(kernels, noise, GRIDS[bits], values, message)
        return [message, noise, np.array([saturated])]

    return operation


def _decode(kind: type[np.generic], bits: int, factor: float) -> Operation:
    def operation(kernels: Any, key: Any, count: int, new: Allocate) -> list[Array]:
        message, values = new(WIRE[bits], count), new(kind, count)
        message[:] = 0
        _native.mask(kernels, key, message, False)
        _native.decode(kernels, GRIDS[bits], message, values, factor)
        return [values]

    return operation


def _gaussian(kind: type[np.generic]) -> Operation:
    def operation(kernels: Any, key: Any, count: int, new: Allocate) -> list[Array]:
        normals = new(kind, count)
        _native.gaussian(kernels, key, normals)
        return [normals]

    return operation


LATTICES = {
    f"{kind.__name__} sigma {sigma:g}": _lattice(kind, sigma)
    for kind, sigmas in ((np.int32, SMALL_SIGMAS), (np.int64, SIGMAS))
    for sigma in sigmas
}
EXACT: dict[str, Operation] = {
    "stream": _stream,
    "stream_at": _stream_at,
    **{f"mask {kind.__name__}": _mask(kind) for kind in (np.uint16, np.int32, np.uint64)},
    **LATTICES,
    **{
        f"{'encode_ready' if ready else 'encode'} {kind.__name__} to {bits}": _encode(
            kind, bits, 1.0, ready=ready
        )
        for ready in (False, True)
        for kind in (np.float32, np.float64)
        for bits in (16, 32)
    },
    **{
        f"encode {kind.__name__} to {bits} by a third": _encode(kind, bits, 1 / 3, ready=False)
        for kind in (np.float32, np.float64)
        for bits in (16, 32)
    },
    **{f"norm {kind.__name__}": _norm(kind) for kind in (np.float32, np.float64)},
    **{
        f"decode {bits} to {kind.__name__} by {factor:g}": _decode(kind, bits, factor)
        for kind in (np.float32, np.float64)
        for bits in (16, 32)
        for factor in (1.0, 1 / 3)
    },
}
"""What every instruction set computes alike, bit by bit."""

NORMALS: dict[str, Operation] = {
    f"gaussian {kind.__name__}": _gaussian(kind) for kind in (np.float32, np.float64)
}
"""What instruction sets may round differently."""
