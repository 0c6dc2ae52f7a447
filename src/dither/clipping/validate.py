"""Refuse what mixes examples: its per-example gradients do not exist."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from dither.errors import ModelError


def check_model(model: nn.Module) -> None:
    """Refuse models whose output for one example depends on the others in the batch.

    Raises:
        ModelError: Names the layer and the fix.
    """
    for name, module in model.named_modules():
        where = f"{type(module).__name__} at '{name}'" if name else type(module).__name__
        if isinstance(module, _BatchNorm) and module.training:
            raise ModelError(
                expected="layers that treat every example by itself",
                got=f"{where}, which normalises over the batch",
                fix="use nn.GroupNorm, or put a pre-trained one in eval() mode and freeze it",
            )
        if isinstance(module, _InstanceNorm) and module.track_running_stats and module.training:
            raise ModelError(
                expected="no buffers that records update",
                got=f"{where} with track_running_stats=True",
                fix="set track_running_stats=False",
            )
        if isinstance(module, nn.LazyLinear) or hasattr(module, "initialize_parameters"):
            raise ModelError(
                expected="parameters that exist before training",
                got=f"{where}, a lazy layer",
                fix="run one batch of made-up data through the model first",
            )
    _check_precision(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(
            expected="at least one trainable parameter",
            got="none",
            fix="set requires_grad on what should be trained",
        )


def _check_precision(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype not in {torch.float32, torch.float64}:
            raise ModelError(
                expected="trainable parameters in float32 or float64",
                got=f"{parameter.dtype} at '{name}'",
                fix="call model.float(): rounding in fewer bits would exceed the numeric slack",
            )
