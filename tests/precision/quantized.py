"""Quantised models and their per-example gradients, by book-keeping and by plain autograd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.clipping import oracle
from tests.clipping.zoo import CASES, Case
from torch import Tensor, nn

from dither.clipping import bookkeeping
from dither.clipping.batches import as_batch
from dither.clipping.gradients import Gradients, Inventory
from dither.clipping.loss import ModelLoss
from dither.clipping.randomness import secret_generators
from dither.precision.layers import Layer, find_layers
from dither.precision.loss import QuantizedLoss
from dither.precision.recipe import Recipe, parse_recipe

ROWS = 7
NEAREST = "weights=int4,activations=int4,gradients=int4"
# Every format, both roundings, every kind of scale, and operands that are left as they are.
RECIPES = {
    "bf16": "bf16",
    "bf16-stochastic": "bf16:stochastic",
    "fp8": "fp8",
    "fp8-stochastic": "fp8:stochastic",
    "int8": "int8",
    "int8-tensor": "int8-tensor",
    "int4": NEAREST,
    "int4-stochastic": "int4:stochastic",
    "mxfp8": "mxfp8",
    "mxfp4": "mxfp4",
    "luq": "luq",
    "luq-fp4": "luq-fp4",
    "luq-fp4-nearest": "luq-fp4:nearest",
    "weights": "weights=fp4_e2m1:stochastic:channel",
    "activations": "activations=int4:nearest:example",
    "gradients": "gradients=luq-fp4:stochastic:example",
}
# A case of the clipping suite's zoo for each way in which a weight meets examples.
KINDS = (
    "linear_sequence",
    "linear_images",
    "linear_time_first",
    "linear_folded",
    "linear_bias_only",
    "linear_frozen_bias",
    "frozen_below",
    "frozen_above",
    "matmul",
    "addmm",
    "lora",
    "conv1d_same",
    "conv2d_strided",
    "conv2d_grouped",
    "conv2d_depthwise",
    "conv2d_pointwise",
    "conv2d_reflect",
    "conv3d_dilated",
    "conv_transpose1d_strided",
    "conv_transpose2d_grouped",
    "conv_frames",
    "cnn",
    "embedding_padding",
    "embedding_sparse",
    "bag_padding_mean",
    "bag_weighted",
    "positions",
    "positions_expanded",
    "tied_embedding",
    "attention_time_first_weights",
    "attention_batch_first",
    "attention_separate",
    "encoder_layer",
)


@dataclass(frozen=True)
class Quantized:
    """A model all of whose layers run in low precision.

    Attributes:
        model: The model.
        loss: With all layers chosen.
        batch: Examples.
    """

    model: nn.Module
    loss: QuantizedLoss
    batch: Any

    def gradients(self, batch: Any = None, seed: int = 0) -> Gradients:
        """Return a chunk's per-example gradients by book-keeping."""
        whole = as_batch(self.batch if batch is None else batch)
        chunk = whole.chunk(0, whole.rows, whole.rows)
        inventory = Inventory.of(self.model)
        with secret_generators(torch.device("cpu"), seed):
            return bookkeeping.differentiate(self.model, self.loss, chunk, inventory)


def all_chosen(loss: ModelLoss, model: nn.Module, recipe: Recipe) -> QuantizedLoss:
    """Return the loss with every layer in low precision; bare matrices are named as layers."""
    bare = [
        Layer(name, "linear", name, tuple(parameter.shape))
        for name, parameter in model.named_parameters()
        if "." not in name and parameter.ndim == 2
    ]
    quantised = QuantizedLoss(loss, model, recipe, find_layers(model) or bare)
    quantised.choose([layer.name for layer in quantised.layers])
    return quantised


def of_zoo(name: str, recipe: str, dtype: torch.dtype = torch.float64) -> Quantized:
    """Return a case of the clipping suite's zoo."""
    case: Case = CASES[name]
    model = case.model(dtype)
    loss = all_chosen(case.loss, model, parse_recipe(RECIPES.get(recipe, recipe)))
    return Quantized(model, loss, as_type(case.batch(ROWS), dtype))


def as_type(batch: Any, dtype: torch.dtype) -> Any:
    """Return a batch whose numbers are of this type."""

    def changed(leaf: Tensor) -> Tensor:
        return leaf.to(dtype) if leaf.is_floating_point() else leaf

    return torch.utils._pytree.tree_map(changed, batch)


def quantisable() -> list[str]:
    """Return the cases of the zoo that have a layer for low precision."""
    return [name for name, case in CASES.items() if find_layers(case.model())]


def held(monkeypatch: pytest.MonkeyPatch, level: float) -> None:
    """Make stochastic rounding draw the same number always: alone and together then agree."""

    def constant(like: Tensor) -> Tensor:
        return torch.full_like(like, level)

    monkeypatch.setattr(torch, "rand_like", constant)


def relative(found: oracle.Named, wanted: oracle.Named) -> float:
    """Return how far two gradients are apart, in lengths of the second."""
    off = {key: found[key] - value for key, value in wanted.items()}
    return oracle.length(off) / max(oracle.length(wanted), 1e-300)


def rows_of(gradients: Gradients, row: int, model: nn.Module) -> oracle.Named:
    """Return one example's gradient by parameter."""
    found: oracle.Named = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            form = gradients.forms.get(name)
            flat = torch.zeros_like(parameter) if form is None else form.dense()[row].detach()
            found[name] = flat.reshape(parameter.shape).double()
    return found
