"""Metrics on held-out records: exact, so not covered by the guarantee for those records."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from sklearn.metrics import log_loss, precision_recall_curve, roc_auc_score, roc_curve
from torch import nn

from dither.data.store import RecordStore
from dither.errors import ModelError

_ROWS = 16_384
_POINTS = 400


@dataclass(frozen=True)
class HeldOut:
    """Scores of the positive class on held-out records, with the labels."""

    scores: Float64[np.ndarray, " records"]
    labels: Int64[np.ndarray, " records"]

    def metrics(self) -> dict[str, float]:
        """Return area under the ROC curve, and unweighted cross-entropy in nats.

        Beside it the loss of guessing the held-out share of positives for everyone: clipping can
        leave good rankings with bad probabilities, and this shows it.
        """
        guess = np.full_like(self.scores, self.labels.mean())
        return {
            "loss_of_constant_guess": float(log_loss(self.labels, guess, labels=[0, 1])),
            "auroc": float(roc_auc_score(self.labels, self.scores)),
            "loss": float(log_loss(self.labels, self.scores, labels=[0, 1])),
        }

    def curves(self) -> dict[str, dict[str, list[float]]]:
        """Return ROC and precision-recall curves, thinned to a few hundred points."""
        fpr, tpr, _ = roc_curve(self.labels, self.scores)
        precision, recall, _ = precision_recall_curve(self.labels, self.scores)
        return {
            "roc": {"fpr": _thin(fpr), "tpr": _thin(tpr)},
            "pr": {"recall": _thin(recall), "precision": _thin(precision)},
        }


def held_out(model: nn.Module, store: RecordStore, units: Int64[np.ndarray, " units"]) -> HeldOut:
    """Score all rows of held-out units (records, or persons) in batches.

    The task's class weights, public numbers, are taken out of the scores again: weighted
    cross-entropy is least where a model's odds are the true ones times the ratio of the weights.
    """
    rows = store.rows_of(units)
    tilt = torch.tensor(store.task.class_weights, dtype=torch.float64).log()
    scores, labels = [], []
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for start in range(0, rows.size, _ROWS):
            features, target = store.gather(rows[start : start + _ROWS])
            scores.append(torch.softmax(model(features).double() - tilt, dim=1)[:, 1].numpy())
            labels.append(target.numpy())
    model.train(was_training)
    found = HeldOut(np.concatenate(scores), np.concatenate(labels))
    if not np.isfinite(found.scores).all():
        raise ModelError(
            expected="a model with finite outputs",
            got="NaN or infinity: training diverged",
            fix="start a new run with a smaller --learning-rate; what was charged stays charged",
        )
    return found


def _thin(values: Float64[np.ndarray, " points"]) -> list[float]:
    chosen = np.unique(np.linspace(0, values.size - 1, _POINTS).round().astype(int))
    return [float(value) for value in values[chosen]]
