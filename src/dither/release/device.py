"""Encoding where the tensors live: noise made by the CPU, added by an accelerator.

Written for CUDA (and ROCm, which PyTorch calls CUDA too). UNTESTED ON HARDWARE: the arithmetic, the
life of the noise and the order of streams and events are unit-tested without a GPU, on CPU tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Integer
from torch import Tensor

from dither.errors import ConfigError, ReleaseError
from dither.noise.codec import Encoded, Grid, decode, message_type
from dither.noise.core import Buffer
from dither.release.lanes import Lane, Slot, lane_of

# Draws of one transfer, 4 MiB. A multiple of the 128 draws that a key hands out together, so that
# the cuts waste no numbers and the noise is that of one pass over the whole.
SLICE = 1 << 20
_WIDEST_INT32 = 2.0**26  # a larger σ needs int64 draws


@runtime_checkable
class Draws(Protocol):
    """Noise that can be had apart from a message; `FreshNoise` and `NoisePool` are such."""

    def draw(self, out: Buffer, grid: Grid) -> None:
        """Fill integers with draws of the grid's σ in fine steps, never used before."""


def supports(device: torch.device) -> bool:
    """Whether `DeviceEncoder` takes tensors of this device.

    Others (MPS has no float64; the rest nobody looked at) are encoded on the host.
    """
    return device.type in {"cpu", "cuda"}


@final
class DeviceEncoder:
    """Turns tensors on a device into noisy integer messages in host memory.

    The CPU draws the noise (the generator and its exact sampler are the CPU's) into two page-locked
    buffers in turn. A side stream copies them while the device works on the slice before. The
    device does what `codec.encode` does, and two or four bytes a coordinate come back instead of
    the eight of a float64 sum. A draw serves once: its device copy is overwritten with zeros as
    soon as it is added, its host copy, once it has crossed, with the next draws or with zeros; when
    `encode` returns or raises, none is left.

    Sensitivity: the same as `codec.encode`'s, since for the same sums and draws the message is the
    same, bit for bit. Every step is exact: scaling by a power of two (what underflows would round
    to 0 and what overflows is clamped in any case), clamping and rounding half to even in IEEE
    float64, then noise, shift and clamp in int64, where nothing exceeds 2⁵². So rounding moves each
    coordinate by at most γ/2, clamping is 1-Lipschitz, and all after the noise is post-processing.

    Args:
        grid: The lattices, from `Plan.bind`.
        noise: Fresh or from a pool; every draw is used once.
        device: Of the tensors: CUDA, or the CPU (for tests; `codec.encode` is faster there).
        slice_size: Draws of one transfer, a multiple of 128.

    Raises:
        ConfigError: Another device, or the lattice is out of range.
    """

    def __init__(
        self, grid: Grid, noise: Draws, device: torch.device, *, slice_size: int = SLICE
    ) -> None:
        if not supports(device):
            raise ConfigError(
                expected="a CUDA device, whose float64 is exact",
                got=str(device),
                fix="encode on the host, as release_sum does for other devices",
            )
        decode(np.empty(0, message_type(grid)), grid)  # the core's own check of the lattice
        self._grid = grid
        self._noise = noise
        self._device = device
        self._slice = slice_size
        self._narrow = torch.int16 if grid.wire_bits == 16 else torch.int32

    @torch.no_grad()
    def encode(self, pieces: Sequence[Float[Tensor, " _"]]) -> Encoded:
        """Return one message for one-dimensional tensors on the device, one after the other.

        Waits for the device's results once, at the end.

        Raises:
            ReleaseError: A value is not finite: its clipping is broken, so nothing may leave.
            NoiseError: The noise cannot be had: see its source.
        """
        slices = [
            part for piece in pieces for part in torch.split(piece, self._slice) if part.numel()
        ]
        lane = lane_of(self._device)
        message = lane.host(sum(part.numel() for part in slices), self._narrow)
        counts = torch.zeros(2, dtype=torch.int64, device=self._device)
        found = lane.host(2, torch.int64)
        longest = max((part.numel() for part in slices), default=0)
        wide = torch.int64 if self._grid.sigma > _WIDEST_INT32 else torch.int32
        slots = [lane.slot(longest, wide) for _ in slices[:2]]
        try:
            self._encode_slices(slices, message, counts, slots, lane)
            found.copy_(counts, non_blocking=True)
        finally:
            _wipe(slots, lane)
        saturated, broken = found.tolist()
        if broken:
            message.zero_()  # a message with a hole in it must not leave
            raise ReleaseError(
                expected="a finite clipped sum",
                got="a sum with NaN or infinity",
                fix="report this as a bug: clipping must mask non-finite gradients",
            )
        return Encoded(message.numpy(), saturated)

    def decode(self, message: Integer[np.ndarray, " size"]) -> Float64[Tensor, " size"]:
        """Return a (summed) message in units of the data, on the device.

        It crosses as integers; the product with the wire step, a power of two, is exact.

        Raises:
            ConfigError: Not the wire's integers.
        """
        if message.dtype != message_type(self._grid):
            raise ConfigError(
                expected=f"a message of {self._grid.wire_bits}-bit integers",
                got=str(message.dtype),
                fix="let the transport sum messages in their own type",
            )
        wire = torch.from_numpy(np.require(message, requirements=["C", "W"])).to(self._device)
        step = math.ldexp(1.0, self._grid.step_exponent + self._grid.wire_shift)
        return wire.to(torch.float64).mul_(step)

    def _encode_slices(
        self,
        slices: Sequence[Tensor],
        message: Tensor,
        counts: Tensor,
        slots: Sequence[Slot],
        lane: Lane,
    ) -> None:
        start = 0
        for index, values in enumerate(slices):
            count = values.numel()
            slot = slots[index % 2]
            lane.wait_sent(slot)
            self._noise.draw(slot.array[:count], self._grid)
            lane.send(slot, count)
            noise = slot.noise[:count]
            wire = encode_tensor(values, noise, self._grid, counts).to(self._narrow)
            noise.zero_()
            lane.mark_spent(slot)
            message[start : start + count].copy_(wire, non_blocking=True)
            start += count


def encode_tensor(
    values: Float[Tensor, " size"],
    noise: Integer[Tensor, " size"],
    grid: Grid,
    counts: Int[Tensor, " 2"],
) -> Int[Tensor, " size"]:
    """Return wire integers, as int64: `noise.reference.encode_reference` on any device.

    Args:
        values: Of any float type.
        noise: Draws in fine steps.
        grid: The lattices, within the limits of `codec.encode`.
        counts: Raised by the number of coordinates clamped before noise and of those not finite.
            Where one is not finite, the result is meaningless.
    """
    fine = values.to(torch.float64, copy=True)
    counts[1].add_(fine.isfinite().logical_not_().sum())
    # Cut one step beyond the clamp: what lies there then shows after rounding.
    fine.mul_(math.ldexp(1.0, -grid.step_exponent)).clamp_(-grid.clamp - 1.0, grid.clamp + 1.0)
    fine.round_()
    counts[0].add_((fine.abs() > grid.clamp).sum())
    noisy = fine.clamp_(-grid.clamp, grid.clamp).to(torch.int64).add_(noise)
    if grid.wire_shift:
        noisy.add_(1 << (grid.wire_shift - 1)).bitwise_right_shift_(grid.wire_shift)
    return noisy.clamp_(-grid.wire_limit, grid.wire_limit)


def _wipe(slots: Sequence[Slot], lane: Lane) -> None:
    """Wait for the device and leave no noise behind, whatever happened."""
    try:
        for slot in slots:
            slot.noise.zero_()
        lane.finish()
    finally:
        for slot in slots:
            slot.array.fill(0)
