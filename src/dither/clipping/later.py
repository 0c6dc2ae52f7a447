"""Per-example gradients that are computed anew whenever they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dither.clipping.forms import Form, Mask
from dither.clipping.sums import Sum


@final
@dataclass(frozen=True)
class Later:
    """A form that holds no more than activations and output gradients.

    What is measured is what is summed: the same calls on the same numbers. Memory for what is
    written out is needed for one parameter at a time, and time twice.

    Attributes:
        make: Makes the form.
        device: Where.
        bytes: Memory held meanwhile.
    """

    make: Callable[[], Form]
    device: torch.device
    bytes: int

    def lengths(self, *, wide: bool = False) -> tuple[Float[Tensor, " rows"], ...]:
        """Return what the form's are."""
        return self._made().lengths(wide=wide)

    def masked(self, counted: Mask) -> Form:
        """Return the form with zeros in place of the examples that do not count."""
        return Later(lambda: self._made().masked(counted), self.device, self.bytes)

    def add_to(self, total: Sum, factors: Float64[Tensor, " rows"]) -> None:
        """Add the form's weighted sum."""
        self._made().add_to(total, factors)

    def dense(self) -> Float[Tensor, "rows size"]:
        """Return the gradients written out."""
        return self._made().dense()

    def _made(self) -> Form:
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return self.make()
