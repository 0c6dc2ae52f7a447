"""Blocks of a message, one after another, with everything but the numbers settled beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, final

import numpy as np
from jaxtyping import Float, Integer

from dither import _native
from dither.errors import DitherError
from dither.noise.codec import Grid, core_grid
from dither.noise.core import core_error
from dither.noise.pool import FreshNoise, NoisePool
from dither.noise.simd import kernels


@final
class BlockCodec:
    """Encodes and decodes blocks of one lattice: `codec.encode` and `codec.decode`, same bits.

    For loops where what these check anew at each call costs as much as a block. So arrays are the
    caller's to check: flat, contiguous, of one size, of the wire's integers and of float32 or
    float64; others are a `TypeError`.

    Args:
        grid: The lattices, from `Plan.bind`.
        noise: Where the noise comes from.

    Raises:
        NoiseError: The noise cannot serve this lattice.
        ConfigError: The lattice is out of range.
    """

    def __init__(self, grid: Grid, noise: FreshNoise | NoisePool) -> None:
        native: tuple[Any, Any, float] = noise.native(grid)
        self._pool, self._key, self._sigma = native
        self._grid = core_grid(grid)
        self._kernels = kernels()
        noise.encode(np.empty(0), grid)  # says now whether it can serve

    def encode(
        self,
        values: Float[np.ndarray, " size"],
        out: Integer[np.ndarray, " size"],
        factor: float = 1.0,
    ) -> int:
        """Write the message of values times a factor; return how many were clamped before noise.

        Raises:
            ReleaseError: A value is not finite; what was written is zeros again.
            NoiseError: The pool is closed, or the noise cannot be had.
        """
        try:
            if self._pool is not None:
                return int(self._pool.encode(self._grid, values, out, factor))
            return int(
                _native.encode(
                    self._kernels, self._key, self._sigma, self._grid, values, out, factor
                )
            )
        except _native.StatusError as error:
            raise _ours(error) from None

    def decode(
        self, message: Integer[np.ndarray, " size"], out: Float[np.ndarray, " size"]
    ) -> None:
        """Write a summed message's values, in units of the data."""
        try:
            _native.decode(self._kernels, self._grid, message, out, 1.0)
        except _native.StatusError as error:
            raise _ours(error) from None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have the pool, where there is one, make nothing ahead meanwhile.

        Raises:
            NoiseError: The pool is closed.
        """
        if self._pool is None:
            yield
            return
        try:
            self._pool.hold(True)
        except _native.StatusError as error:
            raise _ours(error) from None
        try:
            yield
        finally:
            with suppress(_native.StatusError):  # closed meanwhile: nothing is held
                self._pool.hold(False)


def _ours(error: Exception) -> DitherError:
    kind, text = str(error).split(": ", 1)
    return core_error(kind, text)
