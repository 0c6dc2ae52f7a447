"""Slow, independent ways to the numbers that dp-accounting gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mpmath
import numpy as np
from scipy import stats

Spectrum = np.ndarray[tuple[int], np.dtype[np.complex128]]
Masses = np.ndarray[tuple[int], np.dtype[np.float64]]


def analytic_gaussian_epsilon(noise_multiplier: float, delta: float, steps: int = 1) -> float:
    """ε of ``steps`` Gaussian releases, from Balle & Wang 2018 (1805.06530), theorem 8.

    δ(ε) = Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ) with μ = √steps / z, solved by bisection.
    """
    with mpmath.workdps(50):
        mu = mpmath.sqrt(steps) / mpmath.mpf(noise_multiplier)

        def spent(epsilon: mpmath.mpf) -> mpmath.mpf:
            return mpmath.ncdf(mu / 2 - epsilon / mu) - mpmath.exp(epsilon) * mpmath.ncdf(
                -mu / 2 - epsilon / mu
            )

        low, high = mpmath.mpf(0), mpmath.mpf(200)
        if spent(low) <= delta:
            return 0.0
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if spent(middle) > delta else (low, middle)
        return float(high)


def poisson_epsilon_bounds(
    parts: Sequence[tuple[float, float, int]], delta: float, *, step: float = 8e-6
) -> tuple[float, float]:
    """Lower and upper ε of composed Poisson-sampled Gaussians, by direct numeric convolution.

    The privacy loss of each part (rate, noise multiplier, steps) is put on a grid rounded up and
    convolved by FFT, once per direction. Rounding up by at most one grid step a release makes it
    an upper bound, and the same minus steps·step a lower one.
    """
    upper = max(_one_way(parts, delta, step, cdf) for cdf in (_loss_removed, _loss_added))
    return upper - step * sum(steps for *_, steps in parts), upper


def _one_way(
    parts: Sequence[tuple[float, float, int]],
    delta: float,
    step: float,
    cdf: Callable[[Masses, float, float], Masses],
) -> float:
    size = 1 << 21
    grid = np.arange(-size // 4, size - size // 4, dtype=np.float64) * step
    spectrum: Spectrum = np.ones(size // 2 + 1, np.complex128)
    infinite = 0.0
    for rate, noise_multiplier, steps in parts:
        below = cdf(grid, rate, noise_multiplier)
        mass = np.diff(below, prepend=0.0)  # what lies in (grid[k-1], grid[k]] goes to grid[k]
        infinite += steps * (1.0 - below[-1])
        spectrum *= np.fft.rfft(np.roll(mass, -(size // 4))) ** steps
    mass = np.maximum(np.roll(np.fft.irfft(spectrum, size), size // 4), 0.0)
    mass[mass < 1e-17] = 0.0  # noise of the transform

    def spent(epsilon: float) -> float:
        above = grid > epsilon
        return infinite + float(mass[above] @ -np.expm1(epsilon - grid[above]))

    low, high = 0.0, float(grid[-1])
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > delta else (low, middle)
    return high


def _crossing(loss: Masses, rate: float, noise_multiplier: float) -> Masses:
    """The x at which log(1 − q + q·e^((2x−1)/2z²)) takes a value; −∞ where it cannot."""
    inside = (np.exp(loss) - (1.0 - rate)) / rate
    with np.errstate(divide="ignore"):
        crossing: Masses = noise_multiplier**2 * np.log(np.maximum(inside, 0.0)) + 0.5
    return crossing


def _loss_removed(loss: Masses, rate: float, noise_multiplier: float) -> Masses:
    x = _crossing(loss, rate, noise_multiplier)
    normal = stats.norm(scale=noise_multiplier)
    result: Masses = (1.0 - rate) * normal.cdf(x) + rate * normal.cdf(x - 1.0)
    return result


def _loss_added(loss: Masses, rate: float, noise_multiplier: float) -> Masses:
    result: Masses = stats.norm(scale=noise_multiplier).sf(_crossing(-loss, rate, noise_multiplier))
    return result
