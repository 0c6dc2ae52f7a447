"""What carries messages between ranks. The reduce room has the ones for many."""

from __future__ import annotations

from typing import Protocol, final, runtime_checkable

import numpy as np
from jaxtyping import Integer


@runtime_checkable
class Transport(Protocol):
    """Sums integer messages over ranks."""

    @property
    def world_size(self) -> int:
        """R, the number of ranks that add noise."""
        ...

    def all_reduce(self, message: Integer[np.ndarray, " size"]) -> Integer[np.ndarray, " size"]:
        """Return the sum of all ranks' messages."""
        ...


@final
class Solo:
    """One rank: its message is the sum."""

    @property
    def world_size(self) -> int:
        """1."""
        return 1

    def all_reduce(self, message: Integer[np.ndarray, " size"]) -> Integer[np.ndarray, " size"]:
        """Return the message."""
        return message
