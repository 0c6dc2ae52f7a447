"""Reference clipping: per-example gradients by `torch.func`, slow and plain.

The oracle that faster engines are tested against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from dither.clipping.loss import PerExampleLoss, require_per_example
from dither.errors import ConfigError, ModelError
from dither.noise.entropy import Entropy
from dither.privacy.ticket import SampleTicket
from dither.release.bounded_sum import BoundedSum

# At most this many rows in one float32 product; chunks add up in float64. Together they keep the
# effect of one record on the rounding of all others below the plan's numeric slack.
_MAX_ROWS = 256
_CHUNK_ELEMENTS = 1 << 23  # of per-example gradients at a time: 32 MiB of float32

_NORM_BLOCK = 4096

# Gradient norms are counted in these bins, as multiples of the clip bound.
NORM_EDGES = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0, 16.0, 64.0)


@dataclass(frozen=True)
class Clipping:
    """Flat clipping: one L2 bound over all parameters together.

    Attributes:
        l2_clip: C, the largest L2 norm of one example's gradient; larger ones are scaled down.
    """

    l2_clip: float

    def __post_init__(self) -> None:
        if not 0.0 < self.l2_clip < float("inf"):
            raise ConfigError(
                expected="a finite clip bound above 0", got=repr(self.l2_clip), fix="choose 1.0"
            )


@dataclass(frozen=True)
class Diagnostics:
    """What the operator may watch and nobody else: it depends on records, without noise.

    Attributes:
        loss: Mean loss of the batch, NaN for an empty one.
        batch_size: Actual number of records.
        clipped: How many gradients were scaled down.
        non_finite: How many were NaN or infinite, and left out.
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


_PerExample = Callable[[Mapping[str, Tensor], tuple[Tensor, ...]], tuple[dict[str, Tensor], Tensor]]


@dataclass(frozen=True)
class _Chunk:
    total: dict[str, Tensor]
    losses: Float64[Tensor, " rows"]
    norms: Float64[Tensor, " rows"]


def clipped_sum(
    model: nn.Module,
    loss_fn: PerExampleLoss,
    data: Any,
    ticket: SampleTicket,
    *,
    clipping: Clipping,
    entropy: Entropy,
) -> ClippedSum:
    """Sum the clipped per-example gradients of a batch (Abadi et al. 1607.00133, Algorithm 1).

    Sensitivity: each example is run by itself (`vmap` over batches of one), so its contribution
    g·min(1, C/‖g‖₂) depends on no other example and has norm at most C; a non-finite gradient
    counts as zero, also in the product. One record more or less hence moves the sum by at most C
    in exact arithmetic. Dropout and the like draw fresh entropy each call, or one record's absence
    would shift everyone else's masks (PRIVACY-REVIEW A5).

    Args:
        model: Its trainable parameters are differentiated; nothing is left on them.
        loss_fn: ``(output, target) -> losses``, as `per_example` gives it.
        data: ``(input, ..., target)``, tensors with the same first axis; zero rows are fine.
        ticket: How the batch was sampled.
        clipping: The bound.
        entropy: Seeds dropout.

    Returns:
        The sum over all trainable parameters, float64, zeros where the batch is empty.

    Raises:
        ModelError: The batch, the model or the loss cannot be taken example by example.
    """
    tensors = _as_tensors(data)
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    losses, norms = [], []
    per_example = _per_example_gradients(model, loss_fn, tensors)
    for chunk in _chunks(per_example, parameters, tensors, clipping, entropy.seed()):
        for name, value in chunk.total.items():
            total[name] += value
        losses.append(chunk.losses)
        norms.append(chunk.norms)
    bounded = BoundedSum(
        chunks=(total,),
        dimension=sum(p.numel() for p in parameters.values()),
        l2_clip=clipping.l2_clip,
        ticket=ticket,
    )
    return ClippedSum(bounded, _diagnose(losses, norms, clipping))


def _chunks(
    per_example: _PerExample,
    parameters: Mapping[str, Tensor],
    tensors: tuple[Tensor, ...],
    clipping: Clipping,
    seed: int,
) -> Iterator[_Chunk]:
    size = sum(p.numel() for p in parameters.values())
    rows = max(1, min(_MAX_ROWS, _CHUNK_ELEMENTS // size))
    devices = [tensor.device for tensor in tensors if tensor.is_cuda]
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        for start in range(0, tensors[0].shape[0], rows):
            part = tuple(tensor[start : start + rows] for tensor in tensors)
            gradients, losses = per_example(parameters, part)
            yield _clip(gradients, losses, clipping)


def _per_example_gradients(
    model: nn.Module, loss_fn: PerExampleLoss, tensors: tuple[Tensor, ...]
) -> _PerExample:
    fixed = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    buffers = dict(model.named_buffers())

    def loss_of_one(parameters: Mapping[str, Tensor], *example: Tensor) -> Tensor:
        *inputs, target = (value.unsqueeze(0) for value in example)
        state = {**parameters, **fixed, **buffers}
        return require_per_example(loss_fn(functional_call(model, state, tuple(inputs)), target))

    axes = (None, *(0 for _ in tensors))
    mapped = vmap(grad_and_value(loss_of_one), in_dims=axes, randomness="different")

    def run(
        parameters: Mapping[str, Tensor], part: tuple[Tensor, ...]
    ) -> tuple[dict[str, Tensor], Tensor]:
        try:
            return mapped(parameters, *part)
        except RuntimeError as error:
            raise ModelError(
                expected="a model that torch.func can run one example at a time",
                got=str(error).split("\n")[0],
                fix="replace the layer or in-place update that the message names",
            ) from error

    return run


def _clip(gradients: dict[str, Tensor], losses: Tensor, clipping: Clipping) -> _Chunk:
    flat = {name: g.reshape(g.shape[0], -1) for name, g in gradients.items()}
    norms = _norms(flat.values())
    finite = torch.isfinite(norms) & torch.isfinite(losses)
    factor = torch.where(finite, (clipping.l2_clip / norms).clamp(max=1.0), 0.0)
    factor = torch.where(norms == 0.0, 1.0, factor)
    if not finite.all():  # 0·NaN is NaN: the operand is masked too
        flat = {name: torch.where(finite[:, None], g, 0.0) for name, g in flat.items()}
    total = {
        name: (factor.to(g.dtype) @ g).double().reshape(gradients[name].shape[1:])
        for name, g in flat.items()
    }
    return _Chunk(total, losses.double(), norms)


def _norms(gradients: Iterable[Tensor]) -> Float64[Tensor, " rows"]:
    """Return L2 norms over all parameters of each example.

    Float32 within blocks, float64 across them: a sum of n squares in float32 may lose n·2⁻²⁴ of
    itself to one large entry, so blocks of 4096 keep the error below 2.5e-4, an eighth of the
    plan's numeric slack, for any gradient. A norm that overflows is infinite, so masked.
    """
    blocks = [
        torch.linalg.vector_norm(block, dim=1).double()
        for gradient in gradients
        for block in torch.split(gradient, _NORM_BLOCK, dim=1)
    ]
    norms: Tensor = torch.linalg.vector_norm(torch.stack(blocks), dim=0)
    return norms


def _diagnose(losses: list[Tensor], norms: list[Tensor], clipping: Clipping) -> Diagnostics:
    all_losses = torch.cat([*losses, torch.empty(0, dtype=torch.float64)])
    all_norms = torch.cat([*norms, torch.empty(0, dtype=torch.float64)])
    finite = torch.isfinite(all_norms) & torch.isfinite(all_losses)
    edges = torch.tensor(NORM_EDGES, dtype=torch.float64) * clipping.l2_clip
    bins = torch.bucketize(all_norms[finite], edges, right=True) - 1
    return Diagnostics(
        loss=float(all_losses[finite].mean()),
        batch_size=all_losses.numel(),
        clipped=int((all_norms[finite] > clipping.l2_clip).sum()),
        non_finite=int((~finite).sum()),
        norm_counts=torch.bincount(bins, minlength=len(NORM_EDGES)),
    )


def _as_tensors(data: Any) -> tuple[Tensor, ...]:
    tensors = tuple(data) if isinstance(data, list | tuple) else ()
    rows = {tensor.shape[0] for tensor in tensors if isinstance(tensor, Tensor) and tensor.ndim}
    if len(tensors) < 2 or len(rows) != 1 or not all(isinstance(t, Tensor) for t in tensors):
        raise ModelError(
            expected="batches (input, ..., target) of tensors with one row an example",
            got=type(data).__name__ if not tensors else f"rows {sorted(rows)}",
            fix="give the loader a collate_fn that returns (inputs, targets)",
        )
    return tensors
