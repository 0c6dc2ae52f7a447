"""From a clipped sum to integers on a lattice, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64, Integer

from dither.errors import ReleaseError


@runtime_checkable
class Grid(Protocol):
    """The numbers of a message's lattices; ``privacy.Lattice`` is one."""

    @property
    def step_exponent(self) -> int:
        """The fine step is γ = 2**step_exponent."""

    @property
    def clamp(self) -> int:
        """Largest magnitude before noise, in fine steps."""

    @property
    def wire_shift(self) -> int:
        """The wire step is γ·2**wire_shift."""

    @property
    def wire_limit(self) -> int:
        """Largest magnitude on the wire, in wire steps."""

    @property
    def wire_bits(self) -> int:
        """16 or 32."""


@dataclass(frozen=True)
class Encoded:
    """A noisy message.

    Attributes:
        message: Integers on the wire lattice.
        saturated: Coordinates clamped before noise. Depends on records: for the operator only.
    """

    message: Integer[np.ndarray, " size"]
    saturated: int


def encode(
    values: Float64[np.ndarray, " size"], noise: Int64[np.ndarray, " size"], grid: Grid
) -> Encoded:
    """Round to the fine lattice, clamp, add integer noise, shift to the wire lattice.

    Sensitivity: rounding moves each coordinate by at most γ/2, so two inputs at L2 distance s
    leave at most s + γ√d apart; clamping is 1-Lipschitz. All after the noise is post-processing.

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
    fine = np.rint(np.ldexp(values, -grid.step_exponent))
    saturated = int(np.count_nonzero(np.abs(fine) > grid.clamp))
    noisy = np.clip(fine, -grid.clamp, grid.clamp).astype(np.int64) + noise
    if grid.wire_shift:
        noisy = (noisy + (1 << (grid.wire_shift - 1))) >> grid.wire_shift
    wire = np.clip(noisy, -grid.wire_limit, grid.wire_limit)
    return Encoded(wire.astype(np.int16 if grid.wire_bits == 16 else np.int32), saturated)


def decode(message: Integer[np.ndarray, " size"], grid: Grid) -> Float64[np.ndarray, " size"]:
    """Return the values of a message, or of a sum of messages, in units of the data."""
    return np.ldexp(message.astype(np.float64), grid.step_exponent + grid.wire_shift)
