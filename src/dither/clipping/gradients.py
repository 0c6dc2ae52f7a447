"""What every way of differentiating gives for one chunk of examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from dither.clipping.forms import Form
from dither.clipping.loss import ModelLoss, PerExampleLoss

Loss: TypeAlias = PerExampleLoss | ModelLoss


@dataclass(frozen=True)
class Chunk:
    """Examples that pass through the model together.

    Attributes:
        data: Batch structure with ``rows`` rows; those after ``real`` are padding.
        rows: Number of rows, the same for neighbouring data sets.
        real: Number of examples.
    """

    data: Any
    rows: int
    real: int


@dataclass(frozen=True)
class Gradients:
    """Per-example gradients of a chunk.

    Attributes:
        forms: By name of trainable parameter; absent where no gradient reaches it.
        losses: One an example.
        signature: Which functions met which parameters, and where examples were found there.
        slow: Functions without a rule of their own, with the parameters they took.
        bytes: Memory held by the forms.
        constants: Identities of tensors seen on the way that no example touched.
    """

    forms: dict[str, Form]
    losses: Float64[Tensor, " rows"]
    signature: tuple[object, ...] = ()
    slow: tuple[tuple[str, tuple[str, ...]], ...] = ()
    bytes: int = 0
    constants: frozenset[int] = frozenset()


# Gives the gradients of a chunk.
Differentiate: TypeAlias = Callable[[nn.Module, Loss, Chunk], Gradients]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return trainable parameters by name; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def eagerly(model: nn.Module) -> AbstractContextManager[Any]:
    """Return a context in which compiled models run as they were written.

    Compiled code hides the functions that parameters go through (docs/decisions/0017).
    """
    compiled = any(
        getattr(module, "_compiled_call_impl", None) or hasattr(module, "_orig_mod")
        for module in model.modules()
    )
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def squared_norms(
    gradients: Gradients, parameters: Mapping[str, Tensor]
) -> dict[str, Float64[Tensor, " rows"]]:
    """Return squared norms by parameter, zeros where no gradient reaches one."""
    zeros = torch.zeros_like(gradients.losses)
    return {
        name: gradients.forms[name].squared_norms() if name in gradients.forms else zeros
        for name in parameters
    }
