"""Released gradients and the optimizer: what stands in ``p.grad``, and for how long."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dither.errors import ModelError


def apply_gradient(model: nn.Module, optimizer: Optimizer, gradients: Mapping[str, Tensor]) -> None:
    """Let the optimizer step on released gradients, and clear them.

    They become ``p.grad`` as they are, views of one memory; only those of another type are copied.
    """
    clear_gradients(optimizer)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gradient = gradients[name]
            same = gradient.dtype is parameter.dtype
            parameter.grad = gradient if same else gradient.to(parameter.dtype)
    optimizer.step()
    clear_gradients(optimizer)


def clear_gradients(optimizer: Optimizer) -> None:
    """Forget gradients: what `zero_grad` does, without its detours."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def gradient_dtype(model: nn.Module) -> torch.dtype:
    """Return the type to release gradients in: float64 where a parameter has it, else float32."""
    wide = any(p.dtype == torch.float64 for p in model.parameters() if p.requires_grad)
    return torch.float64 if wide else torch.float32


def check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse an optimizer that would step on gradients that no release made.

    Raises:
        ModelError: It holds parameters that are not the model's.
    """
    known = {id(parameter) for parameter in model.parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if not all(id(parameter) in known for parameter in held):
        raise ModelError(
            expected="an optimizer over this model's parameters",
            got="one with parameters of something else",
            fix="build it from model.parameters(), after moving the model to its device",
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ModelError(
            expected="an optimizer that takes one gradient a step",
            got="LBFGS, which evaluates the loss again",
            fix="use SGD or Adam",
        )
