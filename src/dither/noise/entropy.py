"""Where randomness comes from: the operating system, or an explicitly insecure seed."""

from __future__ import annotations

import abc
import os
import zlib
from typing import final

import numpy as np
from jaxtyping import UInt8

from dither.noise.key import KEY_BYTES, Key

_SEED_BITS = 64  # seeds of users are below 2⁶⁴, so those of ranks do not meet


class Entropy(abc.ABC):
    """A source of uniform bytes.

    Attributes:
        secret: Whether nobody can know or repeat the bytes. Releases from a source that is not
            secret are not private and are written down as such.
    """

    secret: bool

    @abc.abstractmethod
    def draw(self, size: int) -> UInt8[np.ndarray, " size"]:
        """Return ``size`` fresh uniform bytes, never handed out before."""

    @abc.abstractmethod
    def stream(self, name: str) -> Entropy:
        """Return an independent source for another use (sampling, noise, dropout)."""

    def key(self) -> Key:
        """Return a fresh key of the stream cipher, secret if this source is."""
        return Key.agreed(self.draw(KEY_BYTES).tobytes(), secret=self.secret)

    def seed(self) -> int:
        """Return a fresh 63-bit seed for a library's own generator (dropout)."""
        return int(self.draw(8).view(np.uint64)[0] >> np.uint64(1))


@final
class OsEntropy(Entropy):
    """The operating system's cryptographic generator.

    It holds no state of its own, so nothing can be checkpointed, copied by `fork` or repeated on
    resume. Privacy is computational: it rests on this generator.
    """

    secret = True

    def draw(self, size: int) -> UInt8[np.ndarray, " size"]:
        """Return bytes of `os.urandom`."""
        return np.frombuffer(bytearray(os.urandom(size)), np.uint8)

    def key(self) -> Key:
        """Return a key that never existed as a Python object's bytes, and survives a fork."""
        return Key()

    def stream(self, name: str) -> Entropy:  # noqa: ARG002 - one source serves all uses
        """Return this source: its bytes are independent anyway."""
        return self


@final
class InsecureSeed(Entropy):
    """Reproducible bytes, for debugging and tests. NOT PRIVATE: whoever has the seed has the noise.

    Args:
        seed: Any non-negative integer.
    """

    secret = False

    def __init__(self, seed: int, name: str = "") -> None:
        self.value = seed
        self._generator = np.random.Generator(
            np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))
        )

    def draw(self, size: int) -> UInt8[np.ndarray, " size"]:
        """Return the next bytes of the seeded stream."""
        return np.frombuffer(bytearray(self._generator.bytes(size)), np.uint8)

    def stream(self, name: str) -> Entropy:
        """Return another stream of the same seed."""
        return InsecureSeed(self.value, name)


def entropy_of_rank(seed: int | None, rank: int) -> Entropy:
    """Return one rank's source: the operating system's, or with a seed one that no other rank has.

    Ranks that drew the same noise would add it up R-fold instead of √R-fold, and ranks that drew
    the same samples would not be independent. Rank 0 has the seed itself.

    Args:
        seed: For debugging, insecure; None for the operating system's entropy.
        rank: Whose.
    """
    return OsEntropy() if seed is None else InsecureSeed(seed + (rank << _SEED_BITS))
