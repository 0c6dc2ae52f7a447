"""The noise multiplier that a budget buys."""

from __future__ import annotations

import math
from functools import lru_cache

from scipy import optimize

from dither.errors import ConfigError
from dither.privacy.accountant import epsilon
from dither.privacy.events import Event, Relation, SampledGaussian

_SMALLEST, _LARGEST = 2.0**-4, 2.0**14


@lru_cache(maxsize=64)
def noise_multiplier(
    target_epsilon: float,
    *,
    delta: float,
    rate: float,
    steps: int,
    relation: Relation = Relation.ZERO_OUT,
    beside: tuple[tuple[Event, int], ...] = (),
    tolerance: float = 2e-4,
) -> float:
    """Return the smallest noise multiplier z whose plan stays within ε.

    Args:
        target_epsilon: ε > 0.
        delta: δ in (0, 1).
        rate: Poisson sampling rate in (0, 1].
        steps: Number of steps, at least 1.
        relation: Neighbouring relation.
        beside: Other releases that the same budget pays for, with how often each happens.
        tolerance: Relative width at which the search stops.

    Returns:
        z, always on the safe side: ε(z) ≤ ``target_epsilon`` holds for the value returned, for the
        steps and what is beside them together.

    Raises:
        ConfigError: ε ≤ 0, no z up to 2¹⁴ reaches it, or what is beside the steps takes it all.
    """
    if not (target_epsilon > 0.0 and math.isfinite(target_epsilon)):
        raise ConfigError(
            expected="a finite epsilon above 0",
            got=repr(target_epsilon),
            fix="choose a budget, for instance --epsilon 1",
        )

    _require_room(target_epsilon, delta, relation, beside)

    def spent(z: float) -> float:
        return epsilon([(SampledGaussian(rate, z), steps), *beside], delta, relation)

    safe = 1.0
    while spent(safe) > target_epsilon:
        safe *= 2.0
        if safe > _LARGEST:
            raise ConfigError(
                expected=f"an epsilon that a noise multiplier of at most {_LARGEST:g} reaches",
                got=f"epsilon {target_epsilon:g} for {steps} steps at rate {rate:g}",
                fix="raise epsilon or delta, take fewer steps, or a smaller batch",
            )
    unsafe = safe / 2.0
    while unsafe > _SMALLEST and spent(unsafe) <= target_epsilon:
        safe, unsafe = unsafe, unsafe / 2.0
    if unsafe <= _SMALLEST:
        return safe

    def excess(log_z: float) -> float:
        return spent(math.exp(log_z)) / target_epsilon - 1.0  # ε may be 0, so no logarithm

    root = optimize.brentq(excess, math.log(unsafe), math.log(safe), xtol=tolerance / 2)
    z = math.exp(root)
    while spent(z) > target_epsilon:  # Brent may end on the unsafe side
        z *= 1.0 + tolerance / 2
    return z


def _require_room(
    target: float, delta: float, relation: Relation, beside: tuple[tuple[Event, int], ...]
) -> None:
    taken = epsilon(beside, delta, relation)
    if taken >= target:
        raise ConfigError(
            expected=f"an epsilon above the {taken:.3g} that the releases beside the steps take",
            got=f"{target:g}",
            fix="give them more noise, release them less often, or raise epsilon",
        )
