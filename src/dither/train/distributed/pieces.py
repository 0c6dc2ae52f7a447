"""Which part of a tensor a rank holds, so that what R ranks wrote can be read by R' others."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from dither.errors import CheckpointError


@dataclass(frozen=True)
class Piece:
    """A block of a tensor.

    Attributes:
        start: First index in every dimension.
        size: Length in every dimension; a scalar has none.
    """

    start: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.size)

    def overlap(self, other: Piece) -> Piece:
        """Return what both hold; of zero length in some dimension where that is nothing."""
        start = tuple(map(max, zip(self.start, other.start, strict=True)))
        ends = zip(self._end(), other._end(), strict=True)
        return Piece(start, tuple(max(0, min(e) - s) for e, s in zip(ends, start, strict=True)))

    def within(self, whole: Piece) -> tuple[slice, ...]:
        """Return where it lies in a tensor that holds a larger piece."""
        offsets = (a - b for a, b in zip(self.start, whole.start, strict=True))
        return tuple(slice(o, o + n) for o, n in zip(offsets, self.size, strict=True))

    def _end(self) -> tuple[int, ...]:
        return tuple(a + n for a, n in zip(self.start, self.size, strict=True))


def whole(shape: tuple[int, ...]) -> Piece:
    """Return all of a tensor of this shape."""
    return Piece((0,) * len(shape), tuple(shape))


def is_sharded(tensor: Tensor) -> bool:
    """Return whether ranks hold different parts of a tensor."""
    return isinstance(tensor, DTensor) and not all(p.is_replicate() for p in tensor.placements)


def local_of(tensor: Tensor) -> Tensor:
    """Return the numbers that this rank holds, contiguous."""
    held = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return held.detach().contiguous()


def piece_of(tensor: Tensor) -> Piece:
    """Return which part of a tensor this rank holds; all of it if it is not sharded.

    Raises:
        CheckpointError: It is laid out otherwise than `fully_shard` does.
    """
    piece = whole(tuple(tensor.shape))
    if not isinstance(tensor, DTensor):
        return piece
    coordinates = tensor.device_mesh.get_coordinate()
    if coordinates is None:
        return Piece(piece.start, (0,) * len(piece.size))
    for dimension, placement in enumerate(tensor.placements):
        if isinstance(placement, Replicate):
            continue
        if type(placement) is not Shard:  # not a subclass, which would interleave
            raise _strange(tensor)
        ranks = tensor.device_mesh.size(dimension)
        piece = _cut(piece, placement.dim % tensor.ndim, coordinates[dimension], ranks)
    if piece.size != tuple(tensor.to_local().shape):
        raise _strange(tensor)
    return piece


def first_holder(tensor: Tensor) -> bool:
    """Return whether this rank is the first of those that hold the same part."""
    if not isinstance(tensor, DTensor):
        return True
    coordinates = tensor.device_mesh.get_coordinate()
    if coordinates is None:
        return False
    places = zip(coordinates, tensor.placements, strict=True)
    return all(place == 0 for place, kind in places if isinstance(kind, Replicate))


def spread_like(local: Tensor, like: Tensor) -> Tensor:
    """Return this rank's numbers as a part of a tensor that is laid out like another."""
    if not isinstance(like, DTensor):
        return local
    return DTensor.from_local(
        local.to(like.device),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def _cut(piece: Piece, dimension: int, place: int, ranks: int) -> Piece:
    """Return one rank's part, as `torch.chunk` cuts: all of one length but the last."""
    length = piece.size[dimension]
    step = -(-length // ranks)
    first, end = min(place * step, length), min((place + 1) * step, length)
    start, size = list(piece.start), list(piece.size)
    start[dimension] += first
    size[dimension] = end - first
    return Piece(tuple(start), tuple(size))


def _strange(tensor: DTensor) -> CheckpointError:
    return CheckpointError(
        expected="a model that is sharded along one dimension a mesh, as fully_shard does it",
        got=f"a tensor of placements {tensor.placements}",
        fix="shard with torch.distributed.fsdp.fully_shard alone",
    )


def empty_like_piece(piece: Piece, dtype: torch.dtype) -> Tensor:
    """Return memory for a piece."""
    return torch.empty(piece.size, dtype=dtype)
