"""What to clip to, and what clipping gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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
                raise ConfigError(
                    expected=f"a whole {name} of at least 1", got=repr(value), fix="raise it"
                )


@dataclass(frozen=True)
class Diagnostics:
    """What the operator may watch and nobody else: it depends on records, without noise.

    Attributes:
        loss: Mean loss of the batch, NaN for an empty one.
        batch_size: Actual number of records.
        clipped: How many gradients were longer than the bound.
        non_finite: How many were NaN, infinite or beyond float32's safe range, and left out.
        norm_counts: Gradient norms in the bins of `NORM_EDGES`, the last one open.
    """

    loss: float
    batch_size: int
    clipped: int
    non_finite: int
    norm_counts: Int64[Tensor, " bins"]


@dataclass(frozen=True)
class ClippedSum:
    """The bounded sum, and beside it what must stay with the operator."""

    bounded: BoundedSum
    diagnostics: Diagnostics


def diagnose(
    losses: Sequence[Float64[Tensor, " _"]],
    norms: Sequence[Float64[Tensor, " _"]],
    l2_clip: float,
) -> Diagnostics:
    """Return what the operator may watch.

    Args:
        losses: Of the real examples, chunk by chunk.
        norms: Of their gradients; infinite where they are left out.
        l2_clip: Unit of the bins.
    """
    empty = torch.empty(0, dtype=torch.float64)
    all_losses = torch.cat([*(loss.cpu() for loss in losses), empty])
    all_norms = torch.cat([*(norm.cpu() for norm in norms), empty])
    finite = torch.isfinite(all_norms) & torch.isfinite(all_losses)
    edges = torch.tensor(NORM_EDGES, dtype=torch.float64) * l2_clip
    bins = torch.bucketize(all_norms[finite], edges, right=True) - 1
    return Diagnostics(
        loss=float(all_losses[finite].mean()),
        batch_size=all_losses.numel(),
        clipped=int((all_norms[finite] > l2_clip).sum()),
        non_finite=int((~finite).sum()),
        norm_counts=torch.bincount(bins, minlength=len(NORM_EDGES)),
    )
