"""Poisson sampling: every record enters a batch independently, with the same probability."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import final

import numpy as np
from jaxtyping import Int64

from dither.errors import ConfigError
from dither.noise.entropy import Entropy, OsEntropy
from dither.privacy.events import SamplerKind
from dither.privacy.ticket import SampleTicket

_BITS = 64


@dataclass(frozen=True)
class Sample:
    """One draw.

    Attributes:
        rows: Row numbers in ascending order. Secret: who is in a batch must not leak.
        ticket: The sample's right to one release.
    """

    rows: Int64[np.ndarray, " batch"]
    ticket: SampleTicket


@final
class PoissonSampler:
    """Draws Poisson samples of ``records`` rows at ``rate``.

    Every row is in with probability ⌊rate·2⁶⁴⌋/2⁶⁴, decided by comparing uniform bits with the
    threshold: never above the charged rate, and ε grows with the rate. Most rows are decided by
    their first byte; only the others draw the remaining 56 bits. The empty sample is a normal one.

    Args:
        records: n, number of rows.
        rate: Probability in (0, 1].
        entropy: Secret randomness; never a seed that is shared, stored or resumed.
    """

    def __init__(self, records: int, rate: float, entropy: Entropy | None = None) -> None:
        if not 0.0 < rate <= 1.0:
            raise ConfigError(
                expected="a sampling rate in (0, 1]", got=repr(rate), fix="check the batch size"
            )
        self.records = records
        self.rate = rate
        self.kind = SamplerKind.FULL if rate == 1.0 else SamplerKind.POISSON
        self.entropy = entropy or OsEntropy()
        threshold = int(Fraction(rate) * 2**_BITS)
        self._first_byte, self._rest = divmod(threshold, 1 << (_BITS - 8))

    def draw(self) -> Sample:
        """Return a fresh sample."""
        ticket = SampleTicket(self.kind, self.rate, secret=self.entropy.secret)
        if self.kind is SamplerKind.FULL:
            return Sample(np.arange(self.records, dtype=np.int64), ticket)
        first = self.entropy.draw(self.records)
        chosen = first < self._first_byte
        undecided = np.flatnonzero(first == self._first_byte)
        rest = self.entropy.draw(8 * undecided.size).view(np.uint64) >> np.uint64(8)
        chosen[undecided] = rest < self._rest
        return Sample(np.flatnonzero(chosen).astype(np.int64), ticket)
