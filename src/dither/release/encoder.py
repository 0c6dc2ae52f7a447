"""Adds exact noise on the lattice. Knows the lattice, not C, z or ε."""

from __future__ import annotations

from typing import final

import numpy as np
from jaxtyping import Float, Integer

from dither.noise.codec import Encoded, decode
from dither.noise.pool import Noise
from dither.privacy.lattice import Lattice


@final
class Encoder:
    """Turns clipped sums into noisy integer messages and sums of messages into values.

    Args:
        lattice: The numbers, from `Plan.bind` and nowhere else.
        noise: Fresh or from a pool; every draw is used once.

    Raises:
        ConfigError: The lattice or its σ is beyond the core's limits.
        NoiseError: The noise cannot serve this lattice: a pool of another σ, or a closed one.
    """

    def __init__(self, lattice: Lattice, noise: Noise) -> None:
        # An empty message says so now, before its sample and a step are spent.
        noise.encode(np.empty(0), lattice)
        self._lattice = lattice
        self._noise = noise

    def encode(
        self, values: Float[np.ndarray, " size"], *, out: Integer[np.ndarray, " size"] | None = None
    ) -> Encoded:
        """Return a message (in ``out``) with noise of the lattice's σ on every coordinate."""
        return self._noise.encode(values, self._lattice, out=out)

    def decode(
        self,
        message: Integer[np.ndarray, " size"],
        *,
        scale: float = 1.0,
        out: Float[np.ndarray, " size"] | None = None,
    ) -> Float[np.ndarray, " size"]:
        """Return a (summed) message in units of the data, times a public scale: `codec.decode`."""
        return decode(message, self._lattice, scale=scale, out=out)
