"""Membership scores by loss and by likelihood ratio, and what they are worth at small error.

Carlini et al. 2112.03570: an attack is worth its true-positive rate (TPR) where false accusations
are rare. The likelihood-ratio attack (LiRA) asks for each record how confident models are that saw
it, and how confident those that did not: shadow models on random halves give both laws, Gaussian in
the logit-scaled confidence φ = log p − log(1 − p); the score of a model is the log-ratio of their
densities at its own φ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from dither.errors import ConfigError

FALSE_POSITIVE_RATES = (0.001, 0.01)
_RESAMPLES = 400
_CURVE = 200  # points of a curve that is kept


@dataclass(frozen=True)
class Rate:
    """A true-positive rate.

    Attributes:
        fpr: At most this false-positive rate.
        tpr: Estimate, over all target models together.
        low: Lower end of its confidence interval.
        high: Upper end.
        confidence: Of the interval.
    """

    fpr: float
    tpr: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class Roc:
    """What an attack's scores are worth.

    Attributes:
        attack: ``likelihood`` or ``loss``.
        rates: At the false-positive rates that count.
        advantage: Largest TPR − FPR.
        auc: Area under the curve.
        fpr: The curve, thinned evenly in log FPR.
        tpr: Of each.
    """

    attack: str
    rates: tuple[Rate, ...]
    advantage: float
    auc: float
    fpr: tuple[float, ...]
    tpr: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


Scores = Float[np.ndarray, "models records"]
Members = Bool[np.ndarray, "models records"]


def confidence_logit(logits: Float[np.ndarray, "records classes"], labels: np.ndarray) -> Any:
    """Return φ = log p_y − log(1 − p_y) of each record, from its logits (2112.03570, section V.A).

    Computed as z_y − log Σ_{c≠y} exp z_c, which does not lose digits where p is near 1.

    Args:
        logits: Shape ``[records, classes]``, 2 classes or more.
        labels: The true classes.

    Returns:
        Float64, shape ``[records]``.
    """
    rows = np.arange(len(labels))
    values = np.asarray(logits, np.float64)
    rest = values.copy()
    rest[rows, labels] = -np.inf
    return values[rows, labels] - np.logaddexp.reduce(rest, axis=1)


def likelihood_scores(phi: Scores, members: Members) -> Scores:
    """Return LiRA's score of every model on every record, all other models being its shadows.

    Means are each record's own; the two variances are shared by all records, which is the better
    estimate below about 64 shadows (2112.03570, section VI.C). The target never is its own shadow.

    Where every record is in exactly half of N models, a member has N/2 − 1 shadows that saw it and
    N/2 that did not, others the reverse: by that alone a useless score is a little worse than
    guessing, by 0.003 of AUC at N = 32 and 0.03 at N = 8.

    Args:
        phi: Logit-scaled confidences.
        members: Which records each model was trained on; every record in 2 models or more, and out
            of 2 or more, besides the target.

    Raises:
        ConfigError: Too few shadows of either kind for some record.
    """
    fewest = min(int(members.sum(axis=0).min()), int((~members).sum(axis=0).min()))
    if fewest < 3:
        raise ConfigError(
            expected="every record in at least 3 models and out of at least 3",
            got=str(fewest),
            fix="train more shadow models, each on half of the records",
        )
    scores = np.empty_like(phi)
    for target in range(len(phi)):
        others = np.arange(len(phi)) != target
        inside = _law(phi[others], members[others])
        outside = _law(phi[others], ~members[others])
        scores[target] = _log_density(phi[target], *inside) - _log_density(phi[target], *outside)
    return scores


def _law(phi: Scores, chosen: Members) -> tuple[np.ndarray, float]:
    """Return each record's mean over the chosen models, and the variance shared by all."""
    count = chosen.sum(axis=0)
    mean: np.ndarray = np.where(chosen, phi, 0.0).sum(axis=0) / count
    squares = np.where(chosen, (phi - mean) ** 2, 0.0).sum()
    freedom = max(int(count.sum()) - phi.shape[1], 1)  # one mean a record was fitted
    return mean, max(float(squares) / freedom, 1e-12)


def _log_density(phi: np.ndarray, mean: np.ndarray, variance: float) -> np.ndarray:
    return np.asarray(-0.5 * ((phi - mean) ** 2 / variance + np.log(variance)))


def judge(
    attack: str,
    scores: Scores,
    members: Members,
    *,
    rates: Sequence[float] = FALSE_POSITIVE_RATES,
    confidence: float = 0.95,
) -> Roc:
    """Return the ROC of scores, all target models together.

    Intervals are by the bootstrap over target models: the scores of one model depend on each other,
    those of different ones are taken as independent (they share the pool of records, which is
    fixed: intervals speak of other trainings on it, not of other people).

    Args:
        attack: Name.
        scores: Larger means rather a member.
        members: The truth.
        rates: False-positive rates to report.
        confidence: Of the intervals.

    Raises:
        ConfigError: No members or no others.
    """
    if members.all() or not members.any():
        raise ConfigError(
            expected="records inside and outside of the models",
            got="only one kind",
            fix="train each model on about half of the records",
        )
    fpr, tpr = _curve(scores.ravel(), members.ravel())
    tail = (1.0 - confidence) / 2.0
    generator = np.random.default_rng(0)  # of the interval alone: the same data, the same figures
    picks = generator.integers(0, len(scores), (_RESAMPLES, len(scores)))
    found = []
    for rate in rates:
        drawn = [_tpr_at(*_curve(scores[p].ravel(), members[p].ravel()), rate) for p in picks]
        low, high = np.quantile(drawn, [tail, 1.0 - tail])
        found.append(Rate(rate, _tpr_at(fpr, tpr, rate), float(low), float(high), confidence))
    kept = _log_spaced(fpr)
    return Roc(
        attack=attack,
        rates=tuple(found),
        advantage=float((tpr - fpr).max()),
        auc=float(np.trapezoid(tpr, fpr)),
        fpr=tuple(float(value) for value in fpr[kept]),
        tpr=tuple(float(value) for value in tpr[kept]),
    )


def _curve(scores: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return FPR and TPR at every threshold, from the strictest on; ties move together."""
    order = np.argsort(-scores, kind="stable")
    ranked, truth = scores[order], members[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), ranked.size - 1)
    hits = np.cumsum(truth)[ends]
    alarms = ends + 1 - hits
    tpr = np.concatenate([[0.0], hits / max(int(truth.sum()), 1)])
    fpr = np.concatenate([[0.0], alarms / max(int((~truth).sum()), 1)])
    return fpr, tpr


def _tpr_at(fpr: np.ndarray, tpr: np.ndarray, rate: float) -> float:
    """Return the TPR of the laxest threshold whose FPR is at most the rate."""
    return float(tpr[np.searchsorted(fpr, rate, side="right") - 1])


def _log_spaced(fpr: np.ndarray) -> np.ndarray:
    least = fpr[fpr > 0].min(initial=1.0)
    wanted = np.geomspace(least, 1.0, _CURVE)
    places = np.searchsorted(fpr, wanted, side="right") - 1
    return np.unique(np.concatenate([[0], places, [fpr.size - 1]]))
