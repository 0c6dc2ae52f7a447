"""Reference clipping: per-example gradients by `torch.func`, slow and plain.

The oracle that faster engines are tested against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from dither.clipping.arithmetic import ROWS, clip_factors, norms, weighted_sums
from dither.clipping.leaks import check_no_state
from dither.clipping.loss import PerExampleLoss, require_per_example
from dither.errors import ConfigError, ModelError
from dither.noise.entropy import Entropy
from dither.privacy.plan import check_clip
from dither.privacy.ticket import SampleTicket
from dither.release.bounded_sum import BoundedSum

_MAX_ROWS = 256
_CHUNK_ELEMENTS = 1 << 23  # of per-example gradients at a time: 32 MiB of float32

# Gradient norms are counted in these bins, as multiples of the clip bound.
NORM_EDGES = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0, 16.0, 64.0)


@dataclass(frozen=True)
class Clipping:
    """Flat clipping: one L2 bound over all parameters together.

    Attributes:
        l2_clip: C, the largest L2 norm of one example's gradient; larger ones are scaled down.
        expected_rows: Expected batch size, public; small ones make small chunks. Speed only.
    """

    l2_clip: float
    expected_rows: int = _MAX_ROWS

    def __post_init__(self) -> None:
        check_clip(self.l2_clip)
        if self.expected_rows < 1:
            raise ConfigError(
                expected="expected rows of at least 1", got=str(self.expected_rows), fix="raise it"
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
    in exact arithmetic, and by `required_slack` more as computed. Dropout
    and the like draw fresh entropy each call, or one record's absence would shift everyone else's
    masks (PRIVACY-REVIEW A5).

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
    losses, lengths = [], []
    per_example = _per_example_gradients(model, loss_fn, tensors)
    for chunk in _chunks(per_example, parameters, tensors, clipping, entropy.seed()):
        check_no_state(model, loss_fn)
        for name, value in chunk.total.items():
            total[name] += value
        losses.append(chunk.losses)
        lengths.append(chunk.norms)
    bounded = BoundedSum(
        chunks=(total,),
        dimension=sum(p.numel() for p in parameters.values()),
        l2_clip=clipping.l2_clip,
        ticket=ticket,
    )
    return ClippedSum(bounded, _diagnose(losses, lengths, clipping))


def _chunks(
    per_example: _PerExample,
    parameters: Mapping[str, Tensor],
    tensors: tuple[Tensor, ...],
    clipping: Clipping,
    seed: int,
) -> Iterator[_Chunk]:
    rows = _chunk_rows(parameters, clipping)
    devices = [tensor.device for tensor in tensors if tensor.is_cuda]
    device = tensors[0].device.type
    with (
        torch.random.fork_rng(devices),
        torch.no_grad(),
        torch.autocast(device, enabled=False),  # in bf16 one record would move the sum by 1.7 C
    ):
        torch.manual_seed(seed)
        for start in range(0, tensors[0].shape[0], rows):
            part = tuple(_padded(tensor[start : start + rows], rows) for tensor in tensors)
            real = torch.arange(rows, device=tensors[0].device) < tensors[0].shape[0] - start
            gradients, losses = per_example(parameters, part)
            yield _clip(gradients, losses, real, clipping)


def _chunk_rows(parameters: Mapping[str, Tensor], clipping: Clipping) -> int:
    """Return the rows of every chunk: a number that does not depend on the records."""
    size = sum(p.numel() for p in parameters.values())
    rows = min(_MAX_ROWS, clipping.expected_rows, _CHUNK_ELEMENTS // max(1, size))
    return max(1, -(-rows // ROWS)) * ROWS


def _padded(part: Tensor, rows: int) -> Tensor:
    """Return the rows with zeros behind: a chunk of another shape would round other rows anew."""
    missing = part.new_zeros((rows - part.shape[0], *part.shape[1:]))
    return torch.cat([part, missing]) if missing.shape[0] else part


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
        except ModelError:
            raise
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            raise _explain(error, len(part)) from error

    return run


# What PyTorch says of things that cannot be taken example by example, and what to do about each.
_FIXES = {
    "saved tensor hooks": "turn gradient checkpointing off: batches are taken in chunks already",
    "setup_context": "turn gradient checkpointing off: batches are taken in chunks already",
    "Sparse": "use sparse=False: noise reaches every row anyway",
    "positional argument": "make batch items (input, ..., target), with the model's own inputs",
}


def _explain(error: Exception, items: int) -> ModelError:
    text = str(error)
    said = " ".join(text.split())[:200].rstrip(". ")
    fix = "replace the layer or in-place update that the message names"
    return ModelError(
        expected="a model and loss that work on one example, as a batch of one",
        got=f"{type(error).__name__}: {said} (from {items - 1} inputs and a target)",
        fix=next((mend for sign, mend in _FIXES.items() if sign in text), fix),
    )


def _clip(gradients: dict[str, Tensor], losses: Tensor, real: Tensor, clipping: Clipping) -> _Chunk:
    flat = {name: g.reshape(g.shape[0], -1) for name, g in gradients.items()}
    lengths = norms(flat.values())
    counted = real & torch.isfinite(lengths) & torch.isfinite(losses)
    sums = weighted_sums(flat, clip_factors(lengths, counted, clipping.l2_clip), counted)
    total = {name: value.reshape(gradients[name].shape[1:]) for name, value in sums.items()}
    return _Chunk(total, losses.double()[real], lengths[real])


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
