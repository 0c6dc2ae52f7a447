"""Opacus (Yousefpour et al. 2109.12298) as a peer: its private step, in each of its modes.

Needs the ``[bench]`` extra; nothing else imports it. Where Opacus takes no such layer at all, or
only as gradients of every example at once, the peer gets the same function written in layers that
it takes best, with the same weights (`adapt`): its numbers are as good as its users can have them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dither.clipping.loss import PerExampleLoss

MODES = ("hooks", "functorch", "ew", "ghost")


def installed() -> bool:
    """Say whether the peer is there to be measured."""
    try:
        return importlib.util.find_spec("opacus") is not None
    except ValueError:  # taken out of this process by hand
        return False


class _Attention(nn.Module):
    """`nn.MultiheadAttention` for self-attention, as linear layers around the same kernel."""

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        width = original.embed_dim
        self.heads = original.num_heads
        self.inward = nn.Linear(width, 3 * width)
        self.outward = nn.Linear(width, width)
        values = original.state_dict()
        for layer, weight, bias in (
            (self.inward, "in_proj_weight", "in_proj_bias"),
            (self.outward, "out_proj.weight", "out_proj.bias"),
        ):
            layer.load_state_dict({"weight": values[weight], "bias": values[bias]})

    def forward(
        self, x: Tensor, *_: Tensor, is_causal: bool = False, **__: Any
    ) -> tuple[Tensor, None]:
        parts = self.inward(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
        return self.outward(mixed.transpose(1, 2).flatten(2)), None


class _MeanOfRows(nn.Module):
    """`nn.EmbeddingBag` in mode mean, as `nn.Embedding`, whose norms Opacus takes as ghosts."""

    def __init__(self, original: nn.EmbeddingBag) -> None:
        super().__init__()
        self.rows = nn.Embedding(original.num_embeddings, original.embedding_dim)
        self.rows.load_state_dict(original.state_dict())

    def forward(self, ids: Tensor) -> Tensor:
        return self.rows(ids).mean(1)  # type: ignore[no-any-return]


def adapt(model: nn.Module) -> nn.Module:
    """Replace, in place, the layers that Opacus cannot take, by equals with the same weights.

    Self-attention by linear layers, embedding bags (one mean a row) by an embedding and a mean,
    `nn.LSTM` by Opacus's own `DPLSTM`, as its `ModuleValidator.fix` does.
    """
    from opacus.layers import DPLSTM  # noqa: PLC0415 - an extra, and slow to import

    for name, child in model.named_children():
        if isinstance(child, nn.MultiheadAttention):
            setattr(model, name, _Attention(child))
        elif isinstance(child, nn.EmbeddingBag):
            setattr(model, name, _MeanOfRows(child))
        elif isinstance(child, nn.LSTM):
            replaced = DPLSTM(child.input_size, child.hidden_size, batch_first=child.batch_first)
            replaced.load_state_dict(child.state_dict())
            setattr(model, name, replaced)
        else:
            adapt(child)
    return model


class _Criterion:
    """A loss in the shape that Opacus expects: with a ``reduction`` that it may switch off."""

    def __init__(self, loss_fn: PerExampleLoss) -> None:
        self.loss_fn = loss_fn
        self.reduction = "mean"

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        losses: Tensor = self.loss_fn(output, target)
        return losses.mean() if self.reduction == "mean" else losses


def private_step(
    mode: str,
    model: nn.Module,
    loss_fn: PerExampleLoss,
    data: tuple[Tensor, Tensor],
    *,
    noise_multiplier: float = 1.0,
) -> Callable[[], None]:
    """Return a function that makes one of Opacus's private steps on a ready batch.

    Flat clipping at 1, plain SGD with its defaults, noise by `torch.normal` (``secure_mode`` off,
    as it ships), no Poisson sampling: forward, loss, backward, step, zero_grad.

    Args:
        mode: ``grad_sample_mode``, one of `MODES`.
        model: Trained in place; its layers may be replaced.
        loss_fn: One loss an example.
        data: ``(inputs, targets)``.
        noise_multiplier: Noise over the clip bound.
    """
    import opacus  # noqa: PLC0415 - an extra, and slow to import

    with _quiet():
        adapted = adapt(model).train()
        criterion: Any = _Criterion(loss_fn)
        made = opacus.PrivacyEngine(accountant="rdp").make_private(
            module=adapted,
            optimizer=torch.optim.SGD(adapted.parameters()),
            criterion=criterion,
            data_loader=DataLoader(TensorDataset(*data), batch_size=data[0].shape[0]),
            noise_multiplier=noise_multiplier,
            max_grad_norm=1.0,
            poisson_sampling=False,
            grad_sample_mode=mode,
        )
    module, optimizer = made[0], made[1]
    criterion = made[2] if mode == "ghost" else criterion
    inputs, target = data

    def step() -> None:
        with _quiet():
            criterion(module(inputs), target).backward()
            optimizer.step()
            optimizer.zero_grad()

    return step


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the peer's own warnings (no secure generator, backward hooks) off the screen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def bounded_memory(share: float = 0.8) -> Iterator[None]:
    """Make allocations beyond a share of the free memory fail, so that the process survives them.

    Per-example gradients of an embedding table need tens of gigabytes, and the system would end
    the whole bench. Does nothing on Windows.
    """
    if sys.platform == "win32":
        yield
        return
    import resource  # noqa: PLC0415 - not on Windows

    before = resource.getrlimit(resource.RLIMIT_AS)
    wanted = psutil.Process().memory_info().vms + int(share * psutil.virtual_memory().available)
    bounds = [wanted, *(bound for bound in before if bound != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
