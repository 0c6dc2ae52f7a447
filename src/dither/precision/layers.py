"""The layers of a model that can run in low precision: who they are, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import UninitializedParameter
from torch.utils._pytree import tree_leaves

from dither.clipping.gradients import Loss, as_written, is_compiled
from dither.clipping.loss import ModelLoss, losses_of
from dither.errors import ModelError
from dither.precision.uses import Use, Uses

Kind: TypeAlias = Literal["linear", "convolution", "embedding", "attention"]
_IN_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class Layer:
    """A weight that a layer multiplies by, or looks up.

    Attributes:
        name: Path of the module that has this one weight, else path of the parameter.
        kind: ``attention`` is a projection of `torch.nn.MultiheadAttention`.
        parameter: Path of the parameter, as ``model.named_parameters()`` has it.
        shape: Of the parameter.
    """

    name: str
    kind: Kind
    parameter: str
    shape: tuple[int, ...]


def find_layers(model: nn.Module) -> tuple[Layer, ...]:
    """Return the layers of a model that low precision knows, in the model's own order.

    These are linear layers (transformers' ``Conv1D`` too), convolutions, plain and transposed,
    embedding tables and bags, and the projections of `torch.nn.MultiheadAttention`. A weight that
    several modules share is one layer, under its first name, and runs in low precision wherever it
    is used. Frozen layers are among them: they are multiplied by as well. Normalisation, recurrent
    layers and bare parameters are not.

    Args:
        model: Any; a `DistributedDataParallel` or compiled one is looked into.

    Raises:
        ModelError: A lazy layer, or weights that are spread over ranks as DTensors.

    Example:
        >>> from torch import nn
        >>> [layer.name for layer in find_layers(nn.Sequential(nn.Linear(4, 3), nn.ReLU()))]
        ['0']
    """
    found: list[Layer] = []
    seen: set[int] = set()
    for path, module in unwrapped(model).named_modules():
        for own, kind in _weights(module, path):
            parameter = module._parameters.get(own)  # noqa: SLF001 - a parametrised one is not there
            if parameter is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            whole = f"{path}.{own}" if path else own
            _require_plain(parameter, whole)
            name = path if path and own == "weight" else whole
            found.append(Layer(name, kind, whole, tuple(parameter.shape)))
    return tuple(found)


def _weights(module: nn.Module, path: str) -> Iterator[tuple[str, Kind]]:
    if isinstance(module, nn.MultiheadAttention):
        yield from ((own, "attention") for own in _IN_ATTENTION)
    elif isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        yield "weight", "attention" if path.endswith("out_proj") else "linear"
    elif isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
        yield "weight", "linear"
    elif isinstance(module, _ConvNd):
        yield "weight", "convolution"
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        yield "weight", "embedding"


def _require_plain(parameter: Tensor, name: str) -> None:
    if isinstance(parameter, UninitializedParameter):
        raise ModelError(
            expected="parameters that exist before training",
            got=f"a lazy layer with '{name}'",
            fix="run one batch of made-up data through the model first",
        )
    if type(parameter).__name__ == "DTensor" or _is_dtensor(parameter):
        raise ModelError(
            expected="whole weights on each rank for low precision",
            got=f"a DTensor at '{name}', as FSDP2's fully_shard makes them",
            fix="leave precision out with fully_shard, or train with DistributedDataParallel",
        )


def _is_dtensor(parameter: Tensor) -> bool:
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor  # noqa: PLC0415 - takes a second to load

    return isinstance(parameter, DTensor)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return what `DistributedDataParallel` and `torch.compile` have wrapped."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def parameter_of(model: nn.Module, layer: Layer) -> Tensor:
    """Return a layer's weight as the model has it now: `torch.func` puts others in its place.

    Raises:
        ModelError: The model is another one.
    """
    path, _, own = layer.parameter.rpartition(".")
    try:
        owner = unwrapped(model).get_submodule(path)
    except AttributeError:
        owner = None
    found = None if owner is None else getattr(owner, own, None)
    if not isinstance(found, Tensor) or tuple(found.shape) != layer.shape:
        raise ModelError(
            expected=f"the model whose layers were listed, with '{layer.parameter}' {layer.shape}",
            got="none of that name" if found is None else f"one of shape {_shape(found)}",
            fix="make the QuantizedLoss anew after changing the model",
        )
    return found


def _shape(found: object) -> object:
    return tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__


def measure_flops(model: nn.Module, loss: Loss, batch: Any) -> dict[str, float]:
    """Return the forward cost of each layer, per example, by one forward pass without gradients.

    A multiplication and an addition are two operations; a look-up in a table is none. Shapes alone
    count, so a batch of zeros will do, and none of the user's records is needed.

    Args:
        model: The model; it runs in evaluation mode.
        loss: Its loss, quantised or not.
        batch: At least one example, as the loss takes it.

    Returns:
        Operations by name of layer, for all of `find_layers`; zero for what does not run.
    """
    layers = find_layers(model)
    rows = _rows(batch)
    total = dict.fromkeys((layer.name for layer in layers), 0.0)
    names = {id(parameter_of(model, layer)): layer.name for layer in layers}

    def count(use: Use, run: Callable[[], Any]) -> Any:
        output = run()
        total[names[use.weight_id]] += use.flops(output) / rows
        return output

    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        watched = as_written(compiled=is_compiled(model))
        with torch.no_grad(), watched, Uses(names, count):
            losses_of(model, plain_loss(loss), batch)
    finally:
        for module, training in modes:
            module.training = training
    return total


def plain_loss(loss: Loss) -> Loss:
    """Return a loss without its quantisation, if it has any."""
    within = loss.within if isinstance(loss, ModelLoss) else None
    return loss if within is None else within


def _rows(batch: Any) -> int:
    leaves = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
    rows = leaves[0].shape[0] if leaves and leaves[0].ndim else 0
    if rows < 1:
        raise ModelError(
            expected="a batch of at least one example, to count operations by",
            got=f"{type(batch).__name__} with {rows} rows",
            fix="pass tensors of zeros in the shape of a batch: values do not count",
        )
    return int(rows)
