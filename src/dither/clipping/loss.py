"""Losses that give one number per example."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dither.errors import ModelError
from dither.privacy.events import Relation

_WIDE = {torch.float32, torch.float64}

PerExampleLoss = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class ModelLoss:
    """A loss that calls the model itself: as often as it likes, with whatever it needs.

    Attributes:
        function: ``(model, batch) -> losses [batch, ...]``, or several losses in a list, tuple or
            dict, which are added up. ``batch`` is what the loader's collate function made.

    Example:
        >>> import torch
        >>> loss = ModelLoss(
        ...     lambda model, batch: torch.nn.functional.cross_entropy(
        ...         model(**batch["inputs"]).logits, batch["labels"], reduction="none"
        ...     )
        ... )
    """

    function: Callable[[nn.Module, Any], Any]

    @property
    def within(self) -> PerExampleLoss | ModelLoss | None:
        """The loss that this one calls, if it is made around another."""
        return None

    def check_relation(self, relation: Relation) -> None:
        """Refuse a neighbouring relation under which the loss promises nothing; by default none.

        Args:
            relation: Of the run.

        Raises:
            ConfigError: It is refused.
        """


def per_example(
    loss_fn: Callable[[Any, Any], Any] | ModelLoss,
) -> PerExampleLoss | ModelLoss:
    """Return the loss with its reduction over the batch taken away.

    A mean divided by a batch-dependent count (class weights, padding) would let one record change
    the weight of all others; and on a batch of one, weights in a weighted mean cancel silently.

    Args:
        loss_fn: A `torch.nn` criterion with any ``reduction``, a callable
            ``(output, target) -> losses [batch]``, or a `ModelLoss`.

    Raises:
        ModelError: A module whose reduction cannot be changed, or nothing that can be called.
    """
    function = loss_fn.function if isinstance(loss_fn, ModelLoss) else loss_fn
    if not callable(function):
        raise ModelError(
            expected="a loss: a criterion, a function (output, target) -> losses, or a ModelLoss",
            got=repr(function),
            fix="pass loss_fn=torch.nn.CrossEntropyLoss(), for instance",
        )
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


def losses_of(model: nn.Module, loss_fn: PerExampleLoss | ModelLoss, data: Any) -> Any:
    """Run the model and its loss on a batch.

    Args:
        model: The model.
        loss_fn: As `per_example` gives it.
        data: ``(input, ..., target)``, or whatever a `ModelLoss` takes.

    Raises:
        ModelError: The batch has another form.
    """
    if isinstance(loss_fn, ModelLoss):
        return _own_loss(loss_fn, model, data)
    if not isinstance(data, list | tuple) or len(data) < 2:
        raise ModelError(
            expected="batches (input, ..., target) of tensors with one row an example",
            got=type(data).__name__,
            fix="give the loader a collate_fn that returns (inputs, targets), or pass "
            "loss_fn=ModelLoss(lambda model, batch: ...)",
        )
    *inputs, target = data
    try:
        output = model(*inputs)
    except TypeError as error:
        raise ModelError(
            expected="batches (input, ..., target) with the inputs that the model takes",
            got=f"{error} (from {len(inputs)} inputs and a target)",
            fix="let the collate_fn return the model's own inputs and then the target",
        ) from error
    return loss_fn(output, target)


def _own_loss(loss_fn: ModelLoss, model: nn.Module, data: Any) -> Any:
    try:
        return loss_fn.function(model, data)
    except KeyError as error:
        if not isinstance(data, Mapping) or error.args[0] in data:
            raise  # the model's own
        raise ModelError(
            expected=f"a batch with the entry {error} that the ModelLoss reads",
            got=f"one of {', '.join(map(str, data))}",
            fix="make collate_fn and ModelLoss agree on the names",
        ) from error


def by_rows(losses: Any, rows: int) -> Tensor:
    """Return one loss an example, ``[rows]``.

    Args:
        losses: Tensor, or several in lists, tuples and dicts, which are added up. Axes after the
            first (tokens, pixels) are summed: they belong to the example; so do several entries a
            row where the first axis is a multiple of the rows.
        rows: Number of examples.

    Raises:
        ModelError: It is a scalar: it averages over the batch.
    """
    leaves = tree_leaves(losses)
    for leaf in leaves or [losses]:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] % rows:
            shape = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
            raise ModelError(
                expected="one loss an example, shape [batch, ...]",
                got=f"{shape} for a batch of {rows}",
                fix="use reduction='none', as in functools.partial(F.cross_entropy, "
                "reduction='none')",
            )
    first: Tensor = leaves[0]
    if len(leaves) == 1 and first.shape == (rows,) and first.dtype in _WIDE:
        return first
    wide = [leaf if leaf.dtype == torch.float64 else leaf.float() for leaf in leaves]
    return torch.stack([leaf.reshape(rows, -1).sum(1) for leaf in wide]).sum(0)
