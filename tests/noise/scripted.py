"""Entropy that says what a test wants it to say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import numpy as np
from jaxtyping import UInt8

from dither.noise.entropy import Entropy


@final
class Scripted(Entropy):
    """Hands out the given bytes in order, and fails when more are wanted."""

    secret = True

    def __init__(self, content: bytes) -> None:
        self.content = content

    @classmethod
    def words(cls, words: Iterable[int]) -> Scripted:
        """From 64-bit words."""
        return cls(np.array(list(words), np.uint64).tobytes())

    def draw(self, size: int) -> UInt8[np.ndarray, " size"]:
        assert size <= len(self.content), "more entropy wanted than the script has"
        given, self.content = self.content[:size], self.content[size:]
        return np.frombuffer(bytearray(given), np.uint8)

    def stream(self, name: str) -> Entropy:
        return self


@final
class Tail(Entropy):
    """Uniform words, but with the top bits of |Z|'s tail probability zero: p < 2^−(bits+1)."""

    secret = True

    def __init__(self, bits: int, seed: int) -> None:
        self.bits = bits
        self.first = True
        self.generator = np.random.default_rng(seed)

    def draw(self, size: int) -> UInt8[np.ndarray, " size"]:
        words = self.generator.integers(0, 2**64, size // 8, np.uint64, endpoint=False)
        if self.first:  # refinements after it are not conditioned
            words >>= np.uint64(self.bits)
            self.first = False
        return words.view(np.uint8)

    def stream(self, name: str) -> Entropy:
        return self
