"""What carries messages between ranks. The reduce room has the ones for many."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias, final

import numpy as np
from jaxtyping import Float, Integer

from dither.errors import ReleaseError
from dither.noise.codec import clip_factor
from dither.noise.pool import Noise
from dither.privacy.lattice import Lattice

# Of values and where the sum goes: how many coordinates were clamped, and whether all were finite.
Contribute: TypeAlias = Callable[[np.ndarray, np.ndarray], tuple[int, bool]]


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

    def abandon(self, reason: str) -> None:  # noqa: B027 - not all can tell
        """Break off: this rank failed between two messages, and the others shall not wait for it.

        Args:
            reason: Name of an error's type; public.
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

    def contributions(self, *, lattice: Lattice, noise: Noise, clip: float) -> Contribute:
        """Return what sums contributions that it clips itself: for many calls alike.

        It is `release` with `clip_factor`. A contribution that is not finite counts as zero: an
        error would leave the other ranks waiting, and tell them.

        Args:
            lattice: From `Plan.bind`.
            noise: Fresh or from a pool.
            clip: C, the L2 norm that a contribution is scaled down to.
        """

        def contribute(values: np.ndarray, out: np.ndarray) -> tuple[int, bool]:
            finite, factor = clipped(values, clip)
            saturated = self.release(finite, out, lattice=lattice, noise=noise, factor=factor)
            return saturated, finite is values

        return contribute


def clipped(
    values: Float[np.ndarray, " size"], clip: float
) -> tuple[Float[np.ndarray, " size"], float]:
    """Return values and the factor that clips them; zeros for values that are not finite."""
    try:
        return values, clip_factor(values, clip)
    except ReleaseError:
        return np.zeros_like(values), 1.0


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
