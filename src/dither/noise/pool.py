"""Noise made ahead, off the critical path."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
from jaxtyping import Float, Integer

from dither import _native
from dither.errors import ConfigError, NoiseError
from dither.noise.arrays import LARGEST_SIGMA_INT32, check_sigma, core_array
from dither.noise.codec import Encoded, Grid, arguments, core_grid, encode
from dither.noise.core import Buffer, core_errors
from dither.noise.key import Key, native_key
from dither.noise.rounded import fill_rounded_gaussian
from dither.noise.simd import kernels

# Bounds of the automatic size, in draws of four bytes: 1 MiB and 256 MiB.
_SMALLEST = 1 << 18
_LARGEST = 1 << 26
_BLOCK = 1 << 16  # draws that are made together


@runtime_checkable
class Noise(Protocol):
    """What an encoder takes its noise from."""

    def encode(
        self,
        values: Float[np.ndarray, " size"],
        grid: Grid,
        *,
        out: Integer[np.ndarray, " size"] | None = None,
        factor: float = 1.0,
    ) -> Encoded:
        """Return values with noise of the grid's σ on every coordinate, never used before.

        The values are first multiplied by ``factor``, in [0, 1].
        """
        ...


@final
class FreshNoise:
    """Noise drawn when it is needed, in the pass that adds it.

    Args:
        key: Where it comes from.
    """

    def __init__(self, key: Key) -> None:
        self._key = key

    @property
    def own(self) -> bool:
        """Whether the key is this process's alone."""
        return self._key.own

    def encode(
        self,
        values: Float[np.ndarray, " size"],
        grid: Grid,
        *,
        out: Integer[np.ndarray, " size"] | None = None,
        factor: float = 1.0,
    ) -> Encoded:
        """Return `codec.encode` of the values."""
        return encode(values, grid, self._key, out=out, factor=factor)

    def native(self, grid: Grid) -> tuple[None, Any, float]:
        """Return no pool, the key and σ, as the core's fused passes take them."""
        return None, native_key(self._key), check_sigma(grid.sigma)

    def draw(self, out: Buffer, grid: Grid) -> None:
        """Fill int32 or int64 with draws of the grid's σ, for an encoder on another device."""
        fill_rounded_gaussian(out, grid.sigma, self._key)


def is_private(noise: Noise) -> bool:
    """Whether noise may protect a release: dither's own, from a key of this process alone.

    By exact type: a class that merely looks like noise may add none.
    """
    return type(noise) in {FreshNoise, NoisePool} and noise.own  # type: ignore[attr-defined]


@dataclass(frozen=True)
class PoolStats:
    """What a pool did, in draws. Independent of anything private.

    Attributes:
        capacity: Draws that fit.
        ready: Draws waiting now.
        filled: Draws that the background thread made.
        used: Draws taken from the pool.
        dry: Draws made in place because none was ready.
        discarded: Ready draws dropped in a forked child.
        wait_seconds: Time callers spent making draws in place.
        running: Whether the background thread runs.
    """

    capacity: int
    ready: int
    filled: int
    used: int
    dry: int
    discarded: int
    wait_seconds: float
    running: bool


def pool_capacity(dimension: int) -> int:
    """Return the draws that a pool for releases of this dimension holds by itself.

    Two releases, so that one can be filled while one is used, between 1 MiB and 256 MiB.
    """
    return min(max(2 * dimension, _SMALLEST), _LARGEST)


def _capacity(capacity: int | None, dimension: int | None) -> int:
    if capacity is None and (dimension is None or dimension > 0):
        return pool_capacity(dimension or 0)
    if capacity is not None and dimension is None and 0 < capacity <= 1 << 40:
        return capacity
    raise ConfigError(
        expected="a capacity between 1 and 2^40 draws, or the dimension of one release",
        got=f"capacity {capacity}, dimension {dimension}",
        fix="give one of the two, or neither",
    )


@final
class NoisePool:
    """Lattice noise of one σ, made ahead by a thread of its own (after DPAR, SC'25).

    Each draw serves once. It is overwritten in the pass that adds it, or, if that pass uses up its
    block of 65,536, by the thread right after. When nothing is ready, the caller's draws are made
    in place, at once, so a pool changes speed and nothing else. The thread runs outside the
    interpreter's lock. In a forked child all ready noise is dropped and a new thread with a new key
    takes over. Use as a context manager, or `close` it.

    Args:
        sigma: Standard deviation in fine steps, in (0, 2²⁶]: the ``sigma`` of `Plan.bind`.
        key: Where the noise comes from; a fresh key by default.
        capacity: Draws to hold, four bytes each, rounded up to blocks of 65,536, at least two; by
            default 262,144.
        dimension: Coordinates of one release, to choose the capacity by, instead.

    Raises:
        ConfigError: σ or the capacity is out of range.
        NoiseError: No memory or no thread.
    """

    def __init__(
        self,
        sigma: float,
        key: Key | None = None,
        *,
        capacity: int | None = None,
        dimension: int | None = None,
    ) -> None:
        draws = _capacity(capacity, dimension)
        self._key = Key() if key is None else key
        self._sigma = check_sigma(sigma, LARGEST_SIGMA_INT32)
        with core_errors("a sigma and a capacity"):
            self._native: Any = _native.Pool(kernels(), native_key(self._key), self._sigma, draws)

    @property
    def own(self) -> bool:
        """Whether the key is this process's alone."""
        return self._key.own

    @property
    def sigma(self) -> float:
        """Standard deviation in fine steps."""
        return self._sigma

    def encode(
        self,
        values: Float[np.ndarray, " size"],
        grid: Grid,
        *,
        out: Integer[np.ndarray, " size"] | None = None,
        factor: float = 1.0,
    ) -> Encoded:
        """Return `codec.encode` of the values, with noise that was ready where there was some.

        Raises:
            NoiseError: The grid asks for another σ, or the pool is closed.
            ReleaseError: A value is not finite.
        """
        self._require_sigma(grid)
        data, message = arguments(values, grid, out)
        native = self._open()
        with core_errors("float32 or float64 values"):
            saturated = native.encode(core_grid(grid), data, message, factor)
        return Encoded(message, int(saturated))

    def take(self, out: Buffer) -> None:
        """Fill an int32 array with draws.

        Raises:
            NoiseError: The pool is closed.
            ConfigError: Another array.
        """
        native = self._open()
        array = core_array(out, ("int32",))
        with core_errors("an int32 array to fill"):
            native.take(array)

    def draw(self, out: Buffer, grid: Grid) -> None:
        """`take` for an encoder on another device.

        Raises:
            NoiseError: The grid asks for another σ, or the pool is closed.
        """
        self._require_sigma(grid)
        self.take(out)

    def native(self, grid: Grid) -> tuple[Any, None, float]:
        """Return the pool, no key and σ, as the core's fused passes take them.

        Raises:
            NoiseError: The grid asks for another σ, or the pool is closed.
        """
        self._require_sigma(grid)
        return self._open(), None, self._sigma

    def _require_sigma(self, grid: Grid) -> None:
        if grid.sigma != self._sigma:
            raise NoiseError(
                expected=f"a lattice with a sigma of {self._sigma!r} fine steps",
                got=f"{grid.sigma!r}",
                fix="make one pool for each plan, model and number of ranks",
            )

    def stats(self) -> PoolStats:
        """Return what the pool did so far in this process."""
        stats = self._open().stats()
        return PoolStats(wait_seconds=stats.pop("wait_ns") * 1e-9, **stats)

    def linger(self, seconds: float) -> None:
        """Stay idle this long after each held release, at most a second; 0 at first.

        For a dense loop of releases where no core is idle: noise made between two of them would be
        in the way of the second.

        Raises:
            NoiseError: The pool is closed.
        """
        self._open().linger(seconds)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make nothing ahead meanwhile: for one release, whose ranks need the cores themselves.

        Raises:
            NoiseError: The pool is closed.
        """
        native = self._open()
        native.hold(True)
        try:
            yield
        finally:
            if self._native is not None:
                native.hold(False)

    def wait_until_full(self, timeout: float = 60.0) -> None:
        """Wait until nothing more fits, as between two steps of training.

        Args:
            timeout: Seconds.

        Raises:
            NoiseError: The pool is closed, its thread does not run, or the time is over.
        """
        deadline = time.monotonic() + timeout
        while (stats := self.stats()).ready <= stats.capacity - _BLOCK:
            if not stats.running or time.monotonic() > deadline:
                raise NoiseError(
                    expected=f"a full pool within {timeout:g} s",
                    got=f"{stats.ready} of {stats.capacity} draws",
                    fix="give its thread a core, or wait longer",
                )
            time.sleep(0.001)

    def close(self) -> None:
        """Stop the thread and wipe what is left. Closing twice is harmless."""
        native, self._native = self._native, None
        if native is not None:
            native.close()

    def _open(self) -> Any:
        if self._native is None:
            raise NoiseError(
                expected="an open pool", got="a closed one", fix="make a new NoisePool"
            )
        return self._native

    def __enter__(self) -> NoisePool:
        self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce_ex__(self, _: object) -> Any:
        """Refuse to be copied or pickled: its noise would be used twice."""
        raise NoiseError(
            expected="a pool that stays in its process",
            got="an attempt to copy or pickle it",
            fix="make a new NoisePool where it is needed",
        )
