"""Membership inference on plain and private models of the same records.

Many models are trained, each on a random half of one pool; each serves once as the target of the
attack, and as a shadow of all others (2112.03570, section VI). The private ones are attacked with
shadows that were trained privately, so the attacker knows the mechanism as well as we do.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dither.audit.likelihood import (
    FALSE_POSITIVE_RATES,
    Members,
    Roc,
    Scores,
    judge,
    likelihood_scores,
)
from dither.audit.telling import dp_tpr
from dither.audit.trainings import Pool, Recipe, Tell, confidences, halves, quiet, trained


@dataclass(frozen=True)
class Attacked:
    """What membership inference finds in models of one recipe.

    Attributes:
        name: ``plain``, or ``epsilon`` and its value.
        epsilon: None for plain models.
        delta: Of private ones.
        models: Targets.
        records: In the pool; half of them are in each model.
        accuracy: Share of members that a model labels rightly.
        accuracy_outside: The same of the others: the gap is what overfitting left.
        attacks: By likelihood ratio and by loss.
        ceilings: Largest TPR that (ε, δ) allows at the rates of the attacks; 1 for plain models.
    """

    name: str
    epsilon: float | None
    delta: float
    models: int
    records: int
    accuracy: float
    accuracy_outside: float
    attacks: tuple[Roc, ...]
    ceilings: tuple[float, ...]

    def tpr(self, attack: str, fpr: float) -> float:
        """Return an attack's TPR at one of its false-positive rates."""
        roc = next(roc for roc in self.attacks if roc.attack == attack)
        return next(rate.tpr for rate in roc.rates if rate.fpr == fpr)

    def within(self) -> bool:
        """Whether no attack's interval lies above what (ε, δ) allows: a hint, for four of 95 %."""
        return all(
            rate.low <= ceiling
            for roc in self.attacks
            for rate, ceiling in zip(roc.rates, self.ceilings, strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "within": self.within()}


def attack_membership(
    pool: Pool,
    recipe: Recipe,
    models: int,
    *,
    generator: np.random.Generator,
    tell: Tell = quiet,
) -> Attacked:
    """Train models on halves of a pool, and guess which half each was trained on.

    Args:
        pool: The records.
        recipe: Of every model.
        models: How many, even, at least 8.
        generator: Draws the halves.
        tell: Is told how many models are trained.

    Raises:
        ConfigError: Too few models, or a recipe that does not fit the records.
    """
    members = halves(models, len(pool), generator)
    phi = np.empty(members.shape)
    for number, chosen in enumerate(members):
        phi[number] = confidences(trained(pool, chosen, recipe), pool)
        tell(number + 1, models)
    return judged(phi, members, recipe)


def judged(phi: Scores, members: Members, recipe: Recipe) -> Attacked:
    """Return what attacks on these confidences find."""
    epsilon = math.inf if recipe.epsilon is None else recipe.epsilon
    return Attacked(
        name=recipe.name,
        epsilon=recipe.epsilon,
        delta=recipe.delta,
        models=len(phi),
        records=phi.shape[1],
        accuracy=float((phi[members] > 0).mean()),
        accuracy_outside=float((phi[~members] > 0).mean()),
        attacks=(
            judge("likelihood", likelihood_scores(phi, members), members),
            # The loss −log p falls as φ rises, so φ is its order.
            judge("loss", phi, members),
        ),
        ceilings=tuple(dp_tpr(rate, epsilon, recipe.delta) for rate in FALSE_POSITIVE_RATES),
    )


def ratio_at(plain: Attacked, private: Attacked, fpr: float = 0.01) -> float:
    """Return how many times the private models' TPR the plain ones' is, by likelihood ratio."""
    below = private.tpr("likelihood", fpr)
    return plain.tpr("likelihood", fpr) / below if below > 0.0 else math.inf
