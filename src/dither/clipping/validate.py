"""Refuse what mixes examples: its per-example gradients do not exist."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from dither.clipping.clipping import Clipping
from dither.clipping.gradients import trainable
from dither.clipping.styles import Automatic, Flat, PerLayer, Squares, Style
from dither.errors import ConfigError, ModelError


def check_factors(
    clipping: Clipping, factors: Squares, squares: dict[str, Tensor], counted: Tensor
) -> None:
    """Refuse factors of a user's style that leave a contribution longer than C.

    Args:
        clipping: C and the style.
        factors: By parameter and example.
        squares: Squared norms, likewise.
        counted: Which examples count.

    Raises:
        ConfigError: They do.
    """
    if type(clipping.style) in {Flat, PerLayer, Automatic}:
        return
    parts = [factors[name].square() * squares[name] for name in squares]
    longest = torch.where(counted, torch.stack(parts).sum(0), 0.0).max()
    if not float(longest) <= clipping.l2_clip**2 * (1.0 + 1e-9):
        raise ConfigError(
            expected=f"a style whose contributions have norms of at most {clipping.l2_clip:g}",
            got=f"{float(longest) ** 0.5:g} from {type(clipping.style).__name__}",
            fix="make sure that Σ factor²·‖g‖² over the parameters is at most l2_clip²",
        )


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


def check_style(style: Style, model: nn.Module, l2_clip: float) -> None:
    """Refuse a style that breaks its promise on made-up norms, before records are seen.

    Norms range over twelve decades, alone and in a batch of others. This cannot prove a style of
    the user's right; it finds those that scale wrongly or look across the batch.

    Args:
        style: The style.
        model: Its trainable parameters name the groups.
        l2_clip: C.

    Raises:
        ConfigError: A contribution would be longer than C, or depend on other examples.
    """
    names = list(trainable(model))
    sizes = torch.logspace(-6.0, 6.0, 13, dtype=torch.float64) * l2_clip
    shares = torch.arange(1.0, 1.0 + len(names), dtype=torch.float64)
    squares = {n: sizes.square() * w for n, w in zip(names, shares / shares.sum(), strict=True)}
    lengths = _lengths(style, squares, l2_clip)
    alone = [
        _lengths(style, {n: s[i : i + 1] for n, s in squares.items()}, l2_clip)
        for i in range(sizes.numel())
    ]
    if not bool((lengths <= l2_clip * (1.0 + 1e-9)).all()):  # a NaN is not below anything
        raise ConfigError(
            expected=f"a style whose contributions have norms of at most {l2_clip:g}",
            got=f"{float(lengths.max()):g} from {type(style).__name__}",
            fix="make sure that Σ factor²·‖g‖² over the parameters is at most l2_clip²",
        )
    if not torch.allclose(lengths, torch.cat(alone), rtol=1e-9, atol=0.0):
        raise ConfigError(
            expected="a style whose factors depend on one example alone",
            got=f"{type(style).__name__}, whose factors change with the rest of the batch",
            fix="take out statistics of the batch; make bounds of released values only",
        )


def _lengths(style: Style, squares: dict[str, Tensor], l2_clip: float) -> Tensor:
    factors = style.factors(squares, l2_clip)
    return torch.stack([factors[name].square() * squares[name] for name in squares]).sum(0).sqrt()
