"""What to clip to, and what clipping gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from dither.clipping.styles import Flat, Style
from dither.errors import ConfigError
from dither.privacy.events import Relation
from dither.privacy.plan import check_clip
from dither.release.bounded_sum import BoundedSum

# Gradient norms are counted in these bins, as multiples of the clip bound.
NORM_EDGES = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0, 16.0, 64.0)


@dataclass(frozen=True)
class Clipping:
    """How gradients are clipped, and within which memory.

    Attributes:
        l2_clip: C, the bound on the L2 norm of one example's contribution.
        style: Where between 0 and C a contribution ends.
        relation: Neighbouring relation that rounding must be safe under: under ``add_remove``
            sums are float64 throughout, slower.
        microbatch_size: Examples that pass through the model at a time. Speed and memory only; by
            default as many as `memory_limit` holds.
        memory_limit: Bytes that one chunk's activations and gradients may take, about. Speed and
            memory only.
        expected_rows: Expected batch size, public: no chunk is much larger.
    """

    l2_clip: float
    style: Style = field(default_factory=Flat)
    relation: Relation = Relation.ZERO_OUT
    microbatch_size: int | None = None
    memory_limit: int | None = None
    expected_rows: int = 1 << 20

    def __post_init__(self) -> None:
        check_clip(self.l2_clip)
        for name in ("microbatch_size", "memory_limit", "expected_rows"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= 1):
                unit = "bytes" if name == "memory_limit" else "examples"
                raise ConfigError(
                    expected=f"{name} as a whole number of {unit}, at least 1",
                    got=repr(value),
                    fix=f"pass {name}={1 << 26 if unit == 'bytes' else 64}, for instance",
                )

    @property
    def bound(self) -> float:
        """Norm up to which a flat style leaves gradients as they are; C with another style."""
        moved = self.style.bound if isinstance(self.style, Flat) else None
        return self.l2_clip if moved is None else moved


@final
class Diagnostics:
    """What the operator may watch and nobody else: it depends on records, without noise.

    Computed when it is read.

    Args:
        losses: Of the real examples, chunk by chunk.
        norms: Of their gradients; infinite where they are left out.
        clipping: Its C is the unit of the bins, and norms above its bound count as clipped.
    """

    def __init__(
        self,
        losses: Sequence[Float64[Tensor, " _"]],
        norms: Sequence[Float64[Tensor, " _"]],
        clipping: Clipping,
    ) -> None:
        self._parts = tuple(losses), tuple(norms)
        self._clipping = clipping

    @cached_property
    def loss(self) -> float:
        """Mean loss of the batch, NaN for an empty one."""
        return float(self._losses[self._finite].mean())

    @property
    def batch_size(self) -> int:
        """Actual number of records."""
        return sum(part.shape[0] for part in self._parts[0])

    @cached_property
    def clipped(self) -> int:
        """How many gradients were longer than the bound."""
        return int((self._norms[self._finite] > self._clipping.bound).sum())

    @cached_property
    def non_finite(self) -> int:
        """How many were NaN, infinite or beyond float32's safe range, and left out."""
        return int((~self._finite).sum())

    @cached_property
    def norm_counts(self) -> Int64[Tensor, " bins"]:
        """Gradient norms in the bins of `NORM_EDGES`, the last one open."""
        edges = torch.tensor(NORM_EDGES, dtype=torch.float64) * self._clipping.l2_clip
        bins = torch.bucketize(self._norms[self._finite], edges, right=True) - 1
        return torch.bincount(bins, minlength=len(NORM_EDGES))

    @cached_property
    def _losses(self) -> Tensor:
        return _joined(self._parts[0])

    @cached_property
    def _norms(self) -> Tensor:
        return _joined(self._parts[1])

    @cached_property
    def _finite(self) -> Tensor:
        return torch.isfinite(self._norms) & torch.isfinite(self._losses)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.empty(0, dtype=torch.float64), *(part.cpu() for part in parts)])


@dataclass(frozen=True)
class ClippedSum:
    """The bounded sum, and beside it what must stay with the operator."""

    bounded: BoundedSum
    diagnostics: Diagnostics
