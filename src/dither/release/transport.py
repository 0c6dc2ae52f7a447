"""What carries messages between ranks. The reduce room has the ones for many."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import numpy as np
from jaxtyping import Float, Integer

from dither.noise.pool import Noise
from dither.privacy.lattice import Lattice


class Transport(ABC):
    """Sums integer messages over ranks.

    A class says that it is one by inheriting: the noise of a rank follows ``world_size``, so an
    object that merely looks like a transport could make it too little.
    """

    @property
    @abstractmethod
    def world_size(self) -> int:
        """R, the number of ranks that add noise."""

    @property
    def colluders(self) -> int | None:
        """Largest number t of colluding ranks that its masks withstand; None without masks."""
        return None

    @property
    def block(self) -> int | None:
        """Coordinates that travel at a time; None where a message goes whole."""
        return None

    @abstractmethod
    def all_reduce(self, message: Integer[np.ndarray, " size"]) -> Integer[np.ndarray, " size"]:
        """Return the sum of all ranks' messages, perhaps in the memory of this rank's own.

        Raises:
            ReduceError: There is no sum; what was sent was protected and stays charged.
        """


class FusedTransport(Transport):
    """A transport that adds the noise while it writes the message, in one pass."""

    @abstractmethod
    def release(
        self,
        values: Float[np.ndarray, " size"],
        out: Float[np.ndarray, " size"],
        *,
        lattice: Lattice,
        noise: Noise,
        factor: float = 1.0,
        scale: float = 1.0,
    ) -> int:
        """Write the noisy sum over ranks to ``out``, in units of the data, times ``scale``.

        It is what `Encoder.encode`, `all_reduce` and `Encoder.decode` give, bit for bit.

        Args:
            values: This rank's clipped sum; times ``factor``.
            out: Float32 or float64; may be ``values``.
            lattice: From `Plan.bind`.
            noise: Fresh or from a pool.
            factor: In [0, 1], of this rank's values: what clips them.
            scale: Public factor of the result.

        Returns:
            How many coordinates were clamped before noise: for the operator only.

        Raises:
            ReduceError: There is no sum.
        """


@final
class Solo(Transport):
    """One rank: its message is the sum."""

    @property
    def world_size(self) -> int:
        """1."""
        return 1

    def all_reduce(self, message: Integer[np.ndarray, " size"]) -> Integer[np.ndarray, " size"]:
        """Return the message."""
        return message
