"""Runs some layers of an unchanged model in low precision for a while."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dither.clipping.gradients import as_written, is_compiled
from dither.errors import ConfigError
from dither.precision import rules  # noqa: F401 - registers itself with clipping
from dither.precision.functions import quantized_bag, quantized_product, quantized_table
from dither.precision.layers import Layer, find_layers, parameter_of
from dither.precision.recipe import Recipe
from dither.precision.uses import Use, Uses

_HALF = frozenset({torch.float16, torch.bfloat16})


@contextmanager
def precision_mode(
    model: nn.Module,
    names: Collection[str] | None,
    recipe: Recipe,
    layers: Iterable[Layer] | None = None,
) -> Iterator[None]:
    """Run layers of a model in low precision: all that happens inside, forward and back.

    Parameters stay what they are, in float32; they are rounded where they are used. The backward
    pass may come after the context. Compiled models run as they were written.

    Args:
        model: The model that is called inside.
        names: Names of layers, as `find_layers` gives them; None for all.
        recipe: What is rounded to what.
        layers: Those to choose from; `find_layers` of the model by default.

    Raises:
        ConfigError: There is no layer of a name.
        ModelError: The model is not the one whose layers were listed.

    Example:
        >>> import torch
        >>> from dither.precision.recipe import parse_recipe
        >>> model = torch.nn.Linear(4, 3)
        >>> with precision_mode(model, None, parse_recipe("int8")):
        ...     output = model(torch.ones(2, 4))
    """
    known = tuple(find_layers(model) if layers is None else layers)
    chosen = known if names is None else named_layers(known, names)
    with quantising(model, chosen, recipe):
        yield


@contextmanager
def quantising(model: nn.Module, layers: Collection[Layer], recipe: Recipe) -> Iterator[None]:
    """Run every use of these layers' weights in low precision.

    Args:
        model: Theirs; `torch.func` may have put others in its parameters' place.
        layers: Of `find_layers`.
        recipe: What is rounded to what.

    Raises:
        ModelError: The model is not theirs.
    """
    if not layers:
        yield
        return
    weights = [parameter_of(model, layer) for layer in layers]

    def quantise(use: Use, _run: Callable[[], Any]) -> Tensor:
        return quantised(use, recipe)

    # Compiled code hides the functions that weights go through.
    with as_written(compiled=is_compiled(model)), Uses(map(id, weights), quantise):
        yield


@contextmanager
def as_it_trains(model: nn.Module) -> Iterator[None]:
    """Run a model without gradients on the functions that it runs on with them.

    In evaluation mode without gradients PyTorch fuses the layers of a transformer, and leaves
    padded places out; the quantised model runs function by function. Their losses would differ by
    far more than rounding does.

    Args:
        model: The model that is called inside.
    """

    def nothing(_: Use, run: Callable[[], Any]) -> Any:
        return run()

    # Fused layers, as PyTorch has them, give way to any mode that wants to see functions.
    with as_written(compiled=is_compiled(model)), Uses((), nothing):
        yield


def quantised(use: Use, recipe: Recipe) -> Tensor:
    """Return what a use of a weight gives in low precision; never in autocast's."""
    with torch.autocast(use.x.device.type, enabled=False):
        if use.product is not None:
            found = quantized_product(use.x, use.weight, use.bias, use.product, recipe)
        elif use.look == "table":
            found = quantized_table(use.x, use.weight, use.call, recipe)
        else:
            found = quantized_bag(use.x, use.weight, use.call, recipe)
    output: Tensor = found
    # The next layer of a frozen model in half precision takes nothing wider.
    half = use.weight.dtype in _HALF and not torch.is_autocast_enabled(use.x.device.type)
    return output.to(use.weight.dtype) if half else output


def named_layers(layers: tuple[Layer, ...], names: Collection[str]) -> tuple[Layer, ...]:
    """Return layers by name, in the model's order.

    Raises:
        ConfigError: There is no layer of a name.
    """
    by_name: Mapping[str, Layer] = {layer.name: layer for layer in layers}
    unknown = [name for name in names if name not in by_name]
    if unknown or isinstance(names, str):
        listed = ", ".join(by_name)
        raise ConfigError(
            expected=f"names of layers: {listed[:400]}{'...' if len(listed) > 400 else ''}",
            got=repr(names) if isinstance(names, str) else ", ".join(map(repr, unknown[:5])),
            fix="take them from dither.precision.layers.find_layers(model)",
        )
    wanted = frozenset(names)
    return tuple(layer for layer in layers if layer.name in wanted)
