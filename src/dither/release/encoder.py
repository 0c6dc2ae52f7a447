"""Adds exact noise on the lattice. Knows the lattice, not C, z or ε."""

from __future__ import annotations

from typing import final

import numpy as np
from jaxtyping import Float64, Integer

from dither.noise.codec import Encoded, decode, encode
from dither.noise.entropy import Entropy
from dither.noise.reference import rounded_gaussian
from dither.privacy.lattice import Lattice


@final
class Encoder:
    """Turns clipped sums into noisy integer messages and sums of messages into values.

    Args:
        lattice: The numbers, from `Plan.bind` and nowhere else.
        entropy: Source of the noise; every draw is used once.
    """

    def __init__(self, lattice: Lattice, entropy: Entropy) -> None:
        self._lattice = lattice
        self._entropy = entropy

    def encode(self, values: Float64[np.ndarray, " size"]) -> Encoded:
        """Return a message with fresh noise of the lattice's σ on every coordinate."""
        noise = rounded_gaussian(self._lattice.sigma, values.size, self._entropy)
        return encode(values, noise, self._lattice)

    def decode(self, message: Integer[np.ndarray, " size"]) -> Float64[np.ndarray, " size"]:
        """Return a (summed) message in units of the data."""
        return decode(message, self._lattice)
