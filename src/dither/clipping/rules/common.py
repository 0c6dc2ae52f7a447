"""What several rules need."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from dither.clipping.arithmetic import as_float
from dither.clipping.forms import Dense, Form
from dither.clipping.layout import Layout


def over_steps(layout: Layout, tensor: Tensor) -> Float[Tensor, "rows time size"]:
    """Return a tensor ``[rows, time, features]`` in float32; all middle axes are time."""
    return steps(as_float(layout.by_example(tensor.detach())))


def steps(gradient: Float[Tensor, "rows *middle size"]) -> Float[Tensor, "rows time size"]:
    """Return an output's gradient, examples first, with its middle axes as one."""
    return gradient.reshape(gradient.shape[0], -1, gradient.shape[-1])


def summed(gradient: Tensor) -> Form:
    """Return the form of a bias: the output's gradient summed over time."""
    flat = steps(gradient)
    return Dense(flat[:, 0] if flat.shape[1] == 1 else flat.sum(1))
