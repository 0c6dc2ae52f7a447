"""State that a model or a loss keeps from one example to the next: found and refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dither.clipping.loss import ModelLoss
from dither.errors import ModelError


def kept_tensors(model: nn.Module, loss_fn: object) -> dict[str, list[Tensor]]:
    """Return the tensors that a model and a loss hold beside parameters, by place."""
    found: dict[str, list[Tensor]] = {}
    for where, value in _kept(model, loss_fn):
        if isinstance(value, Tensor):
            found.setdefault(where, []).append(value)
    return found


def held_tensors(model: nn.Module) -> list[Tensor]:
    """Return the tensors that modules hold as plain attributes, such as tables and indices."""
    found = [value for _, value in _attributes(model) if isinstance(value, Tensor)]
    return [tensor for tensor in found if not tensor.requires_grad]


def check_nothing_new(
    before: dict[str, list[Tensor]], after: dict[str, list[Tensor]], constants: frozenset[int]
) -> None:
    """Refuse a model or loss that kept a tensor of the batch it has just seen.

    A kept tensor would carry one example into the gradient of another, so clipping each gradient
    would no longer bound what one record does. Caches of constants pass: no example is in them.

    Args:
        before: What was kept before the batch.
        after: What is kept now.
        constants: Identities of tensors that no example touched.

    Raises:
        ModelError: Names where the tensor is kept.
    """
    for where, tensors in after.items():
        known = constants | {id(tensor) for tensor in before.get(where, [])}
        if any(id(tensor) not in known for tensor in tensors):
            raise _leak(where)


def check_no_wrapped(model: nn.Module, loss_fn: object) -> None:
    """Refuse kept tensors made under `vmap`, which are wrapped and show it.

    Raises:
        ModelError: Names where the tensor is kept.
    """
    for where, value in _kept(model, loss_fn):
        if isinstance(value, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value):  # noqa: SLF001
            raise _leak(where)


def _leak(where: str) -> ModelError:
    return ModelError(
        expected="a model and a loss that keep nothing of the examples they see",
        got=f"a tensor of the batch kept in {where}",
        fix="do not store tensors on modules, losses or outer variables in forward",
    )


# What nn.Module itself keeps.
_OWN = frozenset(vars(nn.Module()))


def _attributes(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        held = {key: value for key, value in vars(module).items() if key not in _OWN}
        # A buffer may be another tensor now, which no version tells.
        for key, value in {**held, **dict(module.named_buffers(recurse=False))}.items():
            yield from _leaves(f"'{name}.{key}'".replace("'.", "'"), value)


def _kept(model: nn.Module, loss_fn: object) -> Iterator[tuple[str, Any]]:
    yield from _attributes(model)
    within: object = loss_fn
    while within is not None:
        yield from _of_loss(within)
        within = within.within if isinstance(within, ModelLoss) else None


def _of_loss(loss_fn: object) -> Iterator[tuple[str, Any]]:
    function = getattr(loss_fn, "function", loss_fn)
    for owner in (function, getattr(function, "__self__", None)):
        for key, value in getattr(owner, "__dict__", {}).items():
            yield from _leaves(f"the loss's '{key}'", value)
    for cell in getattr(function, "__closure__", None) or ():
        yield from _leaves("a variable of the loss", cell.cell_contents)


def _leaves(where: str, value: Any) -> Iterator[tuple[str, Any]]:
    for leaf in tree_leaves(value):
        yield where, leaf
