"""Per-example gradients by `torch.func`, slow and plain.

The oracle that book-keeping is tested against, and the way out for models it cannot split.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.utils._pytree import tree_map

from dither.clipping.forms import Dense, Form
from dither.clipping.gradients import Chunk, Gradients, Inventory, Loss
from dither.clipping.leaks import check_no_wrapped
from dither.clipping.loss import by_rows, losses_of
from dither.errors import ModelError

# Told a parameter's name and its gradient.
Look: TypeAlias = Callable[[str, Tensor], None]


class _WithLoss(nn.Module):
    """Model and loss as one module, so that a loss may call the model as it likes."""

    def __init__(self, model: nn.Module, loss_fn: Loss) -> None:
        super().__init__()
        self.model = model
        self._loss_fn = loss_fn

    def forward(self, data: Any) -> Tensor:
        return by_rows(losses_of(self.model, self._loss_fn, data), 1).sum()


def differentiate(model: nn.Module, loss_fn: Loss, chunk: Chunk, inventory: Inventory) -> Gradients:
    """Return the per-example gradients of a chunk, all written out.

    Each example is run by itself (`vmap` over batches of one), so its gradient depends on no other
    example.

    Args:
        model: Its trainable parameters are differentiated.
        loss_fn: Per-example loss.
        chunk: The examples.
        inventory: Of the model.

    Raises:
        ModelError: The model or the loss cannot be taken example by example.
    """
    parameters = {f"model.{name}": p.detach() for name, p in inventory.parameters.items()}
    whole = _WithLoss(model, loss_fn)
    shared = {
        **{name: p.detach() for name, p in whole.named_parameters() if name not in parameters},
        **dict(whole.named_buffers()),
    }

    def loss_of_one(state: Mapping[str, Tensor], example: Any) -> Tensor:
        alone = tree_map(lambda leaf: leaf.unsqueeze(0), example)
        loss: Tensor = functional_call(whole, {**state, **shared}, (alone,))
        return loss

    mapped = vmap(grad_and_value(loss_of_one), in_dims=(None, 0), randomness="different")
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # it is the slow way
            gradients, losses = mapped(parameters, chunk.data)
    except ModelError:
        raise
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        raise _explain(error) from error
    check_no_wrapped(model, loss_fn)
    forms = {
        name.removeprefix("model."): Dense(gradient.reshape(chunk.rows, -1))
        for name, gradient in gradients.items()
    }
    size = sum(form.bytes for form in forms.values())
    return Gradients(forms=dict(forms), losses=losses.double(), bytes=size)


def alone(
    model: nn.Module, loss_fn: Loss, chunk: Chunk, inventory: Inventory
) -> tuple[dict[str, Tensor], Tensor]:
    """Return gradients by parameter, and the loss, of a chunk of one example, by plain autograd."""
    with torch.enable_grad(), inventory.eagerly():
        loss = by_rows(losses_of(model, loss_fn, chunk.data), 1).sum()
    if not loss.requires_grad:
        return {}, loss.detach()
    parameters = inventory.parameters
    try:
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    except RuntimeError as error:
        raise explain_backward(error) from error
    known = {
        name: gradient.to_dense()
        for name, gradient in zip(parameters, found, strict=True)
        if gradient is not None
    }
    return known, loss.detach()


def look_alone(
    model: nn.Module, loss_fn: Loss, chunk: Chunk, inventory: Inventory, look: Look
) -> Tensor:
    """Show the gradients of a chunk of one example, one parameter after the other.

    Args:
        model: Where layers are whole only while they compute, no more than one gradient is held.
        loss_fn: Its loss.
        chunk: One example.
        inventory: Of the model.
        look: Called with each parameter's name and gradient, where it has one.

    Returns:
        The loss.
    """
    if inventory.lockstep is None:
        found, loss = alone(model, loss_fn, chunk, inventory)
        for name, gradient in found.items():
            look(name, gradient)
        return loss
    with inventory.one_pass(), torch.enable_grad(), inventory.eagerly():
        loss = by_rows(losses_of(model, loss_fn, chunk.data), 1).sum()
        if loss.requires_grad:
            _backward_in_parts(loss, inventory.parameters, look)
    return loss.detach()


def _backward_in_parts(loss: Tensor, parameters: Mapping[str, nn.Parameter], look: Look) -> None:
    def arrived(name: str, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is not None:
            look(name, gradient.to_dense())

    handles = []
    for name, parameter in parameters.items():
        listen: Any = parameter.register_post_accumulate_grad_hook
        handles.append(listen(partial(arrived, name)))
    try:
        torch.autograd.backward(loss, inputs=list(parameters.values()))
    except RuntimeError as error:
        raise explain_backward(error) from error
    finally:
        for handle in handles:
            handle.remove()


def one_by_one(model: nn.Module, loss_fn: Loss, chunk: Chunk, inventory: Inventory) -> Gradients:
    """Return the per-example gradients of a chunk by plain autograd, an example at a time."""
    found, losses = [], []
    for row in range(chunk.rows):
        data = tree_map(lambda leaf, row=row: leaf[row : row + 1], chunk.data)
        gradients, loss = alone(model, loss_fn, Chunk(data, 1, 1), inventory)
        found.append(gradients)
        losses.append(loss.detach().double())
    forms: dict[str, Form] = {}
    for name, parameter in inventory.parameters.items():
        zero = torch.zeros_like(parameter)
        rows = [gradients.get(name, zero).detach().flatten() for gradients in found]
        forms[name] = Dense(torch.stack(rows))
    return Gradients(forms=forms, losses=torch.stack(losses))


def explain_backward(error: RuntimeError) -> Exception:
    """Return what to say of a failed backward pass."""
    if "use_reentrant" in str(error):
        return ModelError(
            expected="gradient checkpointing that leaves autograd its graph",
            got="torch.utils.checkpoint with use_reentrant=True",
            fix="pass use_reentrant=False",
        )
    if "recomputation" in str(error) or "recomputed" in str(error):
        return ModelError(
            expected="gradient checkpointing that computes the same again, where nothing watches",
            got="torch.utils.checkpoint around layers in low precision, or that differ otherwise",
            fix="turn gradient checkpointing off: batches are taken in chunks already",
        )
    return error


# What PyTorch says of things that cannot be taken example by example, and what to do about each.
_FIXES = {
    "saved tensor hooks": "turn gradient checkpointing off: batches are taken in chunks already",
    "setup_context": "turn gradient checkpointing off: batches are taken in chunks already",
    "Sparse": "use sparse=False: noise reaches every row anyway",
    "positional argument": "make batch items (input, ..., target), with the model's own inputs",
}


def _explain(error: Exception) -> ModelError:
    text = str(error)
    said = " ".join(text.split())[:200].rstrip(". ")
    fix = "replace the layer or in-place update that the message names"
    return ModelError(
        expected="a model and loss that work on one example, as a batch of one",
        got=f"{type(error).__name__}: {said}",
        fix=next((mend for sign, mend in _FIXES.items() if sign in text), fix),
    )
