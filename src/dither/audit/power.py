"""Power of the one-run audit: which defects it sees, by simulation with the audit's own score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dither.audit import f_dp
from dither.audit.bounds import epsilon_one_run, p_value
from dither.audit.scores import Channel, choose_rule, guess, simulate
from dither.privacy.plan import Plan

NOISES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Power:
    """How often audits of one size see one defect.

    Attributes:
        noise: Share of the claimed noise; 1 is an honest run, whose alarms are false.
        canaries: m.
        trials: Simulated audits.
        detected: Share with a bound on ε above the claim, for any mechanism.
        noise_detected: Share with a bound on the noise below the claim, for the plan's mechanism.
        epsilon: Mean lower bound on ε.
    """

    noise: float
    canaries: int
    trials: int
    detected: float
    noise_detected: float
    epsilon: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def power_curve(
    plan: Plan,
    channel: Channel,
    canaries: Sequence[int],
    *,
    noises: Sequence[float] = NOISES,
    trials: int = 20,
    confidence: float = 0.95,
    told: Callable[[int, int], None] | None = None,
    seed: int | None = None,
) -> Iterator[Power]:
    """Yield the power for every number of canaries and every defect.

    Args:
        plan: The claim.
        channel: Its noise and samples.
        canaries: Numbers of canaries.
        noises: Shares of the claimed noise.
        trials: Audits simulated for each.
        confidence: Of each test.
        told: Of audits done, and of all.
        seed: Of the simulation; a fresh one by default.
    """
    draw, allowed = np.random.default_rng(seed), 1.0 - confidence
    claimed, curve = plan.epsilon(), f_dp.TradeOff.of_plan(plan)
    done, total = 0, len(canaries) * len(noises) * trials
    for count in canaries:
        rule = choose_rule(channel, count)
        for noise in noises:
            seen = np.zeros((trials, 3))
            for trial in range(trials):
                scores, included = simulate(channel, count, noise, draw)
                found = guess(scores, included, rule)
                seen[trial] = (
                    p_value(found, claimed, plan.delta) <= allowed,
                    f_dp.p_value(found, curve) <= allowed,
                    epsilon_one_run(found, plan.delta, confidence),
                )
                done += 1
                if told is not None:
                    told(done, total)
            yield Power(noise, count, trials, *(float(mean) for mean in seen.mean(axis=0)))
