"""Held-out scores: probabilities of the positive class, whatever weights training had."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dither.data import build_store
from dither.data.store import RecordStore
from dither.data.synth import write_synthetic
from dither.train.evaluate import held_out


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RecordStore:
    folder = tmp_path_factory.mktemp("records")
    records = write_synthetic(folder / "persons.parquet", 4000, seed=3)
    return build_store(records, "unemployment", folder / "store")


class Weighted(nn.Module):
    """What weighted cross-entropy drives a model without inputs to."""

    def __init__(self, share: float, weights: tuple[float, float]) -> None:
        super().__init__()
        odds = torch.tensor([1.0 - share, share]) * torch.tensor(weights)
        self.logits = nn.Parameter(odds.log())

    def forward(self, features: Tensor) -> Tensor:
        return self.logits.expand(features.shape[0], 2)


def test_class_weights_are_taken_out_of_the_scores(store: RecordStore) -> None:
    units = store.split().test
    _, labels = store.gather(store.rows_of(units))
    share = float(labels.double().mean())
    first, second = store.task.class_weights
    assert (first, second) != (1.0, 1.0)
    found = held_out(Weighted(share, (float(first), float(second))), store, units)
    np.testing.assert_allclose(found.scores, share, rtol=1e-5)
    metrics = found.metrics()
    assert metrics["loss"] == pytest.approx(metrics["loss_of_constant_guess"], rel=1e-9)


def test_the_weighted_loss_is_least_there(store: RecordStore) -> None:
    """The reason: the gradient of the weighted loss is zero at these odds."""
    _, labels = store.gather(store.rows_of(store.split().test))
    weights = torch.tensor(store.task.class_weights, dtype=torch.float32)
    model = Weighted(float(labels.double().mean()), tuple(map(float, weights)))  # type: ignore[arg-type]
    logits = model.logits.expand(labels.numel(), 2)
    loss = nn.functional.cross_entropy(logits, labels, weight=weights)
    torch.autograd.backward(loss)
    assert model.logits.grad is not None
    assert model.logits.grad.abs().max() < 1e-5
