"""How long gradients become shorter: factors from norms, each bounding one example's part by C."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, final, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from dither.errors import ConfigError

Squares: TypeAlias = Mapping[str, Float64[Tensor, " rows"]]


@runtime_checkable
class Style(Protocol):
    """Turns squared norms by parameter into factors by parameter.

    Sensitivity: Σ_p factor_p²·‖g_p‖² ≤ C² must hold for every example, whatever the norms.
    """

    def factors(self, squares: Squares, l2_clip: float) -> Squares:
        """Return a factor for each parameter and example."""
        ...


def _length(squares: Squares) -> Float64[Tensor, " rows"]:
    return torch.stack(list(squares.values())).sum(0).sqrt()


def _at_most(bound: float, length: Tensor) -> Tensor:
    """Return min(1, bound/length), 1 for a zero gradient."""
    return torch.where(length > bound, bound / length, 1.0)


@final
@dataclass(frozen=True)
class Flat:
    """One bound over all parameters together: min(1, C/‖g‖) (Abadi et al. 1607.00133).

    Attributes:
        bound: Clip here instead and scale by C/bound, so that the sum's sensitivity stays C while
            the bound moves. It must be public: a constant, or made of released values.
    """

    bound: float | None = None

    def __post_init__(self) -> None:
        _check_positive("bound", self.bound)

    def factors(self, squares: Squares, l2_clip: float) -> Squares:
        """Return C/max(bound, ‖g‖): Σ‖factor·g‖² ≤ C²."""
        bound = l2_clip if self.bound is None else self.bound
        factor = _at_most(bound, _length(squares)) * (l2_clip / bound)
        return dict.fromkeys(squares, factor)


@final
@dataclass(frozen=True)
class Automatic:
    """Normalisation in place of clipping: C/(‖g‖ + γ) (Bu et al. 2206.07136).

    Attributes:
        gamma: γ > 0, in units of gradient norm: far shorter gradients keep their length's order.
    """

    gamma: float = 0.01

    def __post_init__(self) -> None:
        _check_positive("gamma", self.gamma)

    def factors(self, squares: Squares, l2_clip: float) -> Squares:
        """Return C/(‖g‖ + γ): ‖factor·g‖ < C."""
        return dict.fromkeys(squares, l2_clip / (_length(squares) + self.gamma))


@final
@dataclass(frozen=True)
class PerLayer:
    """A bound for every group of parameters, Σ C_l² = C² (He et al. 2212.01539).

    Attributes:
        groups: Group by parameter name; by default each module's own parameters are one.
        weights: Share of each group, C_l ∝ weight; equal by default.
    """

    groups: Mapping[str, str] | None = None
    weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        for name, group in (self.groups or {}).items():
            if not isinstance(group, str):
                raise ConfigError(
                    expected="groups that give each parameter's name the name of its group",
                    got=f"{group!r} for '{name}'",
                    fix="turn it around: PerLayer(groups={'conv1.weight': 'early', ...})",
                )

    def factors(self, squares: Squares, l2_clip: float) -> Squares:
        """Return min(1, C_l/‖g_l‖): Σ_l ‖factor_l·g_l‖² ≤ Σ C_l² = C².

        Raises:
            ConfigError: A parameter has no group, or a group no weight.
        """
        found: dict[str, Tensor] = {}
        for names, bound in self.bounds(squares, l2_clip):
            length = _length({name: squares[name] for name in names})
            found.update(dict.fromkeys(names, _at_most(bound, length)))
        return {name: found[name] for name in squares}

    def bounds(self, names: Iterable[str], l2_clip: float) -> list[tuple[tuple[str, ...], float]]:
        """Return the parameters of each group and its C_l.

        Raises:
            ConfigError: A parameter has no group, or a group no weight.
        """
        members: dict[str, list[str]] = {}
        for name in names:
            members.setdefault(self._group(name), []).append(name)
        shares = {group: self._weight(group) for group in members}
        # A hair below C: Σ C_l² must not exceed C² by rounding.
        scale = l2_clip * (1.0 - 1e-12) / math.sqrt(sum(w * w for w in shares.values()))
        return [(tuple(found), scale * shares[group]) for group, found in members.items()]

    def factor(self, squares: Squares, bound: float) -> Float64[Tensor, " rows"]:
        """Return min(1, C_l/‖g_l‖) for the squared norms of one group's parameters."""
        return _at_most(bound, _length(squares))

    def _group(self, name: str) -> str:
        if self.groups is None:
            return name.rpartition(".")[0]
        if name not in self.groups:
            raise ConfigError(
                expected="a group for every trainable parameter",
                got=f"none for '{name}'",
                fix="name it in PerLayer(groups=...)",
            )
        return self.groups[name]

    def _weight(self, group: str) -> float:
        weight = 1.0 if self.weights is None else self.weights.get(group, math.nan)
        if not (weight > 0.0 and math.isfinite(weight)):
            raise ConfigError(
                expected=f"a positive weight for group '{group}'",
                got="none" if math.isnan(weight) else repr(weight),
                fix="give every group one in PerLayer(weights=...)",
            )
        return weight


def _check_positive(name: str, value: float | None) -> None:
    if value is not None and not (value > 0.0 and math.isfinite(value)):
        raise ConfigError(
            expected=f"a finite {name} above 0", got=repr(value), fix=f"choose a positive {name}"
        )
