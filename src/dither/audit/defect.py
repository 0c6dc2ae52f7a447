"""A defect on purpose: less noise than claimed, so that an audit can show that it would see it."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import numpy as np
from jaxtyping import Float, Integer

from dither.errors import ConfigError
from dither.noise.codec import Encoded, Grid, encode
from dither.noise.key import Key
from dither.privacy.lattice import Lattice


@final
class WeakNoise:
    """Noise of a share of the σ that is asked for. NOT PRIVATE.

    It is neither `FreshNoise` nor `NoisePool`, so a release refuses it by its type, unless the
    account says that its run is not private.

    Args:
        key: Where it comes from.
        share: Of the standard deviation, in (0, 1).
    """

    def __init__(self, key: Key, share: float) -> None:
        self._key = key
        self._share = check_share(share)

    def encode(
        self,
        values: Float[np.ndarray, " size"],
        grid: Grid,
        *,
        out: Integer[np.ndarray, " size"] | None = None,
        factor: float = 1.0,
    ) -> Encoded:
        """Return `codec.encode` of the values with too little noise."""
        assert isinstance(grid, Lattice)  # noqa: S101 - what releases bind
        weak = replace(grid, sigma=grid.sigma * self._share)
        return encode(values, weak, self._key, out=out, factor=factor)


def check_share(share: float) -> float:
    """Return a share of noise that is a defect.

    Raises:
        ConfigError: It is not in (0, 1).
    """
    if not 0.0 < share < 1.0:
        raise ConfigError(
            expected="a share of the noise above 0 and below 1",
            got=repr(share),
            fix="choose 0.5 for half the noise",
        )
    return share
