"""Losses that give one number per example."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from dither.errors import ModelError

PerExampleLoss = Callable[[Any, Any], Tensor]


def per_example(loss_fn: Callable[[Any, Any], Tensor]) -> PerExampleLoss:
    """Return the loss with its reduction over the batch taken away.

    A mean divided by a batch-dependent count (class weights, padding) would let one record change
    the weight of all others; and on a batch of one, weights in a weighted mean cancel silently.

    Args:
        loss_fn: A `torch.nn` criterion with any ``reduction``, or a callable
            ``(output, target) -> losses [batch]``.

    Raises:
        ModelError: A module whose reduction cannot be changed.
    """
    if not isinstance(loss_fn, nn.Module):
        return loss_fn
    if not hasattr(loss_fn, "reduction"):
        raise ModelError(
            expected="a criterion with a reduction, or a function that gives one loss an example",
            got=f"{type(loss_fn).__name__}, a module without one",
            fix="pass loss_fn=lambda output, target: ... that returns a tensor of shape [batch]",
        )
    unreduced = copy.copy(loss_fn)
    unreduced.reduction = "none"  # type: ignore[assignment]
    return unreduced


def require_per_example(losses: object) -> Tensor:
    """Check the loss of one example and return it as a scalar.

    Args:
        losses: What the per-example loss gave for a batch of one; any trailing axes (tokens,
            pixels) are summed: they belong to the example.

    Raises:
        ModelError: It gave a scalar: it averages over the batch.
    """
    if not isinstance(losses, Tensor) or losses.ndim == 0 or losses.shape[0] != 1:
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ModelError(
            expected="one loss an example, shape [batch, ...]",
            got=f"{shape} for a batch of one",
            fix="use reduction='none', as in functools.partial(F.cross_entropy, reduction='none')",
        )
    return losses.sum()
