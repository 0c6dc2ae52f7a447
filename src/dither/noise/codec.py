"""From a clipped sum to integers on a lattice, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int32, Integer

from dither import _native
from dither.errors import ConfigError
from dither.noise.arrays import core_array
from dither.noise.core import core_errors
from dither.noise.key import Key, native_key
from dither.noise.simd import kernels


@runtime_checkable
class Grid(Protocol):
    """The numbers of a message's lattices; ``privacy.Lattice`` is one."""

    @property
    def step_exponent(self) -> int:
        """The fine step is γ = 2**step_exponent."""

    @property
    def sigma(self) -> float:
        """Standard deviation of one rank's noise, in fine steps."""

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
    values: Float[np.ndarray, " size"],
    grid: Grid,
    key: Key,
    *,
    out: Integer[np.ndarray, " size"] | None = None,
    factor: float = 1.0,
) -> Encoded:
    """Round to the fine lattice, clamp, add fresh noise of the grid's σ, shift to the wire lattice.

    One pass, in registers; the noise is that of `rounded_gaussian` and is stored nowhere.

    Sensitivity: rounding moves each coordinate by at most γ/2, so two inputs at L2 distance s
    leave at most s + γ√d apart; clamping is 1-Lipschitz. All after the noise is post-processing.
    Every step is exact in float64: integers stay below 2⁵², steps are powers of two.

    Args:
        values: A clipped sum, float32 or float64, finite.
        grid: The lattices, from `Plan.bind`.
        key: Key, advanced by the numbers used.
        out: Where the message goes, `message_type` of the grid; a new array by default.
        factor: In [0, 1]; values are multiplied by it first, in the same pass: `clip_factor`.

    Raises:
        ReleaseError: A value is not finite: its clipping is broken, so nothing may leave; what was
            written is zeros again.
        ConfigError: The lattice or σ is out of range.
        NoiseError: The key was agreed before a fork.
    """
    data, message = arguments(values, grid, out)
    with core_errors("float32 or float64 values"):
        saturated = _native.encode(
            kernels(), native_key(key), grid.sigma, core_grid(grid), data, message, factor
        )
    return Encoded(message, int(saturated))


def encode_ready(
    values: Float[np.ndarray, " size"],
    noise: Int32[np.ndarray, " size"],
    grid: Grid,
    *,
    out: Integer[np.ndarray, " size"] | None = None,
) -> Encoded:
    """`encode` with noise drawn before, which is overwritten with zeros: it serves once.

    Args:
        values: A clipped sum, float32 or float64, finite.
        noise: Draws of `fill_rounded_gaussian` with the grid's σ, never used before.
        grid: The lattices.
        out: As for `encode`.

    Raises:
        ReleaseError: A value is not finite.
        ConfigError: The lattice is out of range, or sizes differ.
    """
    data, message = arguments(values, grid, out)
    draws = core_array(noise, ("int32",))
    if np.may_share_memory(draws, data) or np.may_share_memory(draws, message):
        raise ConfigError(
            expected="noise apart from values and message",
            got="arrays that share memory",
            fix="give the noise memory of its own",
        )
    with core_errors("float32 or float64 values and as many int32 draws"):
        saturated = _native.encode_ready(kernels(), draws, core_grid(grid), data, message)
    return Encoded(message, int(saturated))


def l2_norm(values: Float[np.ndarray, " size"]) -> float:
    """Return the L2 norm, summed in float64: the same bits on every instruction set.

    The true norm is within a factor of 1 ± (size/4096 + 140)·2⁻⁵³ (proof in ``dither.h``).

    Args:
        values: float32 or float64.

    Raises:
        ReleaseError: A value is NaN or infinite, or the norm is beyond float64's range.
    """
    data = core_array(values, ("float64", "float32"), written=False)
    with core_errors("float32 or float64 values"):
        return float(_native.norm(kernels(), data))


def clip_factor(values: Float[np.ndarray, " size"], bound: float) -> float:
    """Return min(1, bound / L2 norm), rounded down.

    Down by as much as the norm's error and the roundings of the products: ``values * factor``,
    each product rounded to float64 as `encode` does it, has an L2 norm of at most ``bound``,
    exactly.

    Args:
        values: float32 or float64.
        bound: C, between 2⁻⁴⁰⁰ and 2⁴⁰⁰.

    Raises:
        ReleaseError: As for `l2_norm`.
        ConfigError: The bound is out of range.
    """
    if not 2.0**-400 <= bound <= 2.0**400:
        raise ConfigError(
            expected="an L2 bound between 2^-400 and 2^400",
            got=repr(bound),
            fix="pass the clipping norm of the plan",
        )
    norm = l2_norm(values)
    return float(_native.clip_factor(norm, int(np.size(values)), float(bound)))


def decode(
    message: Integer[np.ndarray, " size"],
    grid: Grid,
    *,
    scale: float = 1.0,
    out: Float[np.ndarray, " size"] | None = None,
) -> Float[np.ndarray, " size"]:
    """Return the values of a message, or of a sum of messages, in units of the data, times scale.

    One pass. With a scale of 1 float64 is exact; else the product is rounded to float64 and then,
    if asked, to float32, alike on every instruction set.

    Args:
        message: Of the grid's integers.
        grid: The lattices.
        scale: Public factor, as `check_scale` takes it.
        out: Where the values go, float32 or float64; a new float64 array by default. Beyond
            float32's range a value is infinite.

    Raises:
        ConfigError: Other integers, another size, or the scale or lattice is out of range.
    """
    factor = check_scale(scale)
    values = np.empty(message.size) if out is None else core_array(out, ("float32", "float64"))
    with core_errors("a message of the wire's integers and as many values"):
        _native.decode(kernels(), core_grid(grid), message, values, factor)
    return values


def check_scale(scale: float) -> float:
    """Return a factor that values may be multiplied by.

    Raises:
        ConfigError: Zero, not finite, or so far from 1 that a product could leave float64's range.
    """
    if not 2.0**-400 <= abs(scale) <= 2.0**400:
        raise ConfigError(
            expected="a scale with a magnitude between 2^-400 and 2^400",
            got=repr(scale),
            fix="pass 1 / expected batch size, or leave it out",
        )
    return float(scale)


def arguments(values: object, grid: Grid, out: object) -> tuple[np.ndarray, np.ndarray]:
    """Return values and message, checked, as the core takes them.

    Raises:
        ConfigError: Another type, layout or size, or the two share memory.
    """
    data = core_array(values, ("float64", "float32"), written=False)
    if out is None:
        return data, np.empty(data.size, message_type(grid))
    message = core_array(out, (np.dtype(message_type(grid)).name,))
    if message.size != data.size:
        raise ConfigError(
            expected=f"a message of {data.size} integers, as many as values",
            got=str(message.size),
            fix="leave out= out, or give it that size",
        )
    if np.may_share_memory(data, message):
        raise ConfigError(
            expected="a message apart from the values",
            got="arrays that share memory",
            fix="leave out= out, or give it memory of its own",
        )
    return data, message


def message_type(grid: Grid) -> type[np.int16 | np.int32]:
    """Return the integer type of one coordinate on the wire."""
    return np.int16 if grid.wire_bits == 16 else np.int32


def core_grid(grid: Grid) -> Any:
    """Return a grid as the C core takes it."""
    with core_errors("a grid of integers that fit 64 bits"):
        return _native.Grid(
            scale_exponent=-grid.step_exponent,
            clamp=grid.clamp,
            wire_shift=grid.wire_shift,
            wire_limit=grid.wire_limit,
            wire_bits=grid.wire_bits,
        )
