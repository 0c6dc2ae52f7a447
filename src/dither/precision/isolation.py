"""Formats keep examples apart: shown on made-up numbers before any record is seen."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from dither.errors import ConfigError
from dither.precision.products import Images, Matrix, Product
from dither.precision.recipe import Recipe, Role

_MATRIX = Matrix()
_IMAGES = Images((1, 1), (0, 0), (1, 1), 1)
_SHAPES: tuple[tuple[Product, tuple[int, ...]], ...] = (
    (_MATRIX, (3, 40)),
    (_MATRIX, (3, 5, 40)),
    (_IMAGES, (3, 40, 2, 3)),
)
_ROLES: tuple[Role, ...] = ("activations", "gradients")
_LARGE = 1e6


@cache
def check_isolation(recipe: Recipe) -> None:
    """Refuse a recipe under which one example's numbers depend on another's.

    The rows of a batch are exchanged for others of another size, and for what is not finite; what
    is left must stay to the last bit. This is for formats of the user's own: those of
    `dither.precision.formats` are tested.

    Args:
        recipe: Of rounding.

    Raises:
        ConfigError: It does.
    """
    for role in _ROLES:
        operand = recipe.operand(role)
        if operand is None:
            continue
        for product, shape in _SHAPES:
            if not _keeps_apart(recipe, role, product, shape):
                raise ConfigError(
                    expected="formats that round one example by itself",
                    got=f"{operand} for {role}, whose numbers change with other examples",
                    fix="make scales of one row or one example, never of a batch",
                )


def _keeps_apart(recipe: Recipe, role: Role, product: Product, shape: tuple[int, ...]) -> bool:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    uniform = torch.rand(shape, generator=generator)
    others = [x * _LARGE, torch.zeros(shape), torch.full(shape, torch.inf)]
    whole = _values(recipe, role, product, x, uniform)
    for other in others:
        for row in range(shape[0]):
            changed = other.clone()
            changed[row] = x[row]
            found = _values(recipe, role, product, changed, uniform)
            if not torch.equal(found[row], whole[row]):
                return False
    return True


def _values(recipe: Recipe, role: Role, product: Product, x: Tensor, uniform: Tensor) -> Tensor:
    per = product.per(recipe.operand(role))
    find = recipe.activation if role == "activations" else recipe.gradient
    return find(x, axis=product.axis, per=per, uniform=uniform).values()
