"""Attackers who know a mechanism by heart, and try to tell its inputs apart by low bits alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tests.noise.laws import ALARM, Counts, Integers, Reals, binomial

# Releases so many coordinates, the input at its first or second value.
IntegerMechanism = Callable[[bool, int], Integers]
FloatMechanism = Callable[[bool, int], Reals]

_BANDS, _LOW = 8, 16
_BLOCK = 1 << 18
_PATTERNS = 64


def _cells(released: Integers) -> Integers:
    """Band of magnitude (halves of σ = 2²⁰, for a float's grid widens with it), low four bits."""
    band = np.minimum(np.abs(released) >> 19, _BANDS - 1)
    cells: Integers = band * _LOW + (released & (_LOW - 1))
    return cells


@dataclass(frozen=True)
class ShiftAttack:
    """Tells noise from noise shifted by one step (PRIVACY-REVIEW A1), by likelihood of low bits.

    Attributes:
        logs: Log-likelihood of each cell, shape ``[128]``.
    """

    logs: Reals

    @classmethod
    def learn(cls, mechanism: IntegerMechanism, count: int = 1 << 24) -> ShiftAttack:
        """Learn the law of the low bits from releases of the unshifted input."""
        counts = np.full(_BANDS * _LOW, 0.5)
        for _ in range(count // _BLOCK):
            counts += np.bincount(_cells(mechanism(False, _BLOCK)), minlength=counts.size)
        return cls(np.log(counts))

    def successes(self, mechanism: IntegerMechanism, trials: int, dimension: int) -> int:
        """Return how often the attacker says rightly whether all coordinates were shifted."""
        return sum(
            self._says_shifted(mechanism(shifted, dimension)) == shifted
            for shifted in (trial % 2 == 1 for trial in range(trials))
        )

    def _says_shifted(self, released: Integers) -> bool:
        shifted, not_shifted = (
            float(np.bincount(_cells(noise), minlength=self.logs.size) @ self.logs)
            for noise in (released - 1, released)
        )
        return shifted > not_shifted


@dataclass(frozen=True)
class FloatAttack:
    """Mironov's attack (CCS 2012): which digits of a float can be reached from which input.

    A sum of C and noise is a multiple of the larger one's last digit, so a small sum lacks digits
    that small noise alone has. Only six digits at a fixed place are looked at, far below σ: what
    they tell is not what the Gaussian mechanism may tell.

    Attributes:
        unit: Place of the middle digits; those from unit/8 to 4·unit are seen.
        counts: Of each pattern, from either input, shape ``[2, 64]``.
    """

    unit: float
    counts: np.ndarray[tuple[int, int], np.dtype[np.float64]]

    @classmethod
    def learn(cls, mechanism: FloatMechanism, unit: float, count: int = 1 << 20) -> FloatAttack:
        """Learn from releases of both inputs."""
        seen = (
            np.bincount(_digits(mechanism(second, count), unit), minlength=_PATTERNS)
            for second in (False, True)
        )
        return cls(unit, np.stack([one.astype(np.float64) for one in seen]))

    def unreachable(self) -> int:
        """Return how many patterns one input reaches and the other does not.

        A pattern counts where its absence has a probability below 1e-7, were it as frequent as
        from the other input.
        """
        return int(np.count_nonzero((self.counts == 0) & (np.exp(-self.counts[::-1]) < ALARM)))

    def successes(self, mechanism: FloatMechanism, trials: int, dimension: int) -> int:
        """Return how often the attacker names the input rightly."""
        logs = np.log(self.counts + 0.5)
        ratio = logs[1] - logs[0]
        return sum(
            bool(ratio[_digits(mechanism(second, dimension), self.unit)].sum() > 0) == second
            for second in (trial % 2 == 1 for trial in range(trials))
        )


def _digits(released: Reals, unit: float) -> Counts:
    """Six binary digits and no sign; exact, for units are powers of two."""
    return np.floor(np.mod(np.abs(released) / unit, 8.0) * 8.0).astype(np.int64)


def guessing(successes: int, trials: int) -> bool:
    """Whether these are the successes of one who only guesses: false alarm 1e-7."""
    return binomial(successes, trials, 0.5)
