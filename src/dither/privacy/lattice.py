"""The numbers of a message lattice, and how they follow from public ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dither.errors import ConfigError

# σ of one rank's share, counted in wire steps, is brought into [2⁷, 2⁸): rounding to the wire
# lattice then adds less than 1/(12·2¹⁴) of the noise variance.
_WIRE_SIGMA = 2.0**7
# Down from there to 2⁴ where messages of several ranks then fit 16 bits: 1/(12·2⁸) of the variance.
_COARSE_SIGMA = 2.0**4
# Below 4 wire steps, sums of rounded shares are no longer one rounded Gaussian (aliasing).
_SMALLEST_WIRE_SIGMA = 4.0
# What the C core takes (native/include/dither.h): σ and clamp in fine steps.
_LARGEST_SIGMA = 2.0**40
_LARGEST_CLAMP = 2.0**50
# Head-room for noise, in standard deviations: P(|N(0,1)| > 9) < 3e-19.
_TAIL = 9.0


@dataclass(frozen=True)
class Lattice:
    """What an encoder needs to know, and nothing more: no C, no z, no ε.

    Attributes:
        step_exponent: The fine step is γ = 2**step_exponent, so scaling by it is exact.
        sigma: Standard deviation of this rank's noise, in fine steps.
        clamp: Largest magnitude of a coordinate before noise, in fine steps.
        wire_shift: The wire step is γ·2**wire_shift.
        wire_bits: 16 or 32, width of one coordinate on the wire.
        world_size: R; a rank saturates at 1/R of the wire range, so a sum never overflows.
    """

    step_exponent: int
    sigma: float
    clamp: int
    wire_shift: int
    wire_bits: int
    world_size: int

    @property
    def step(self) -> float:
        """The fine step γ."""
        return math.ldexp(1.0, self.step_exponent)

    @property
    def wire_step(self) -> float:
        """The wire step γ_w = γ·2**wire_shift."""
        return math.ldexp(1.0, self.step_exponent + self.wire_shift)

    @property
    def wire_limit(self) -> int:
        """Largest magnitude of one rank's coordinate, in wire steps."""
        return ((1 << (self.wire_bits - 1)) - 1) // self.world_size


def fine_step_exponent(l2_sensitivity: float, dimension: int, slack: float) -> int:
    """Return the largest k with 2**k·√dimension ≤ slack·sensitivity."""
    return math.floor(math.log2(slack * l2_sensitivity / math.sqrt(max(dimension, 1))))


def make_lattice(*, step_exponent: int, sigma: float, largest: float, world_size: int) -> Lattice:
    """Choose wire step, wire width and clamp.

    Args:
        step_exponent: Of the fine step γ.
        sigma: One rank's noise, in units of the data.
        largest: Public bound on a coordinate of one rank's sum, in units of the data; a larger
            coordinate saturates, which costs accuracy and no privacy.
        world_size: R.

    Raises:
        ConfigError: The lattice is too coarse or too fine for the noise, or the sum is too large
            for 32 bits.
    """
    step = math.ldexp(1.0, step_exponent)
    sigma_steps = sigma / step
    if sigma_steps < _SMALLEST_WIRE_SIGMA:
        raise ConfigError(
            expected=f"noise of at least {_SMALLEST_WIRE_SIGMA:g} lattice steps a rank",
            got=f"{sigma_steps:.3g}",
            fix="use more noise (a smaller epsilon), fewer ranks, or a smaller lattice_slack",
        )
    shift, bits = _wire(sigma_steps, largest / step, world_size)
    if sigma_steps > _LARGEST_SIGMA or largest / step > _LARGEST_CLAMP:
        raise ConfigError(
            expected="noise of at most 2^40 lattice steps and sums of at most 2^50",
            got=f"2^{math.log2(sigma_steps):.1f} and 2^{math.log2(largest / step):.1f}",
            fix="use a larger lattice_slack",
        )
    return Lattice(
        step_exponent=step_exponent,
        sigma=sigma_steps,
        clamp=math.ceil(largest / step),
        wire_shift=shift,
        wire_bits=bits,
        world_size=world_size,
    )


def _wire(sigma: float, largest: float, world_size: int) -> tuple[int, int]:
    """Return shift and bits of the wire, for noise and sums in fine steps."""

    def need(shift: int) -> float:
        # Every rank's own tail must fit its share of the range: Σ clip(x_r + Z_r) with shares cut
        # short is not a function of Σ x_r + Z_r, so saturation would not be post-processing.
        return world_size * ((largest + _TAIL * sigma) / 2.0**shift + 2.0)

    fine, coarse = (max(0, math.floor(math.log2(sigma / s))) for s in (_WIRE_SIGMA, _COARSE_SIGMA))
    # A message of 16 bits is worth a coarser wire, where there is a wire.
    shifts = range(fine, coarse + 1) if world_size > 1 else [fine]
    short = next((shift for shift in shifts if need(shift) < 2**15), None)
    if short is not None:
        return short, 16
    if need(fine) >= 2**31:
        raise ConfigError(
            expected="a sum that fits 32-bit lattice messages",
            got=f"about 2^{math.log2(need(fine)):.1f} wire steps",
            fix="lower the expected batch size or the number of ranks",
        )
    return fine, 32
