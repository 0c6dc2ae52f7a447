"""A loss under which chosen layers of its model run in low precision."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, final

from torch import nn

from dither.clipping.gradients import Loss
from dither.clipping.loss import ModelLoss, losses_of
from dither.errors import ModelError
from dither.precision.isolation import check_isolation
from dither.precision.layers import Layer, find_layers, plain_loss
from dither.precision.mode import named_layers, quantising
from dither.precision.recipe import Recipe
from dither.precision.relation import check_relation
from dither.privacy.events import Relation


@final
class QuantizedLoss(ModelLoss):
    """Runs the model with some layers in low precision, others as they are; choose at any time.

    It is a `ModelLoss`: pass it as ``loss_fn`` to a `ClippingEngine`, a step, or anything that
    takes losses of examples. At first no layer is chosen and it is the loss it was made of. Nothing
    is copied, and nothing is written to the model, whose parameters stay in full precision.

    Guarantee: what a layer makes of one example, forward and backward, depends on the weights, that
    example and fresh secret draws alone, to the last bit, as long as batches keep their shape: no
    scale is shared by examples, none is remembered. Under ``add_remove`` a missing record moves the
    rows of others, kernels may round those otherwise, and a quantiser makes a whole step of a last
    bit: refused.

    Args:
        loss_fn: Per-example loss, as `per_example` gives it, or a `ModelLoss`.
        model: Whose layers are listed.
        recipe: What is rounded to what.
        layers: Those to choose from; `find_layers` of the model by default.

    Raises:
        ModelError: There is no such layer.
        ConfigError: A format of one's own whose numbers depend on other examples.

    Example:
        >>> import torch
        >>> from dither.clipping.loss import per_example
        >>> from dither.precision.recipe import parse_recipe
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> plain = per_example(torch.nn.CrossEntropyLoss())
        >>> loss = QuantizedLoss(plain, model, parse_recipe("luq-fp4"))
        >>> loss.choose(["0"])
        >>> sorted(loss.chosen)
        ['0']
    """

    def __init__(
        self,
        loss_fn: Loss,
        model: nn.Module,
        recipe: Recipe,
        layers: Iterable[Layer] | None = None,
    ) -> None:
        super().__init__(self._losses)
        self.plain = plain_loss(loss_fn)
        self.recipe = recipe
        self.layers = tuple(find_layers(model) if layers is None else layers)
        self._chosen: tuple[Layer, ...] = ()
        if not self.layers:
            raise ModelError(
                expected="a model with linear layers, convolutions, embeddings or attention",
                got=f"{type(model).__name__} without any",
                fix="leave precision out",
            )
        check_isolation(recipe)

    @property
    def within(self) -> Loss:
        """The loss without quantisation."""
        return self.plain

    @property
    def chosen(self) -> frozenset[str]:
        """Names of the layers that run in low precision."""
        return frozenset(layer.name for layer in self._chosen)

    def choose(self, names: Collection[str]) -> None:
        """Run these layers in low precision from the next call on, and no others.

        Args:
            names: Of `layers`.

        Raises:
            ConfigError: There is no layer of a name; nothing has changed.
        """
        self._chosen = named_layers(self.layers, names)

    @contextmanager
    def choosing(self, names: Collection[str]) -> Iterator[None]:
        """Choose other layers for a while.

        Args:
            names: Of `layers`.
        """
        before = self._chosen
        self.choose(names)
        try:
            yield
        finally:
            self._chosen = before

    def check_relation(self, relation: Relation) -> None:
        """Refuse ``add_remove``.

        Raises:
            ConfigError: It is.
        """
        check_relation(relation)

    def _losses(self, model: nn.Module, data: Any) -> Any:
        with quantising(model, self._chosen, self.recipe):
            return losses_of(model, self.plain, data)

    def __repr__(self) -> str:
        """Say what is chosen."""
        return (
            f"QuantizedLoss({self.recipe.name}, {len(self._chosen)} of {len(self.layers)} layers)"
        )
