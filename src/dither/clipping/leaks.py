"""State that a model or a loss keeps from one example to the next: found and refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dither.errors import ModelError


def check_no_state(model: nn.Module, loss_fn: Callable[..., Any]) -> None:
    """Refuse a model or loss that kept a tensor of the batch it has just seen.

    A kept tensor would carry one example into the gradient of another, so clipping each gradient
    would no longer bound what one record does. Tensors made under `vmap` are wrapped, which shows.

    Raises:
        ModelError: Names where the tensor is kept.
    """
    for where, value in _kept(model, loss_fn):
        if isinstance(value, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value):  # noqa: SLF001
            raise ModelError(
                expected="a model and a loss that keep nothing of the examples they see",
                got=f"a tensor of the batch kept in {where}",
                fix="do not store tensors on modules, losses or outer variables in forward",
            )


def _kept(model: nn.Module, loss_fn: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if not key.startswith("_"):
                yield from _leaves(f"'{name}.{key}'".replace("'.", "'"), value)
    for key, value in getattr(loss_fn, "__dict__", {}).items():
        yield from _leaves(f"the loss's '{key}'", value)
    for cell in getattr(loss_fn, "__closure__", None) or ():
        yield from _leaves("a variable of the loss", cell.cell_contents)


def _leaves(where: str, value: Any) -> Iterator[tuple[str, Any]]:
    for leaf in tree_leaves(value):
        yield where, leaf
