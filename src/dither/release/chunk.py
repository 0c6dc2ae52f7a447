"""Chunks of tensors into messages and back, with as few copies as can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from dither.noise.codec import Encoded, message_type
from dither.noise.pool import Noise
from dither.privacy.lattice import Lattice
from dither.release.device import DeviceEncoder, Draws, supports
from dither.release.encoder import Encoder

# Shorter tensors are gathered: copying them costs less than a pass of their own.
SHORT = 1 << 16
_NATIVE = {torch.float32, torch.float64}


@final
class ChunkEncoder:
    """Encodes each chunk where it lives.

    CPU tensors are read in place, except short or strided ones, and released ones are views of one
    decoded array. Chunks on one CUDA device go through `DeviceEncoder` (untested on hardware), if
    the noise can be had apart (`Draws`). All others are copied to the host. The message does not
    depend on where a chunk lives.

    Args:
        lattice: The numbers, from `Plan.bind` and nowhere else.
        noise: Fresh or from a pool; every draw is used once.
    """

    def __init__(self, lattice: Lattice, noise: Noise) -> None:
        self._lattice = lattice
        self._noise = noise
        self._host = Encoder(lattice, noise)

    def encode(self, chunk: Mapping[str, Tensor]) -> Encoded:
        """Return a message with noise on every coordinate, in the order of the chunk.

        Raises:
            ReleaseError: A value is not finite: its clipping is broken, so nothing may leave.
            NoiseError: The noise cannot be had: see its source.
        """
        device = self._device(chunk)
        if device is not None:
            return device.encode(pieces(list(chunk.values())))
        parts = pieces([tensor.to("cpu") for tensor in chunk.values()])
        size = sum(part.numel() for part in parts)
        message = np.empty(size, message_type(self._lattice))
        start = saturated = 0
        for part in parts:
            room = message[start : start + part.numel()]
            saturated += self._host.encode(part.numpy(), out=room).saturated
            start += part.numel()
        return Encoded(message, saturated)

    def decode(
        self, message: Integer[np.ndarray, " size"], chunk: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return a (summed) message as float64 tensors with the chunk's names, shapes and devices.

        Raises:
            ConfigError: Not the wire's integers.
        """
        device = self._device(chunk)
        total = (
            torch.from_numpy(self._host.decode(message))
            if device is None
            else device.decode(message)
        )
        parts = torch.split(total, [tensor.numel() for tensor in chunk.values()])
        return {
            name: part.reshape(tensor.shape).to(tensor.device)
            for (name, tensor), part in zip(chunk.items(), parts, strict=True)
        }

    def _device(self, chunk: Mapping[str, Tensor]) -> DeviceEncoder | None:
        devices = {tensor.device for tensor in chunk.values()}
        if len(devices) != 1 or not isinstance(self._noise, Draws):
            return None
        (device,) = devices
        if device.type == "cpu" or not supports(device):
            return None
        return DeviceEncoder(self._lattice, self._noise, device)


def pieces(tensors: Sequence[Tensor]) -> list[Float[Tensor, " _"]]:
    """Return the coordinates of tensors in order, one-dimensional, float32 or float64.

    A long tensor is a view of its own memory where its layout allows that; short ones that follow
    one another are copied into one. The cuts depend on sizes alone.
    """
    found: list[Tensor] = []
    short: list[Tensor] = []
    for tensor in tensors:
        flat = _flat(tensor)
        if flat.numel() < SHORT:
            short.append(flat)
            continue
        found.extend(_gathered(short))
        found.append(flat)
        short = []
    found.extend(_gathered(short))
    return found


def _flat(tensor: Tensor) -> Tensor:
    exact = tensor if tensor.dtype in _NATIVE else tensor.to(torch.float64)
    return exact.detach().resolve_neg().contiguous().reshape(-1)


def _gathered(tensors: Sequence[Tensor]) -> list[Tensor]:
    return list(tensors) if len(tensors) < 2 else [torch.cat(list(tensors))]
