"""Floating-point normals: fast, and NOT for releases."""

from __future__ import annotations

from dither import _native
from dither.noise.arrays import core_array
from dither.noise.core import Buffer, core_errors
from dither.noise.key import Key, native_key
from dither.noise.simd import kernels


def fill_gaussian(out: Buffer, key: Key) -> None:
    """Fill with standard normals by Box-Muller.

    For benchmarks, initial weights, simulations. Never for a release: the low bits of a float tell
    what was added to it (Mironov, CCS 2012), float32 ends at 6.7 σ and float64 at 9.4 σ, and
    instruction sets may differ in the last bits.

    Args:
        out: float32 or float64, shape ``[size]``.
        key: Key, advanced by the numbers used.

    Raises:
        ConfigError: Another array.
    """
    array = core_array(out, ("float32", "float64"))
    with core_errors("a float32 or float64 array to fill"):
        _native.gaussian(kernels(), native_key(key), array)
