"""Noisy messages over an endpoint, by an algorithm, behind masks where trust asks for them.

Noise is added by the release room before a message gets here; what passes through are integers on
the wire lattice. Under ``local`` each message is private by itself; under ``distributed(t)`` only
behind masks (`Masks`), which `release.require_masks` sees to; under ``central`` only the sum is.
"""

from __future__ import annotations

from typing import final

import numpy as np
from jaxtyping import Float, Integer

from dither.errors import ConfigError
from dither.noise.key import Key
from dither.noise.pool import FreshNoise, Noise, NoisePool
from dither.privacy.lattice import Lattice
from dither.reduce.agreement import Agreement, Call, Terms, seal_size
from dither.reduce.algorithms.auto import Table, current_table
from dither.reduce.algorithms.registry import find_algorithm, sum_over
from dither.reduce.endpoint import Endpoint
from dither.reduce.protections.masked import Masks
from dither.reduce.small import consent
from dither.reduce.transports.shared_memory import SharedMemory
from dither.release.transport import Contribute, FusedTransport, Transport

# 512 KiB of 16-bit integers: a cache holds a block from encoding to decoding.
BLOCK = 1 << 18


@final
class Reduced(Transport):
    """Sums messages over any endpoint, by any algorithm.

    Args:
        endpoint: This rank's end.
        algorithm: Name, or auto.
        masks: Agreed on by all ranks of the endpoint.
        block: Coordinates that travel at a time; None for whole messages.
        table: What auto chooses by; this user's by default.

    Raises:
        ConfigError: No such algorithm.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        algorithm: str = "auto",
        masks: Masks | None = None,
        block: int | None = None,
        table: Table | None = None,
    ) -> None:
        find_algorithm(algorithm)
        self._table = current_table() if table is None else table
        self._terms: dict[tuple[int, str], Terms] = {}
        self.endpoint = endpoint
        self.algorithm = algorithm
        self.masks = masks
        self._block = block
        self._agreement = Agreement(endpoint)

    @property
    def world_size(self) -> int:
        """R."""
        return self.endpoint.world_size

    @property
    def colluders(self) -> int | None:
        """What the masks withstand; None without masks."""
        return None if self.masks is None else self.masks.colluders

    @property
    def block(self) -> int | None:
        """Coordinates that travel at a time."""
        return self._block

    def all_reduce(self, message: Integer[np.ndarray, " size"]) -> Integer[np.ndarray, " size"]:
        """Return the sum of all ranks' messages.

        New lengths and types are agreed on first. A masked message carries a seal, so that masks
        which do not cancel are noticed.

        Raises:
            MismatchError: Ranks came with different messages.
            ReduceError: There is no sum; masks are spent.
        """
        call = self._agreement.agree(self._terms_of(message))
        if self.masks is None:
            if message.size == 0:  # nothing travels, and the ranks shall still meet
                consent(self.endpoint, None)
            sum_over(self.endpoint, message, self.algorithm, self._table)
            return message
        try:
            return self._masked(message, self.masks, call)
        except BaseException:
            self.masks.spoil()  # pads of this round may be out: never again
            raise

    def abandon(self, reason: str) -> None:  # noqa: ARG002 - they learn that it left
        """Leave the group: the others notice, at the latest when this process ends."""
        if self.masks is not None:
            self.masks.spoil()
        self.endpoint.close()

    def _terms_of(self, message: Integer[np.ndarray, " size"]) -> Terms:
        key = message.size, message.dtype.char
        terms = self._terms.get(key)
        if terms is None:
            terms = self._terms[key] = Terms(
                length=message.size,
                dtype=message.dtype.name,
                protection="private" if self.masks is None else "masked",
                algorithm=self.algorithm,
                table=self._table.digest,
            )
        return terms

    def _masked(
        self, message: Integer[np.ndarray, " size"], masks: Masks, call: Call
    ) -> Integer[np.ndarray, " size"]:
        size = message.size
        sealed = np.empty(size + seal_size(message.dtype), message.dtype)
        sealed[:size] = message
        call.seal(sealed[size:])
        masks.apply(sealed)
        sum_over(self.endpoint, sealed, self.algorithm, self._table)
        call.check(sealed[size:])
        return sealed[:size]


@final
class SharedMemoryReduced(FusedTransport):
    """Encodes, masks, sums and decodes in one pass through shared memory.

    Args:
        endpoint: This rank's end.
        masks: Agreed on by all ranks of the endpoint.
    """

    def __init__(self, endpoint: SharedMemory, *, masks: Masks | None = None) -> None:
        self.endpoint = endpoint
        self.masks = masks
        self._whole = Reduced(endpoint, algorithm="backend", masks=masks)

    @property
    def world_size(self) -> int:
        """R."""
        return self.endpoint.world_size

    @property
    def colluders(self) -> int | None:
        """What the masks withstand; None without masks."""
        return self._whole.colluders

    def all_reduce(self, message: Integer[np.ndarray, " size"]) -> Integer[np.ndarray, " size"]:
        """Return the sum of all ranks' messages, as `Reduced` does.

        Raises:
            ReduceError: There is no sum; masks are spent.
        """
        return self._whole.all_reduce(message)

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
        """Write the noisy sum over ranks to ``out``: see `FusedTransport.release`.

        Raises:
            ReduceError: There is no sum; masks are spent.
        """
        source, pads = _own(noise), () if self.masks is None else _pads(self.masks)
        try:
            return self.endpoint.release(
                values, out, grid=lattice, noise=source, factor=factor, scale=scale, masks=pads
            )
        except BaseException:
            if self.masks is not None:
                self.masks.spoil()
            raise

    def abandon(self, reason: str) -> None:
        """Leave the group: all waits of the others end."""
        self._whole.abandon(reason)

    def contributions(self, *, lattice: Lattice, noise: Noise, clip: float) -> Contribute:
        """Return the core's pass over one contribution: see `FusedTransport.contributions`."""
        source, masks = _own(noise), self.masks
        if masks is None:
            return self.endpoint.contributions(grid=lattice, noise=source, clip=clip)

        def contribute(values: np.ndarray, out: np.ndarray) -> tuple[int, bool]:
            pads = _pads(masks)  # refused once they are spent
            try:
                return self.endpoint.contributions(
                    grid=lattice, noise=source, clip=clip, masks=pads
                )(values, out)
            except BaseException:
                masks.spoil()
                raise

        return contribute


def _own(noise: Noise) -> FreshNoise | NoisePool:
    if isinstance(noise, FreshNoise | NoisePool):
        return noise
    raise ConfigError(
        expected="dither's own noise",
        got=type(noise).__name__,
        fix="pass FreshNoise or NoisePool",
    )


def _pads(masks: Masks) -> tuple[tuple[Key, bool], ...]:
    return tuple((key, sign < 0) for key, sign in zip(masks.keys, masks.signs, strict=True))
