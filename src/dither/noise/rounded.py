"""Rounded Gaussians, exact and fast: the C core's lattice draw."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from dither import _native
from dither.noise.arrays import (
    LARGEST_SIGMA,
    LARGEST_SIGMA_INT32,
    check_count,
    check_sigma,
    core_array,
)
from dither.noise.core import Buffer, core_errors
from dither.noise.key import Key, native_key
from dither.noise.simd import kernels


def rounded_gaussian(sigma: float, count: int, key: Key) -> Int64[np.ndarray, " count"]:
    """Draw round(σ·Z) for independent standard normal Z, exactly.

    Exactness: a draw is a function of two uniform numbers of infinitely many bits. From their
    first 64 bits it is computed in float64 with an error proven below 2⁻⁴⁴·σ; where that leaves
    the integer open (1 draw in 10⁶ at σ = 2²⁰), it is decided in arbitrary precision, with more
    bits where needed: interval refining (Haney et al. 2207.13793). No error term remains to be
    multiplied by dimensions and steps, the tail is never cut, and every instruction set gives the
    same integers for one key. `noise.reference` is the slow oracle of the same law.

    Args:
        sigma: Standard deviation in lattice steps, in (0, 2⁴⁰]; slow above 2³².
        count: How many draws, 0 or more.
        key: Key, advanced by the numbers used.

    Raises:
        ConfigError: σ or the count is out of range.
        NoiseError: The key was agreed before a fork.
    """
    draws = np.empty(check_count(count), np.int64)
    fill_rounded_gaussian(draws, sigma, key)
    return draws


def fill_rounded_gaussian(out: Buffer, sigma: float, key: Key) -> int:
    """Fill an array with draws of `rounded_gaussian`.

    Args:
        out: int32 (σ ≤ 2²⁶: a draw beyond 32 σ, less likely than 2⁻⁷³⁹, is then clamped) or int64,
            shape ``[size]``.
        sigma: Standard deviation in lattice steps.
        key: Key, advanced by the numbers used.

    Returns:
        How many draws arbitrary precision decided. Independent of anything private.

    Raises:
        ConfigError: σ or the array's type is out of range.
        NoiseError: The key was agreed before a fork.
    """
    array = core_array(out, ("int32", "int64"))
    largest = LARGEST_SIGMA_INT32 if array.dtype == np.int32 else LARGEST_SIGMA
    with core_errors("an int32 or int64 array to fill and a sigma"):
        return int(_native.lattice(kernels(), native_key(key), check_sigma(sigma, largest), array))
