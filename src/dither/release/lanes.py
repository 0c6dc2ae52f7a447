"""What an encoder needs of streams and events: noise to a device, beside the device's work.

The CUDA lane is UNTESTED ON HARDWARE. A test runs it on simulated streams under a race detector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """A buffer on the host, its twin on the device, and the events that guard their reuse.

    Attributes:
        staging: Host memory.
        noise: Device memory of the same size and type.
        sent: The last copy is complete: the staging buffer may be overwritten.
        spent: What read the device's buffer is complete: it may be overwritten.
    """

    staging: Tensor
    noise: Tensor
    sent: Any = None
    spent: Any = None

    @property
    def array(self) -> Integer[np.ndarray, " size"]:
        """The staging buffer as numpy's.

        A page-locked tensor would hand itself out as CUDA's memory, which the core refuses.
        """
        return self.staging.numpy()


@final
class HostLane:
    """The CPU as its own device: everything happens at once, and there is nothing to wait for."""

    def host(self, size: int, dtype: torch.dtype) -> Tensor:
        """Return host memory."""
        return torch.empty(size, dtype=dtype, device="cpu")

    def slot(self, size: int, dtype: torch.dtype) -> Slot:
        """Return a pair of buffers."""
        return Slot(self.host(size, dtype), self.host(size, dtype))

    def send(self, slot: Slot, count: int) -> None:
        """Copy."""
        slot.noise[:count].copy_(slot.staging[:count])

    def wait_sent(self, slot: Slot) -> None:
        """Nothing."""

    def mark_spent(self, slot: Slot) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


@final
class CudaLane:
    """Copies on a side stream; the caller's current stream computes.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._main = torch.cuda.current_stream(device)
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def host(self, size: int, dtype: torch.dtype) -> Tensor:
        """Return page-locked memory: the device reads and writes it while the CPU goes on."""
        return torch.empty(size, dtype=dtype, device="cpu", pin_memory=True)

    def slot(self, size: int, dtype: torch.dtype) -> Slot:
        """Return a pair of buffers."""
        noise = torch.empty(size, dtype=dtype, device=self._device)
        sent, spent = (torch.cuda.Event() for _ in range(2))  # type: ignore[no-untyped-call]
        slot = Slot(self.host(size, dtype), noise, sent, spent)
        # What used this memory before did so on the main stream: the first copy waits for it.
        self.mark_spent(slot)
        return slot

    def send(self, slot: Slot, count: int) -> None:
        """Start to copy once the slot is spent; the main stream's next work sees the noise."""
        self._side.wait_event(slot.spent)
        with torch.cuda.stream(self._side):
            slot.noise[:count].copy_(slot.staging[:count], non_blocking=True)
        slot.sent.record(self._side)
        self._main.wait_event(slot.sent)

    def wait_sent(self, slot: Slot) -> None:
        """Wait until the staging buffer may be overwritten; before its first use, not at all."""
        slot.sent.synchronize()

    def mark_spent(self, slot: Slot) -> None:
        """Tell that the main stream's work so far is all that needs the slot's noise."""
        slot.spent.record(self._main)

    def finish(self) -> None:
        """Wait for both streams."""
        self._side.synchronize()
        self._main.synchronize()


Lane: TypeAlias = HostLane | CudaLane


def lane_of(device: torch.device) -> Lane:
    """Return the lane of a device that `device.supports` accepts."""
    return CudaLane(device) if device.type == "cuda" else HostLane()
