"""From events to ε, by Google's dp-accounting. We never write our own composition."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from dp_accounting import UnsupportedEventError, get_epsilon_gaussian, pld, rdp
from dp_accounting.pld import privacy_loss_distribution as distributions
from dp_accounting.pld.common import DifferentialPrivacyParameters

from dither.errors import ConfigError
from dither.privacy.events import (
    ApproximateDP,
    Event,
    Gaussian,
    NonPrivate,
    Relation,
    SampledGaussian,
)

PLD = "PLD (dp-accounting)"
CLOSED_FORM = "closed form of Gaussians (dp-accounting)"

_ROUNDING = 1e-11  # above the tolerance of dp-accounting's solver

# RDP orders. Fractional ones below 1.5 need more terms than dp-accounting sums at little noise.
_ORDERS = [1.5, 1.75, *range(2, 64), 80, 96, 128, 192, 256, 512, 1024]


def check_delta(delta: float) -> None:
    """Refuse a δ outside (0, 1).

    Raises:
        ConfigError: δ is out of range.
    """
    if not 0.0 < delta < 1.0:
        raise ConfigError(
            expected="a delta in (0, 1)",
            got=repr(delta),
            fix="choose delta well below 1/n, for instance 1e-7 for a million records",
        )


def epsilon(
    events: Iterable[tuple[Event, int]], delta: float, relation: Relation = Relation.ZERO_OUT
) -> float:
    """Return ε of all events together, by privacy loss distributions.

    Plain Gaussians compose to one, of precision Σ 1/z² (Dong, Roth and Su 1905.02383, Corollary
    3.3), whose ε has a closed form (Balle and Wang 1805.06530): where there are no others,
    dp-accounting's solver takes milliseconds for any number of releases, and the grid of a
    distribution would take hours.

    Args:
        events: Events with how often each happened; equal events are merged.
        delta: δ in (0, 1).
        relation: Neighbouring relation of the account.

    Returns:
        ε, an upper bound: exact and rounded up for plain Gaussians, else up to dp-accounting's
        pessimistic discretisation; ``inf`` as soon as one event is not private; 0 for no event.
    """
    check_delta(delta)
    counts = _merge(events)
    if any(isinstance(event, NonPrivate) for event in counts):
        return math.inf
    gaussians = [(event, count) for event, count in counts.items() if isinstance(event, Gaussian)]
    if counts and len(gaussians) == len(counts):
        return _of_gaussians(gaussians, delta, relation)
    if any(isinstance(event, ApproximateDP) for event in counts):
        return _of_distributions(counts, delta, relation)
    accountant = pld.PLDAccountant(relation.to_dp_accounting(), _interval(counts))
    for event, count in counts.items():
        accountant.compose(event.to_dp_event(), count)
    return float(accountant.get_epsilon(delta)) if counts else 0.0


def _of_distributions(counts: Counter[Event], delta: float, relation: Relation) -> float:
    """Compose as dp-accounting's accountant does, and with it (ε, δ), which has no event there."""
    interval = _interval(counts)
    total = distributions.identity(interval)
    for event, count in counts.items():
        total = total.compose(_distribution(event, count, relation, interval))
    return float(total.get_epsilon_for_delta(delta))


def _distribution(event: Event, count: int, relation: Relation, interval: float) -> Any:
    """Return the privacy loss distribution of so many releases of one event."""
    if isinstance(event, ApproximateDP):
        known = DifferentialPrivacyParameters(event.epsilon, event.delta)
        return distributions.from_privacy_parameters(known, interval).self_compose(count)
    assert not isinstance(event, NonPrivate)  # noqa: S101 - has no distribution; ε is infinite
    options = {
        "value_discretization_interval": interval,
        "neighboring_relation": relation.to_dp_accounting(),
    }
    if isinstance(event, Gaussian):
        noise = event.noise_multiplier / math.sqrt(count)
        return distributions.from_gaussian_mechanism(noise, **options)
    one = distributions.from_gaussian_mechanism(
        event.noise_multiplier, sampling_prob=event.rate, **options
    )
    return one.self_compose(count)


def _of_gaussians(
    events: Iterable[tuple[Gaussian, int]], delta: float, relation: Relation
) -> float:
    precision = math.fsum(count / event.noise_multiplier**2 for event, count in events)
    distance = 2.0 if relation is Relation.REPLACE_ONE else 1.0
    with np.errstate(divide="ignore"):  # δ(0) = 0 at much noise, whose logarithm it takes
        found = float(get_epsilon_gaussian(1.0 / (distance * math.sqrt(precision)), delta))
    return found * (1.0 + 1e-9) + _ROUNDING if found else 0.0


def method(events: Iterable[tuple[Event, int]]) -> str:
    """Return the name of what `epsilon` does for these events."""
    return CLOSED_FORM if all(isinstance(event, Gaussian) for event in _merge(events)) else PLD


def epsilon_rdp(
    events: Iterable[tuple[Event, int]], delta: float, relation: Relation = Relation.ZERO_OUT
) -> float | None:
    """Return ε by Rényi divergences, a looser bound to check PLD against.

    Returns:
        ε, to which releases that are no more than (ε, δ)-private add theirs (basic composition); or
        None where RDP says nothing: under ``replace_one`` dp-accounting's RDP refuses sampled
        events and does not double the sensitivity of plain ones, and where δ is taken up.
    """
    check_delta(delta)
    counts = _merge(events)
    if relation is Relation.REPLACE_ONE:
        return None
    if any(isinstance(event, NonPrivate) for event in counts):
        return math.inf
    apart = [(event, n) for event, n in counts.items() if isinstance(event, ApproximateDP)]
    added = math.fsum(event.epsilon * n for event, n in apart)
    delta -= math.fsum(event.delta * n for event, n in apart)
    if delta <= 0.0:
        return None
    rest = {event: n for event, n in counts.items() if not isinstance(event, ApproximateDP)}
    accountant = rdp.RdpAccountant(_ORDERS, relation.to_dp_accounting())
    try:
        with _quiet():
            for event, count in rest.items():
                accountant.compose(event.to_dp_event(), count)
    except UnsupportedEventError:
        return None
    return added + (float(accountant.get_epsilon(delta)) if rest else 0.0)


def epsilon_by_step(
    event: Event, steps: Sequence[int], delta: float, relation: Relation = Relation.ZERO_OUT
) -> list[float]:
    """Return ε after each of the given numbers of steps of one event."""
    return [epsilon([(event, step)], delta, relation) for step in steps]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep dp-accounting from warning of orders that it leaves out: the bound holds without."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _interval(counts: Counter[Event]) -> float:
    """Return the PLD's discretisation: dp-accounting's own, but coarser at hardly any noise.

    Below z = 0.4, ε is far above 10 and a fine grid would take minutes; the bound stays valid.
    """
    fine, coarse = 1e-4, 1e-2
    noises = [e.noise_multiplier for e in counts if not isinstance(e, NonPrivate | ApproximateDP)]
    return fine if min(noises, default=1.0) >= 0.4 else coarse


def _merge(events: Iterable[tuple[Event, int]]) -> Counter[Event]:
    counts: Counter[Event] = Counter()
    for event, count in events:
        if count < 0:
            raise ConfigError(
                expected="a count of at least 0",
                got=f"{count} of {event}",
                fix="charge events, never take charges back",
            )
        # A full sample is a plain Gaussian; the accountant is told so in the simplest form.
        if isinstance(event, SampledGaussian) and event.rate == 1.0:
            event = Gaussian(event.noise_multiplier)  # noqa: PLW2901
        counts[event] += count
    return +counts
