"""Clipped sums by the book: one backward an example and nothing of the engine."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from tests.clipping.zoo import Case
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from dither.clipping.clipping import ClippedSum, Clipping
from dither.clipping.engine import ClippingEngine
from dither.clipping.gradients import Loss
from dither.clipping.loss import losses_of
from dither.clipping.styles import Automatic, Flat, PerLayer, Style
from dither.errors import DitherWarning
from dither.noise.entropy import Entropy, InsecureSeed
from dither.privacy.events import SamplerKind
from dither.privacy.ticket import SampleTicket

Named = dict[str, Tensor]


def rows_of(batch: Any) -> int:
    """Return how many examples a batch has."""
    return int(tree_leaves(batch)[0].shape[0])


def picked(batch: Any, rows: Any) -> Any:
    """Return some examples of a batch."""
    return tree_map(lambda leaf: leaf[rows], batch)


def by_loop(model: nn.Module, loss: Loss, batch: Any) -> list[Named]:
    """Return each example's gradient in float64, zeros where none reaches a parameter."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = []
    for row in range(rows_of(batch)):
        given = losses_of(model, loss, picked(batch, slice(row, row + 1)))
        total = torch.stack([leaf.sum() for leaf in tree_leaves(given)]).sum()
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        found.append(
            {
                name: torch.zeros_like(p).double() if g is None else g.to_dense().double()
                for (name, p), g in zip(parameters.items(), gradients, strict=True)
            }
        )
    return found


def length(gradient: Named) -> float:
    """Return the norm of a gradient over all parameters."""
    return math.sqrt(sum(float(part.square().sum()) for part in gradient.values()))


def clipped(gradient: Named, style: Style, clip: float) -> Named:
    """Return what one example contributes."""
    if isinstance(style, Flat):
        bound = clip if style.bound is None else style.bound
        factor = clip / max(bound, length(gradient))
        return {name: part * factor for name, part in gradient.items()}
    if isinstance(style, Automatic):
        factor = clip / (length(gradient) + style.gamma)
        return {name: part * factor for name, part in gradient.items()}
    assert isinstance(style, PerLayer)
    assert style.groups is None
    assert style.weights is None
    layers = {name.rpartition(".")[0] for name in gradient}
    share = clip / math.sqrt(len(layers))
    found: Named = {}
    for layer in layers:
        own = {name: part for name, part in gradient.items() if name.rpartition(".")[0] == layer}
        factor = share / max(share, length(own))
        found.update({name: part * factor for name, part in own.items()})
    return found


def summed(gradients: list[Named], style: Style, clip: float, like: nn.Module) -> Named:
    """Return the clipped sum."""
    total = {
        name: torch.zeros_like(p, dtype=torch.float64)
        for name, p in like.named_parameters()
        if p.requires_grad
    }
    for gradient in gradients:
        for name, part in clipped(gradient, style, clip).items():
            total[name] = total[name] + part
    return total


def ticket() -> SampleTicket:
    """Return a fresh sample's ticket."""
    return SampleTicket(SamplerKind.POISSON, 0.1, secret=True)


def engine(
    model: nn.Module, loss: Loss, clipping: Clipping, entropy: Entropy | None = None
) -> ClippingEngine:
    """Return an engine; dropout repeats from one to the next."""
    return ClippingEngine(model, loss, clipping, InsecureSeed(3) if entropy is None else entropy)


def as_named(result: ClippedSum) -> Named:
    """Return a copy of a sum by parameter, tables written out: engines reuse their memory."""
    (chunk,) = result.bounded.chunks
    return {name: t.to_dense() if t.is_sparse else t.clone() for name, t in chunk.items()}


def as_vector(result: ClippedSum) -> Tensor:
    """Return a sum as one vector."""
    return torch.cat([part.reshape(-1) for part in as_named(result).values()])


def clip_sum(
    model: nn.Module,
    loss: Loss,
    batch: Any,
    clipping: Clipping,
    expecting: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
) -> ClippedSum:
    """Sum a batch with a fresh engine."""
    with expecting():
        return engine(model, loss, clipping)(batch, ticket())


def warnings_of(case: Case) -> Callable[[], AbstractContextManager[Any]]:
    """Return what a case is known to be warned of; anything else is an error."""
    if case.falls_back is not None:
        return lambda: pytest.warns(DitherWarning, match=str(case.falls_back))
    if case.slow is not None:
        return lambda: pytest.warns(DitherWarning, match=f"no rule for {case.slow}")
    return contextlib.nullcontext
