"""Models whose layers are whole only while they compute: what passes through them must obey."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager


class Lockstep(ABC):
    """Makes layers whole while they compute, on all ranks together.

    Every pass is one forward and one backward pass over the whole model, in which all ranks gather
    the same layers in the same order. How many passes there are must not depend on records.
    """

    @property
    @abstractmethod
    def aside(self) -> bool:
        """Whether what computes just now gathers, and is none of the model's own functions."""

    @property
    @abstractmethod
    def passes(self) -> int:
        """Passes that this rank has begun."""

    @abstractmethod
    def one_pass(self) -> AbstractContextManager[None]:
        """Return a context for one forward pass and its backward pass.

        Raises:
            ModelError: Layers came in another order than in the first pass.
        """
