"""Chunks of tensors into messages and back, with as few copies as can be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from dither.errors import ConfigError
from dither.noise.codec import Encoded, check_scale, message_type
from dither.noise.pool import Noise
from dither.privacy.lattice import Lattice
from dither.release.device import DeviceEncoder, Draws, supports
from dither.release.encoder import Encoder
from dither.release.rows import dense, is_rows, row_blocks
from dither.release.transport import FusedTransport

# Shorter tensors are gathered: copying them costs less than a pass of their own.
SHORT = 1 << 16
# Coordinates of one block: 1 MiB of float64, which caches hold. A multiple of the 128 draws that a
# key hands out together, so that the cuts waste no numbers and the noise is that of one pass.
BLOCK = 1 << 17
# Coordinates that one pass over shared memory takes: cheap to start next to that.
TOGETHER = 1 << 20
_NATIVE = {torch.float32, torch.float64}


@final
class ChunkEncoder:
    """Encodes each chunk where it lives.

    CPU tensors are read in place, except short or strided ones; sparse tables pass through a small
    buffer (`row_blocks`); released tensors are views of one decoded array. Chunks on one CUDA
    device go through `DeviceEncoder` (untested on hardware), if the noise can be had apart
    (`Draws`); sparse ones are made dense there. All others are copied to the host. The message
    depends neither on where a chunk lives nor on its layout.

    Args:
        lattice: The numbers, from `Plan.bind` and nowhere else.
        noise: Fresh or from a pool; every draw is used once.
        scale: Public factor of released values, as `codec.check_scale` takes it.
        dtype: Of released tensors, float32 or float64.
        out: Flat memory for released tensors, filled from its start.
    """

    def __init__(
        self,
        lattice: Lattice,
        noise: Noise,
        *,
        scale: float = 1.0,
        dtype: torch.dtype = torch.float64,
        out: Tensor | None = None,
    ) -> None:
        self._lattice = lattice
        self._noise = noise
        self._host = Encoder(lattice, noise)
        self._scale = check_scale(scale)
        self._dtype = check_dtype(dtype)
        self._out = None if out is None else check_out(out, dtype)

    def into(self, out: Tensor | None) -> ChunkEncoder:
        """Return an encoder that fills other memory, of a type of its own; itself for None."""
        if out is None:
            return self
        other = copy(self)
        other._dtype = check_dtype(out.dtype)  # noqa: SLF001 - its own class
        other._out = check_out(out, out.dtype)  # noqa: SLF001
        return other

    def encode(self, chunk: Mapping[str, Tensor]) -> Encoded:
        """Return a message with noise on every coordinate, in the order of the chunk.

        Raises:
            ReleaseError: A value is not finite: its clipping is broken, so nothing may leave.
            NoiseError: The noise cannot be had: see its source.
        """
        device = self._device(chunk)
        if device is not None:
            return device.encode(pieces([dense(tensor) for tensor in chunk.values()]))
        message = np.empty(_size(chunk), message_type(self._lattice))
        start = saturated = 0
        for values in _arrays(chunk):
            room = message[start : start + values.size]
            saturated += self._host.encode(values, out=room).saturated
            start += values.size
        return Encoded(message, saturated)

    def decode(
        self, message: Integer[np.ndarray, " size"], chunk: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return a (summed) message as dense tensors with the chunk's names, shapes and devices.

        Raises:
            ConfigError: Not the wire's integers.
        """
        device = self._device(chunk)
        if device is not None:
            return _named(device.decode(message).mul_(self._scale).to(self._dtype), chunk)
        total = self._memory(message.size)
        self._host.decode(message, scale=self._scale, out=total.numpy())
        return _named(total, chunk)

    def alone(self, chunk: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
        """Return `decode` of `encode` and the number saturated, for a rank that has no others.

        The whole message is never in memory, only a block of it, which caches hold.

        Raises:
            ReleaseError: A value is not finite.
            NoiseError: The noise cannot be had.
        """
        if self._device(chunk) is not None:
            encoded = self.encode(chunk)
            return self.decode(encoded.message, chunk), encoded.saturated
        total = self._memory(_size(chunk))
        out = total.numpy()
        message = np.empty(min(out.size, BLOCK), message_type(self._lattice))
        start = saturated = 0
        for values in _arrays(chunk):
            for at in range(0, values.size, BLOCK):
                part = values[at : at + BLOCK]
                room = message[: part.size]
                saturated += self._host.encode(part, out=room).saturated
                self._host.decode(room, scale=self._scale, out=out[start : start + part.size])
                start += part.size
        return _named(total, chunk), saturated

    def together(
        self, chunk: Mapping[str, Tensor], carrier: FusedTransport
    ) -> tuple[dict[str, Tensor], int]:
        """Return the sum over ranks of what all of them encode, decoded, and the number saturated.

        Raises:
            ReleaseError: A value is not finite.
            NoiseError: The noise cannot be had.
            ReduceError: There is no sum.
        """
        total = self._memory(_size(chunk))
        out = total.numpy()
        start = saturated = 0
        for values in _arrays(chunk, TOGETHER):
            # Ranks must come with the same cuts, whether a table's rows are few or all of it.
            for at in range(0, values.size, TOGETHER):
                part = values[at : at + TOGETHER]
                room = out[start : start + part.size]
                saturated += carrier.release(
                    part, room, lattice=self._lattice, noise=self._noise, scale=self._scale
                )
                start += part.size
        return _named(total, chunk), saturated

    def _memory(self, size: int) -> Tensor:
        """Return memory for the next chunk's tensors: the rest of ``out`` if it is long enough."""
        if self._out is None or self._out.numel() < size:
            return torch.empty(size, dtype=self._dtype)
        taken, self._out = self._out[:size], self._out[size:]
        return taken

    def _device(self, chunk: Mapping[str, Tensor]) -> DeviceEncoder | None:
        devices = {tensor.device for tensor in chunk.values()}
        if len(devices) != 1:
            return None
        (device,) = devices
        if device.type == "cpu" or not supports(device) or not isinstance(self._noise, Draws):
            return None
        return DeviceEncoder(self._lattice, self._noise, device)


def check_out(out: Tensor, dtype: torch.dtype) -> Tensor:
    """Return memory that released tensors may be written to.

    Raises:
        ConfigError: It is not flat, of another type, or not on the CPU.
    """
    flat = out.ndim == 1 and out.is_contiguous() and not out.requires_grad
    if not flat or out.dtype != dtype or out.device.type != "cpu":
        raise ConfigError(
            expected=f"contiguous flat memory of {dtype} on the CPU",
            got=f"{out.dtype} of shape {tuple(out.shape)} on {out.device}",
            fix="make it with torch.empty(dimension, dtype=dtype), or leave out= out",
        )
    return out


def check_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return a type that released tensors may have.

    Raises:
        ConfigError: Neither float32 nor float64.
    """
    if dtype not in _NATIVE:
        raise ConfigError(
            expected="torch.float32 or torch.float64",
            got=str(dtype),
            fix="release one of these and convert the result",
        )
    return dtype


def pieces(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the coordinates of tensors in order, one-dimensional, float32 or float64.

    A long tensor is a view of its own memory where its layout allows that, or itself where it is a
    sparse table; short ones that follow one another are copied into one. The cuts depend on sizes
    alone.
    """
    found: list[Tensor] = []
    short: list[Tensor] = []
    for tensor in tensors:
        if tensor.numel() < SHORT:
            short.append(_flat(tensor))
            continue
        found.extend(_gathered(short))
        found.append(tensor if is_rows(tensor) else _flat(tensor))
        short = []
    found.extend(_gathered(short))
    return found


def _arrays(chunk: Mapping[str, Tensor], block: int = BLOCK) -> Iterator[Float[np.ndarray, " _"]]:
    for piece in pieces([tensor.to("cpu") for tensor in chunk.values()]):
        if is_rows(piece):
            yield from row_blocks(piece, block)
        else:
            yield piece.numpy()


def _size(chunk: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in chunk.values())


def _named(total: Float[Tensor, " size"], chunk: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts = torch.split(total, [tensor.numel() for tensor in chunk.values()])
    return {
        name: part.view(tensor.shape).to(tensor.device)
        for (name, tensor), part in zip(chunk.items(), parts, strict=True)
    }


def _flat(tensor: Tensor) -> Float[Tensor, " _"]:
    strided = dense(tensor)
    exact = strided if strided.dtype in _NATIVE else strided.to(torch.float64)
    return exact.detach().resolve_neg().contiguous().view(-1)


def _gathered(tensors: Sequence[Tensor]) -> list[Tensor]:
    return list(tensors) if len(tensors) < 2 else [torch.cat(list(tensors))]
