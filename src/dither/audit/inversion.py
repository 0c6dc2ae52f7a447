"""Model inversion: a person's sensitive attribute from a model and all else about the person.

Fredrikson et al. (USENIX Security 2014; CCS 2015): put every value that the attribute can have into
the record, ask the model how likely the person's known label is, weigh by how common the value is,
and take the most likely.

An attack that is often right need not show a leak: attributes can be guessed from other attributes
alone. So beside it stand the most common value for everybody; a guess from the other attributes and
the label by other people's records, without the model; and, above all, the same attack on models
that were *not* trained on the person. What the first has over the last is the leak; the rest is
what the population tells, which differential privacy does not hide and does not promise to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from dither.audit.telling import dp_ceiling
from dither.audit.trainings import Pool, Recipe, Tell, halves, quiet, trained
from dither.errors import ConfigError


@dataclass(frozen=True)
class Inverted:
    """How well one attribute is inferred from models of one recipe.

    Attributes:
        name: ``plain``, or ``epsilon`` and its value.
        epsilon: None for plain models.
        attribute: Column that is inferred.
        values: How many values it can have.
        models: Attacked.
        records: In the pool; half of them are in each model.
        accuracy: Of the attack on the people in the training data.
        control: Of the same attack on people that the model never saw.
        leak: accuracy − control.
        leak_low: Lower end of its confidence interval, over models.
        leak_high: Upper end.
        confidence: Of the interval.
        leak_ceiling: Largest leak that (ε, δ) allows; 1 for plain models.
        majority: Accuracy of the most common value for everybody.
        imputation: Of a guess from the other attributes and the label, without any model of them.
        label_accuracy: Of the models themselves, on records outside.
    """

    name: str
    epsilon: float | None
    attribute: str
    values: int
    models: int
    records: int
    accuracy: float
    control: float
    leak: float
    leak_low: float
    leak_high: float
    confidence: float
    leak_ceiling: float
    majority: float = math.nan
    imputation: float = math.nan
    label_accuracy: float = math.nan

    def beside(self, **baselines: float) -> Inverted:
        """Return it with baselines beside it."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return Inverted(**{**found, **baselines})

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Attribute:
    """Where a one-hot attribute stands among the features.

    Attributes:
        name: Column.
        columns: Its features.
        prior: How common each value is, among people of whom the attacker knows all.
    """

    name: str
    columns: tuple[int, ...]
    prior: Float[Tensor, " values"]

    @classmethod
    def of(cls, name: str, known: Pool) -> Attribute:
        """Find it, with its law among known people; each value counts one more than it was seen.

        Raises:
            ConfigError: No such column, or one of numbers.
        """
        columns = tuple(i for i, full in enumerate(known.names) if full.startswith(f"{name}="))
        if len(columns) < 2:
            kinds = sorted({full.partition("=")[0] for full in known.names if "=" in full})
            raise ConfigError(
                expected=f"an attribute with codes: {', '.join(kinds)}",
                got=repr(name),
                fix="name one of them",
            )
        counts = known.features[:, list(columns)].sum(dim=0) + 1.0
        return cls(name, columns, counts / counts.sum())

    def truth(self, pool: Pool) -> Int64[np.ndarray, " records"]:
        """Return each record's value."""
        return np.asarray(pool.features[:, list(self.columns)].argmax(dim=1).numpy())

    def hidden(self, pool: Pool) -> Float[Tensor, "records features"]:
        """Return the features with this attribute blanked out."""
        features = pool.features.clone()
        features[:, list(self.columns)] = 0.0
        return features


def invert(model: nn.Module, pool: Pool, attribute: Attribute) -> Int64[np.ndarray, " records"]:
    """Return the value of the attribute that the model and the prior make most likely.

    Args:
        model: Gives logits of the label.
        pool: Records, of which all but the attribute is used.
        attribute: What to infer.
    """
    features = attribute.hidden(pool)
    scores = []
    with torch.inference_mode():
        for column, prior in zip(attribute.columns, attribute.prior.tolist(), strict=True):
            features[:, column] = 1.0
            loss = F.cross_entropy(model(features).double(), pool.labels, reduction="none")
            scores.append(math.log(prior) - loss)
            features[:, column] = 0.0
    return np.asarray(torch.stack(scores, dim=1).argmax(dim=1).numpy())


def imputed(known: Pool, pool: Pool, attribute: Attribute) -> Int64[np.ndarray, " records"]:
    """Return guesses from the other attributes and the label, learnt from known people alone."""

    def inputs(of: Pool) -> np.ndarray:
        hidden = attribute.hidden(of).numpy()
        return np.column_stack([hidden, of.labels.numpy()])

    truth = attribute.truth(known)
    if (truth == truth[0]).all():
        return np.full(len(pool), truth[0], np.int64)  # of few people: all alike
    learner = LogisticRegression(max_iter=2000)
    learner.fit(inputs(known), truth)
    return np.asarray(learner.predict(inputs(pool)), np.int64)


def attack_inversion(
    pool: Pool,
    known: Pool,
    recipe: Recipe,
    attributes: Sequence[str],
    models: int,
    *,
    generator: np.random.Generator,
    confidence: float = 0.95,
    tell: Tell = quiet,
) -> tuple[Inverted, ...]:
    """Train models on halves of a pool, and infer attributes of everybody in it from each.

    Args:
        pool: People that are attacked.
        known: Other people of the same population, known to the attacker wholly.
        recipe: Of every model.
        attributes: Columns to infer, one after the other.
        models: How many, even, at least 8; every record is in half of them.
        generator: Draws the halves.
        confidence: Of intervals, over models.
        tell: Is told how many models are trained.

    Raises:
        ConfigError: No such attribute, or too few models.
    """
    sought = [Attribute.of(name, known) for name in attributes]
    members = halves(models, len(pool), generator)
    right = np.empty((len(sought), *members.shape), bool)
    labels = np.empty(members.shape, bool)
    for number, chosen in enumerate(members):
        model = trained(pool, chosen, recipe)
        with torch.inference_mode():
            labels[number] = (model(pool.features).argmax(dim=1) == pool.labels).numpy()
        for place, attribute in enumerate(sought):
            right[place, number] = invert(model, pool, attribute) == attribute.truth(pool)
        tell(number + 1, models)
    return tuple(
        _judged(found, members, recipe, attribute, confidence=confidence).beside(
            majority=float((attribute.truth(pool) == int(attribute.prior.argmax())).mean()),
            imputation=float((imputed(known, pool, attribute) == attribute.truth(pool)).mean()),
            label_accuracy=float(labels[~members].mean()),
        )
        for found, attribute in zip(right, sought, strict=True)
    )


def _judged(
    right: Bool[np.ndarray, "models records"],
    members: Bool[np.ndarray, "models records"],
    recipe: Recipe,
    attribute: Attribute,
    *,
    confidence: float,
) -> Inverted:
    """Compare the attack on members and on the others, model by model; no baselines yet."""
    inside = np.where(members, right, 0).sum(axis=1) / members.sum(axis=1)
    control = np.where(members, 0, right).sum(axis=1) / (~members).sum(axis=1)
    leaks = inside - control
    half = student.isf((1 - confidence) / 2, len(leaks) - 1) * leaks.std(ddof=1)
    half /= math.sqrt(len(leaks))
    ceiling = 1.0 if recipe.epsilon is None else dp_ceiling(recipe.epsilon, recipe.delta)
    return Inverted(
        name=recipe.name,
        epsilon=recipe.epsilon,
        attribute=attribute.name,
        values=len(attribute.columns),
        models=members.shape[0],
        records=members.shape[1],
        accuracy=float(inside.mean()),
        control=float(control.mean()),
        leak=float(leaks.mean()),
        leak_low=float(leaks.mean() - half),
        leak_high=float(leaks.mean() + half),
        confidence=confidence,
        leak_ceiling=ceiling,
    )
