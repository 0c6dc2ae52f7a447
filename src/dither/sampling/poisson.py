"""Poisson sampling: every record enters a batch independently, with the same probability."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Int64

from dither.errors import ConfigError
from dither.noise.entropy import Entropy, OsEntropy
from dither.privacy.events import SamplerKind
from dither.privacy.ticket import SampleTicket
from dither.sampling.gaps import gaps

_LONGEST = 1 << 20
_MOST_RECORDS = 1 << 42  # times _LONGEST still fits 64 bits


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

    Every row is in with probability ``rate`` exactly: the gaps between chosen rows are exact
    geometric draws (`gaps`), so a sample costs what it holds, not what the store holds. The empty
    sample is a normal one.

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
        if not 0 <= records <= _MOST_RECORDS:
            raise ConfigError(
                expected="between 0 and 2^42 records", got=str(records), fix="check the store"
            )
        self.records = records
        self.rate = rate
        self.kind = SamplerKind.FULL if rate == 1.0 else SamplerKind.POISSON
        self.entropy = entropy or OsEntropy()

    def draw(self) -> Sample:
        """Return a fresh sample."""
        secret = self.entropy.secret
        ticket = SampleTicket(self.kind, self.rate, secret=secret, population=self.records)
        if self.kind is SamplerKind.FULL:
            return Sample(np.arange(self.records, dtype=np.int64), ticket)
        return Sample(self._rows(), ticket)

    def _rows(self) -> Int64[np.ndarray, " batch"]:
        expected = self.records * self.rate
        # Nearly always one round; a long sample in parts keeps sums within 64 bits.
        count = min(int(expected + 6.0 * math.sqrt(expected)) + 16, _LONGEST)
        parts: list[Int64[np.ndarray, " part"]] = []
        last = -1
        while last < self.records - 1:
            rows = last + np.cumsum(gaps(self.rate, count, self.records, self.entropy) + 1)
            parts.append(rows[: np.searchsorted(rows, self.records)])
            last = int(rows[-1])
        return np.concatenate(parts) if parts else np.empty(0, np.int64)
