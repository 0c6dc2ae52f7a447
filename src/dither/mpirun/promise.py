"""The plan that the options of ``dither mpirun`` promise."""

from __future__ import annotations

from typing import Any

from dither.errors import ConfigError
from dither.mpirun.options import MOST_RELEASES, MpirunConfig
from dither.mpirun.plan_file import with_room_for_a_pool
from dither.privacy.accountant import epsilon
from dither.privacy.events import Gaussian, Relation, SamplerKind, Unit
from dither.privacy.plan import Plan
from dither.privacy.trust import parse_trust


def make_plan(options: MpirunConfig) -> Plan:
    """Return the plan of one contribution a rank and call (`dither.release.contribution_plan`).

    Each release is a Gaussian mechanism without sampling under ``replace_one``: one rank's
    contribution becomes another in the same ball of radius C, at distance 2C (PRIVACY-REVIEW A6).

    Raises:
        ConfigError: A value is out of range, or the budget allows not even one release.
    """
    z, budget = options.noise_multiplier, options.epsilon
    releases = options.releases
    if releases is None:
        assert z is not None  # noqa: S101 - check() saw to it
        assert budget is not None  # noqa: S101
        releases = releases_within(budget, z, options.delta)
        budget = None
    promise: dict[str, Any] = {
        "relation": Relation.REPLACE_ONE,
        "unit": Unit.RANK,
        "l2_clip": options.clip,
        "delta": options.delta,
        "steps": releases,
        "records": options.ranks,
        "trust": parse_trust(options.trust),
    }
    if budget is not None:
        plan = Plan.calibrate(epsilon=budget, batch_size=options.ranks, **promise)
    else:
        assert z is not None  # noqa: S101
        full = SamplerKind.FULL
        plan = Plan(noise_multiplier=z, sampling_rate=1.0, sampler=full, **promise)
    return with_room_for_a_pool(plan)


def releases_within(budget: float, noise_multiplier: float, delta: float) -> int:
    """Return the largest number of releases whose ε stays within a budget, at most 10⁹.

    Raises:
        ConfigError: Not even one does.
    """
    event = Gaussian(noise_multiplier)

    def fits(count: int) -> bool:
        return epsilon([(event, count)], delta, Relation.REPLACE_ONE) <= budget

    if not fits(1):
        one = epsilon([(event, 1)], delta, Relation.REPLACE_ONE)
        raise ConfigError(
            expected=f"an --epsilon of at least {one:.4g}, which one release costs at this noise",
            got=repr(budget),
            fix="raise --epsilon or --noise-multiplier",
        )
    low, high = 1, 2
    while high < MOST_RELEASES and fits(high):
        low, high = high, high * 2
    if high >= MOST_RELEASES and fits(MOST_RELEASES):
        return MOST_RELEASES
    high = min(high, MOST_RELEASES)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
