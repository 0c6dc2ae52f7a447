"""What has no rule: `torch.func`, one function at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from dither.clipping.arithmetic import as_float
from dither.clipping.capture import Call, Capture, Maker, Target
from dither.clipping.forms import Dense, Form
from dither.clipping.layout import Place, find_layout
from dither.clipping.unsupported import UnsupportedError


def by_vmap(capture: Capture, call: Call) -> Tensor:
    """Differentiate this one function example by example.

    Right for every function that keeps examples apart along a first axis; memory is one gradient
    an example, and the function is computed again.

    Raises:
        UnsupportedError: Examples are not along the first axis, or it has several outputs.
    """
    leaves, spec = tree_flatten((call.args, call.kwargs))
    # A clone, where the function works in place on what it is given.
    kept = [leaf.detach().clone() if _in_place(call, leaf) else leaf for leaf in leaves]
    output = call.run()
    name = call.name
    if not isinstance(output, Tensor):
        raise UnsupportedError(f"{name} has no rule and more than one output")
    layout = find_layout(output.shape, capture.rows)
    axes = [_axis(capture, leaf, name) for leaf in leaves]
    if layout.place not in {Place.FIRST, Place.ALONE}:
        raise UnsupportedError(f"{name} has no rule, and examples are not along its first axis")

    def replay(position: int, value: Tensor, *examples: Tensor) -> Tensor:
        given = iter(examples)
        filled = [
            value if index == position else _wide(leaf) if axis is None else next(given)
            for index, (leaf, axis) in enumerate(zip(kept, axes, strict=True))
        ]
        again_args, again_kwargs = tree_unflatten(filled, spec)
        result: Tensor = call.function(*again_args, **again_kwargs)
        return result

    split = [_wide(leaf) for leaf, axis in zip(kept, axes, strict=True) if axis is not None]
    makers: list[tuple[Target | None, Maker]] = []
    for position, leaf in enumerate(leaves):
        target = capture.target(leaf)
        if target is not None:
            capture.report(name, target)
            makers.append((target, _maker(replay, position, target, split, capture.rows)))
    inputs = [leaf for leaf, other in zip(leaves, kept, strict=True) if leaf is other]
    return capture.tap(
        call, output, layout, makers, inputs=[t for t in inputs if isinstance(t, Tensor)]
    )


def _maker(
    replay: Callable[..., Tensor],
    position: int,
    target: Target,
    split: list[Tensor],
    rows: int,
) -> Maker:
    def alone(gradient: Tensor, *examples: Tensor) -> Tensor:
        output, pull = torch.func.vjp(  # type: ignore[misc]
            lambda value: replay(position, value, *examples), target.tensor.detach()
        )
        (found,) = pull(gradient.reshape(output.shape).to(output.dtype))
        return as_float(found).reshape(-1)

    def one(gradient: Tensor, *examples: Tensor) -> Tensor:
        return alone(gradient, *(example.unsqueeze(0) for example in examples))

    def make(gradient: Tensor) -> Form:
        if rows == 1:
            return Dense(alone(gradient, *split)[None])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # as ours says
            return Dense(torch.func.vmap(one, randomness="error")(gradient, *split))

    return make


def _wide(leaf: Any) -> Any:
    """Return an argument as the function computes with it outside of autocast."""
    if not isinstance(leaf, Tensor):
        return leaf
    return as_float(leaf.detach()) if leaf.is_floating_point() else leaf.detach()


def _axis(capture: Capture, leaf: object, name: str) -> int | None:
    """Return the axis of examples of an argument, None where it has none."""
    if not isinstance(leaf, Tensor) or capture.is_shared(leaf):
        return None
    if find_layout(leaf.shape, capture.rows).place not in {Place.FIRST, Place.ALONE}:
        raise UnsupportedError(f"{name} has no rule, and examples are not along its first axis")
    return 0


def _in_place(call: Call, leaf: object) -> bool:
    name = call.name
    changes = (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")
    return changes and bool(call.args) and leaf is call.args[0] and isinstance(leaf, Tensor)
