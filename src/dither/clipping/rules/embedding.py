"""Embedding tables: per-example gradients touch few rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dither.clipping.capture import Call, Capture
from dither.clipping.forms import Bags, Dense, Form, Rows
from dither.clipping.layout import find_layout
from dither.clipping.rules.common import steps
from dither.clipping.rules.generic import by_vmap
from dither.clipping.rules.registry import (
    register_expander,
    register_guard,
    register_rule,
)
from dither.errors import ModelError


@register_rule(F.embedding)
def embedding(capture: Capture, call: Call) -> Tensor:
    """The gradient of row v is the sum of b_t over the times t whose token is v."""
    given = call.bound()
    tokens, weight = given["input"], given["weight"]
    if capture.target(weight) is None:
        return by_vmap(capture, call)
    output: Tensor = F.embedding(tokens, weight, given["padding_idx"])
    layout = find_layout(output.shape[:-1], capture.rows)
    skip = _index(given["padding_idx"], weight)

    def make(gradient: Tensor) -> Form:
        places = layout.by_example(tokens).reshape(gradient.shape[0], -1)
        return grouped_rows(places, steps(gradient), weight.shape[0], skip)

    return capture.tap(call, output, layout, [(capture.target(weight), make)], inputs=[tokens])


@register_expander(F.embedding)
def constant_places(capture: Capture, call: Call) -> Tensor | None:
    """Record a look-up of the same places for each example, as positions often are."""
    tokens = call.bound()["input"]
    if tokens.ndim < 2 or tokens.shape[0] != capture.rows or capture.rows == 1:
        return None
    return embedding(capture, call)  # type: ignore[no-any-return]


@register_rule(F.embedding_bag)
def embedding_bag(capture: Capture, call: Call) -> Tensor:
    """Row v gets b times its weight in the bag."""
    given = call.bound()
    tokens, weight = given["input"], given["weight"]
    scales = given["per_sample_weights"]
    if tokens.ndim != 2 or given["mode"] == "max" or capture.target(weight) is None:
        return by_vmap(capture, call)
    output: Tensor = call.function(
        tokens,
        weight,
        mode=given["mode"],
        per_sample_weights=scales,
        padding_idx=given["padding_idx"],
    )
    layout = find_layout(output.shape[:1], capture.rows)
    skip = _index(given["padding_idx"], weight)

    def make(gradient: Tensor) -> Form:
        shares = torch.ones(tokens.shape, dtype=torch.float64) if scales is None else scales
        shares = shares.detach().to(tokens.device, torch.float64)
        if skip is not None:
            shares = torch.where(tokens == skip, 0.0, shares)
        if given["mode"] == "mean":
            counts = (tokens != skip).sum(1) if skip is not None else tokens.shape[1]
            shares = shares / torch.as_tensor(counts).clamp(min=1).reshape(-1, 1)
        flat = steps(gradient)
        values, places = layout.by_example(shares), layout.by_example(tokens)
        if flat.shape[1] == 1:
            rows = flat.shape[0]
            return bags(places.reshape(rows, -1), values.reshape(rows, -1), flat[:, 0], weight)
        entries = values[..., None].to(flat.dtype) * flat[:, :, None]  # several bags an example
        return grouped_rows(places.flatten(1), entries.flatten(1, 2), weight.shape[0], skip)

    makers = [(capture.target(weight), make)]
    return capture.tap(call, output, layout, makers, inputs=[tokens])


def bags(places: Tensor, weights: Tensor, values: Tensor, table: Tensor) -> Form:
    """Return one bag an example, equal places of one example added up.

    Args:
        places: Row of the table, ``[rows, entries]``.
        weights: Weight in the bag, zero for padding.
        values: Gradient of each bag, ``[rows, width]``.
        table: The parameter.
    """
    rows = values.shape[0]
    owners = torch.arange(rows, device=places.device)[:, None]
    keys, inverse = torch.unique((places * rows + owners).reshape(-1), return_inverse=True)
    total = weights.new_zeros(keys.shape[0]).index_add_(0, inverse, weights.reshape(-1))
    return Bags(keys % rows, keys // rows, total, values, table.shape[0])


def grouped_rows(places: Tensor, values: Tensor, height: int, skip: int | None) -> Form:
    """Return rows with equal places of one example added up.

    Args:
        places: Row of the table, ``[rows, entries]``.
        values: ``[rows, entries, width]``.
        height: Rows of the table.
        skip: Row that gets no gradient, as padding does.
    """
    rows, width = values.shape[0], values.shape[2]
    if places.shape[1] == 0 or rows == 0:
        return Dense(values.new_zeros(rows, height * width))
    owner = torch.arange(rows, device=places.device)[:, None] * height
    keys, inverse = torch.unique((places + owner).reshape(-1), return_inverse=True)
    flat = values.reshape(-1, width)
    if skip is not None:
        flat = torch.where((places == skip).reshape(-1, 1), 0.0, flat)
    found = flat.new_zeros(keys.shape[0], width).index_add_(0, inverse, flat)
    return Rows(keys // height, keys % height, found, rows, height)


def _index(padding: int | None, weight: Tensor) -> int | None:
    return padding + weight.shape[0] if padding is not None and padding < 0 else padding


@register_guard(F.embedding, F.embedding_bag)
def no_mixing_options(call: Call) -> None:
    """Refuse look-ups that depend on the whole batch, or write to the table."""
    given = call.bound()
    for option, why in (
        ("scale_grad_by_freq", "divides by how often a token is in the whole batch"),
        ("max_norm", "rewrites the rows that the batch looks up"),
    ):
        if given[option]:
            raise ModelError(
                expected="layers that treat every example by itself",
                got=f"{call.name} with {option}, which {why}",
                fix=f"leave {option} out",
            )
