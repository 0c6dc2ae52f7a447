"""The slow oracles: rounded Gaussians by interval refining, and the codec step by step.

The C core is tested against these. Method after Haney et al. 2207.13793: treat
the bits drawn so far as an interval of the uniform variable, map its ends through the inverse
normal distribution, and answer only when both ends round to the same integer; else draw more bits.
"""

from __future__ import annotations

import mpmath
import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import ndtri

from dither.errors import ConfigError, ReleaseError
from dither.noise.codec import Encoded, Grid
from dither.noise.entropy import Entropy

# Allowance for the float64 evaluation of the normal quantile, absolute and relative. Cephes' ndtri
# states a peak relative error below 1e-15; a test compares it with mpmath, far below this.
TOLERANCE = 1e-12
_BITS = 64
_MAX_SIGMA = 2.0**45


def rounded_gaussian(sigma: float, count: int, entropy: Entropy) -> Int64[np.ndarray, " count"]:
    """Draw round(σ·Z) for independent standard normal Z, exactly.

    Exactness: a draw is decided in float64 only when the whole interval of outcomes, widened by
    `TOLERANCE`, rounds to one integer; the others (about 1 in 10⁶ at σ = 2²⁰) are decided in
    arbitrary precision with as many more bits as it takes. So no error term remains to be
    multiplied by dimensions and steps, the tail is never cut, and low bits carry no trace of a
    float (Mironov 2012).

    Args:
        sigma: Standard deviation in lattice steps, in (0, 2⁴⁵].
        count: How many draws, 0 or more.
        entropy: Source of uniform bytes; eight a draw, rarely more.

    Returns:
        Integers of shape ``[count]``.

    Raises:
        ConfigError: σ is out of range.
    """
    if not 0.0 < sigma <= _MAX_SIGMA:
        raise ConfigError(
            expected="a sigma in (0, 2^45] lattice steps", got=repr(sigma), fix="check the plan"
        )
    words = entropy.draw(8 * count).view(np.uint64)
    negative = (words & np.uint64(1)).astype(bool)
    # p = P(Z > x) lies in [tail, tail + 1) / 2⁶⁴, below one half: magnitude and sign apart.
    tail = words >> np.uint64(1)
    low, high = _magnitude_bounds(tail, sigma)
    magnitude = low.astype(np.int64)
    for index in np.flatnonzero(low != high):
        magnitude[index] = _refine(int(tail[index]), sigma, low[index], high[index], entropy)
    return np.where(negative, -magnitude, magnitude)


def _magnitude_bounds(
    tail: np.ndarray[tuple[int], np.dtype[np.uint64]], sigma: float
) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], ...]:
    """Return the smallest and largest integer that |σZ| can round to, as float64."""
    scale = 2.0**-_BITS
    value = tail.astype(np.float64)  # rounds by at most 2⁻⁵³, well inside TOLERANCE
    nearest = -ndtri((value + 1.0) * scale)
    farthest = -ndtri(value * scale)
    low = sigma * (nearest - TOLERANCE * (1.0 + np.abs(nearest)))
    high = sigma * (farthest + TOLERANCE * (1.0 + np.abs(farthest)))
    return np.maximum(np.floor(low + 0.5), 0.0), np.floor(high + 0.5)


def _refine(tail: int, sigma: float, low: float, high: float, entropy: Entropy) -> int:
    """Decide one draw in arbitrary precision, by bisection over the integers it may round to."""
    bits = _BITS
    first = int(low)
    # An all-zero tail has no upper end yet; beyond 60 σ lies less than 2⁻²⁶⁰⁰.
    last = int(high) if np.isfinite(high) else int(60.0 * sigma) + 1
    while first < last:
        middle = (first + last) // 2
        with mpmath.workprec(bits + 128):
            # |σZ| exceeds middle + ½ exactly when p is below this threshold.
            boundary = (mpmath.mpf(middle) + mpmath.mpf("0.5")) / mpmath.mpf(sigma)
            threshold = mpmath.erfc(boundary / mpmath.sqrt(2)) / 2 * mpmath.mpf(2) ** bits
            beyond, within = tail + 1 <= threshold, tail >= threshold
        if beyond:
            first = middle + 1
        elif within:
            last = middle
        else:
            tail = (tail << _BITS) | int(entropy.draw(8).view(np.uint64)[0])
            bits += _BITS
    return first


def encode_reference(
    values: Float64[np.ndarray, " size"], noise: Int64[np.ndarray, " size"], grid: Grid
) -> Encoded:
    """The oracle of `codec.encode`, step by step: round, clamp, add noise, shift, clamp.

    Args:
        values: A clipped sum, finite.
        noise: Rounded Gaussian draws in fine steps, used once.
        grid: The lattices.

    Raises:
        ReleaseError: A value is not finite: its clipping is broken, so nothing may leave.
    """
    if not np.isfinite(values).all():
        raise ReleaseError(
            expected="a finite clipped sum",
            got="a sum with NaN or infinity",
            fix="report this as a bug: clipping must mask non-finite gradients",
        )
    with np.errstate(over="ignore"):  # what overflows is clamped
        fine = np.rint(np.ldexp(values, -grid.step_exponent))
    saturated = int(np.count_nonzero(np.abs(fine) > grid.clamp))
    noisy = np.clip(fine, -grid.clamp, grid.clamp).astype(np.int64) + noise
    if grid.wire_shift:
        noisy = (noisy + (1 << (grid.wire_shift - 1))) >> grid.wire_shift
    wire = np.clip(noisy, -grid.wire_limit, grid.wire_limit)
    return Encoded(wire.astype(np.int16 if grid.wire_bits == 16 else np.int32), saturated)
