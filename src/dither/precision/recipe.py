"""What is rounded, how and to what: the choice that a quantised layer runs under."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

from jaxtyping import Float, Float32
from torch import Tensor

from dither.errors import ConfigError
from dither.precision.blocks import Per
from dither.precision.formats import BF16, FLOAT32, Format, Quantized, parse_format
from dither.precision.rounding import Rounding

Role: TypeAlias = Literal["weights", "activations", "gradients"]
ROLES: Final[tuple[Role, ...]] = ("weights", "activations", "gradients")

_NEAREST, _STOCHASTIC = Rounding.NEAREST, Rounding.STOCHASTIC
_PER: dict[Role, tuple[Per, ...]] = {
    "weights": (Per.TENSOR, Per.CHANNEL, Per.ROW, Per.BLOCK),
    "activations": (Per.ROW, Per.EXAMPLE, Per.BLOCK),
    "gradients": (Per.ROW, Per.EXAMPLE, Per.BLOCK),
}


@dataclass(frozen=True)
class Operand:
    """How one operand of a product is rounded.

    Attributes:
        format: To what.
        rounding: How.
        per: What shares a scale.
    """

    format: Format
    rounding: Rounding = Rounding.NEAREST
    per: Per = Per.ROW

    def encode(
        self,
        x: Float[Tensor, "*shape"],
        *,
        axis: int = -1,
        uniform: Float32[Tensor, "*shape"] | None = None,
    ) -> Quantized:
        """Return a tensor in this format; see `Format.encode`."""
        return self.format.encode(
            x, rounding=self.rounding, per=self.per, axis=axis, uniform=uniform
        )

    def __str__(self) -> str:
        """Return format:rounding:per, as `parse_recipe` reads it."""
        return f"{self.format.name}:{self.rounding}:{self.per}"


@dataclass(frozen=True)
class Recipe:
    """How the products of a layer are rounded; None leaves an operand in float32.

    Attributes:
        name: As the user spelt it.
        weights: TENSOR, CHANNEL (one scale an output of the product), ROW (the same) or BLOCK.
        activations: ROW, EXAMPLE or BLOCK: made from one example alone.
        gradients: Of outputs, in the backward pass; likewise.

    Raises:
        ConfigError: Nothing is rounded, or a scale would be shared by examples.
    """

    name: str
    weights: Operand | None
    activations: Operand | None
    gradients: Operand | None

    def __post_init__(self) -> None:
        if self.weights is None and self.activations is None and self.gradients is None:
            raise ConfigError(
                expected="a recipe that rounds weights, activations or gradients",
                got=f"{self.name!r}, which rounds none",
                fix="leave the recipe out for full precision",
            )
        for role in ROLES:
            operand = self.operand(role)
            if operand is not None and operand.per not in _PER[role]:
                raise ConfigError(
                    expected=f"scales of {role} per {', '.join(_PER[role])}",
                    got=f"{operand.per} in recipe {self.name!r}",
                    fix="choose one of these: scales of examples may not be shared by them"
                    if role != "weights"
                    else "choose one of these: weights have no examples",
                )

    def operand(self, role: Role) -> Operand | None:
        """Return how one kind of operand is rounded."""
        found: Operand | None = getattr(self, role)
        return found

    def weight(self, x: Float[Tensor, "outputs inputs *places"], *, axis: int = 1) -> Quantized:
        """Return a weight rounded for a product that sums over one of its axes; its layout stays.

        A layer's forward pass sums over inputs, axis 1, its backward pass over outputs, axis 0.
        Scales must be constant along the axis that is summed over, so that formats with a scale a
        channel or a block round the weight for each of both: see `weight_serves_both`.

        Args:
            x: The weight. Kernel places of a convolution are summed over both ways.
            axis: 1 for `kernels.product` and `kernels.convolution`, 0 for ``..._back``.
        """
        operand = self.weights
        if operand is None:
            return FLOAT32.encode(x)
        if operand.per in {Per.CHANNEL, Per.ROW}:
            return replace(operand, per=Per.CHANNEL).encode(x, axis=1 - axis)
        return operand.encode(x, axis=axis)

    @property
    def weight_serves_both(self) -> bool:
        """Whether what `weight` gives for the forward product serves the backward one as well."""
        operand = self.weights
        return operand is None or operand.per is Per.TENSOR or operand.format is BF16

    def activation(
        self,
        x: Float[Tensor, "*shape"],
        *,
        axis: int = -1,
        per: Per | None = None,
        uniform: Float32[Tensor, "*shape"] | None = None,
    ) -> Quantized:
        """Return a layer's input rounded.

        Args:
            x: The input.
            axis: The axis of features, which the product sums over; channels of a convolution.
            per: Instead of the recipe's own: convolutions cannot have a scale a row.
            uniform: Draws for stochastic rounding.
        """
        return _encode(self.activations, x, axis, per, uniform)

    def gradient(
        self,
        x: Float[Tensor, "*shape"],
        *,
        axis: int = -1,
        per: Per | None = None,
        uniform: Float32[Tensor, "*shape"] | None = None,
    ) -> Quantized:
        """Return the gradient of a layer's output rounded; arguments as for `activation`."""
        return _encode(self.gradients, x, axis, per, uniform)

    @property
    def bits(self) -> int:
        """Bits of the widest operand of the forward product: what hardware must multiply."""
        return max(
            32 if operand is None else operand.format.bits
            for operand in (self.weights, self.activations)
        )

    @property
    def draws(self) -> bool:
        """Whether anything is rounded by chance."""
        return any(
            operand is not None and operand.rounding is Rounding.STOCHASTIC
            for operand in map(self.operand, ROLES)
        )

    def rounded(self, rounding: Rounding) -> Recipe:
        """Return the recipe with every operand rounded that way, named so."""
        changed = {
            role: None if operand is None else replace(operand, rounding=rounding)
            for role in ROLES
            for operand in [self.operand(role)]
        }
        return Recipe(f"{self.name.split(':')[0]}:{rounding}", **changed)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value that `from_json` reads."""
        return {
            "name": self.name,
            **{
                role: None if (found := self.operand(role)) is None else str(found)
                for role in ROLES
            },
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Recipe:
        """Return the recipe of a JSON value.

        Raises:
            ConfigError: It is no recipe.
        """
        if not isinstance(value, dict) or {*value} != {"name", *ROLES}:
            raise ConfigError(
                expected=f"a recipe with name, {', '.join(ROLES)}",
                got=repr(value),
                fix="use what Recipe.to_json gave",
            )
        return cls(
            str(value["name"]),
            **{role: _operand(role, str(value[role])) if value[role] else None for role in ROLES},
        )


def _encode(
    operand: Operand | None, x: Tensor, axis: int, per: Per | None, uniform: Tensor | None
) -> Quantized:
    if operand is None:
        return FLOAT32.encode(x)
    chosen = operand if per is None else replace(operand, per=per)
    return chosen.encode(x, axis=axis, uniform=uniform)


def _preset(name: str, weights: str, activations: str, gradients: str) -> Recipe:
    return Recipe(
        name,
        _operand("weights", weights),
        _operand("activations", activations),
        _operand("gradients", gradients),
    )


def _operand(role: Role, text: str) -> Operand | None:
    """Return the operand of ``format[:rounding][:per]``."""
    name, *choices = text.split(":")
    if name in {"none", "float32"} and not choices:
        return None
    found = Operand(parse_format(name), per=Per.CHANNEL if role == "weights" else Per.ROW)
    for choice in choices:
        if choice in {*Rounding}:
            found = replace(found, rounding=Rounding(choice))
        elif choice in {*Per}:
            found = replace(found, per=Per(choice))
        else:
            raise ConfigError(
                expected=f"after a format one of {', '.join([*Rounding, *Per])}",
                got=repr(choice),
                fix=f"write {role}=FORMAT:ROUNDING:PER, such as {role}=int8:nearest",
            )
    return found


_BLOCKS = "fp4_e2m1:nearest:block"
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _preset("bf16", "bf16", "bf16", "bf16"),
        _preset("fp8", "fp8_e4m3", "fp8_e4m3", "fp8_e5m2"),
        _preset("int8", "int8", "int8", "int8"),
        _preset("int8-tensor", "int8:tensor", "int8", "int8"),
        _preset("int4", "int4", "int4", "int4:stochastic"),
        _preset("mxfp8", "fp8_e4m3:block", "fp8_e4m3:block", "fp8_e5m2:block"),
        _preset("mxfp4", _BLOCKS, _BLOCKS, "fp4_e2m1:stochastic:block"),
        _preset("luq", "int4", "int4", "luq-fp4:stochastic"),
        _preset("luq-fp4", "luq-fp4:stochastic", "luq-fp4:stochastic", "luq-fp4:stochastic"),
    )
}


def parse_recipe(text: str) -> Recipe:
    """Return a recipe by its name, or as it is written out.

    Args:
        text: A name of `RECIPES`, perhaps with ``:nearest`` or ``:stochastic`` for all operands; or
            ``weights=FORMAT:ROUNDING:PER,activations=...,gradients=...``, where what is left out
            stays in float32.

    Raises:
        ConfigError: It is neither.
    """
    if "=" in text:
        return _written_out(text)
    name, _, rounding = text.partition(":")
    if name not in RECIPES or (rounding and rounding not in {*Rounding}):
        raise ConfigError(
            expected=f"a recipe of {', '.join(RECIPES)}, perhaps with :nearest or :stochastic",
            got=repr(text),
            fix="choose one, or write weights=FORMAT:ROUNDING:PER,activations=...,gradients=...",
        )
    return RECIPES[name].rounded(Rounding(rounding)) if rounding else RECIPES[name]


def _written_out(text: str) -> Recipe:
    found: dict[Role, Operand | None] = dict.fromkeys(ROLES)
    for part in text.split(","):
        key, _, value = part.strip().partition("=")
        role = next((role for role in ROLES if role == key), None)
        if role is None or not value:
            raise ConfigError(
                expected=f"parts {'=..., '.join(ROLES)}=...",
                got=repr(part),
                fix="write FORMAT:ROUNDING:PER after the equals sign",
            )
        found[role] = _operand(role, value)
    return Recipe(text, **found)
