"""Proof of how a sample was drawn, good for one release."""

from __future__ import annotations

import os

from dither.errors import SamplingError
from dither.privacy.events import SamplerKind
from dither.privacy.plan import Plan


class SampleTicket:
    """A fresh sample's right to one release.

    Two releases on one sample are not two sampled events (PRIVACY-REVIEW A2), so a retry, a probe
    and a quantile each draw a fresh one. A sampler issues the ticket with the sample; releasing
    spends it.

    Args:
        kind: The sampler that ran.
        rate: The rate it ran at.
        secret: Whether nobody can know or repeat the draw.
        population: How many records it was drawn from; 0 where nobody says.
    """

    __slots__ = ("_owner", "_unspent", "kind", "population", "rate", "secret")

    def __init__(
        self, kind: SamplerKind, rate: float, *, secret: bool, population: int = 0
    ) -> None:
        self.kind = kind
        self.rate = rate
        self.secret = secret
        self.population = population
        self._unspent = [True]  # popping is atomic, also between threads
        self._owner = os.getpid()

    def spend(self, plan: Plan) -> None:
        """Use the ticket up.

        Raises:
            SamplingError: It was used before, or the plan charges another sampler or rate.
        """
        if not self._unspent:
            raise _spent()
        if os.getpid() != self._owner:
            raise SamplingError(
                expected="a sample that stays in its process",
                got="one that was drawn before a fork, which the parent may release too",
                fix="draw a fresh sample where it is needed",
            )
        if (self.kind, self.rate) != (plan.sampler, plan.sampling_rate):
            raise SamplingError(
                expected=f"a {plan.sampler} sample at rate {plan.sampling_rate!r}, as charged",
                got=f"a {self.kind} sample at rate {self.rate!r}",
                fix="iterate over the loader that make_private returned",
            )
        try:
            self._unspent.pop()
        except IndexError:
            raise _spent() from None

    def __reduce__(self) -> str:
        raise SamplingError(
            expected="a sample that stays in its process",
            got="an attempt to copy or pickle its ticket",
            fix="draw a fresh sample where it is needed",
        )


def _spent() -> SamplingError:
    return SamplingError(
        expected="a fresh sample for every release",
        got="a batch that was released before",
        fix="take the next batch from the loader, also after an error",
    )
