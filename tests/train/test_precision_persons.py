"""Low precision where the unit is a person of several rows: one vector, one bound, one price."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.train.options import options
from tests.train.test_persons import TASK, K, payments
from torch import nn
from torch.utils.data import DataLoader

import dither
from dither.clipping.loss import per_example
from dither.data.build import build_store
from dither.data.store import RecordStore, StoreDataset
from dither.noise.entropy import InsecureSeed, OsEntropy
from dither.precision.impacts import RELEASED
from dither.precision.loss import QuantizedLoss
from dither.precision.probe import Probe, ProbeOptions
from dither.precision.recipe import parse_recipe
from dither.privacy.account import Account
from dither.privacy.events import Unit
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.sampling.loader import PoissonBatch, PoissonLoader
from dither.sampling.poisson import PoissonSampler
from dither.train.loop import run_training
from dither.train.models import mlp, rows_loss
from dither.train.run import open_run

__all__ = ["payments"]
CLIP = 0.01
LOW = dither.Dynamic(
    dither.parse_recipe("luq-fp4"), probe=dither.ProbeOptions(noise_multiplier=3.0)
)


@pytest.fixture
def store(payments: Path, tmp_path: Path) -> RecordStore:
    return build_store(payments, TASK, tmp_path / "store")


def promise(persons: int, l2_clip: float = CLIP) -> Plan:
    return Plan(
        records=persons,
        sampling_rate=0.5,
        steps=3,
        l2_clip=l2_clip,
        noise_multiplier=3.0,
        delta=1e-5,
        unit=Unit.PERSON,
    )


def drawn(store: RecordStore, persons: np.ndarray) -> PoissonBatch:
    dataset = StoreDataset(store, persons)
    (batch,) = PoissonLoader(dataset, PoissonSampler(len(dataset), 1.0), 1)
    return batch


def probe_of(tmp_path: Path, store: RecordStore, batch: PoissonBatch, recipe: str) -> Probe:
    model = mlp(store.feature_dim, (7,), 2, seed=3)
    loss = per_example(rows_loss(torch.tensor(TASK.class_weights)))
    ledger = Ledger.create(tmp_path / "probes.sqlite", store="x", unit=Unit.PERSON)
    return Probe(
        model,
        QuantizedLoss(loss, model, parse_recipe(recipe)),
        Account(ledger, "run/probe", promise(batch.size)),
        lambda: batch,
        OsEntropy() if "nearest" in recipe else InsecureSeed(9),
        options=ProbeOptions(clip=CLIP),
    )


def impacts(probe: Probe, batch: PoissonBatch) -> torch.Tensor:
    (chunk,) = probe._bounded(batch).chunks
    return chunk[RELEASED]


def test_a_persons_rows_are_one_vector_with_one_bound(store: RecordStore, tmp_path: Path) -> None:
    """Against each person alone, each row by itself, padding left out."""
    persons = np.arange(60)
    batch = drawn(store, persons)
    probe = probe_of(tmp_path, store, batch, "mxfp4:nearest")
    weights = torch.tensor(TASK.class_weights)
    wanted, by_row = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for person in persons:
        x, y = store.gather(store.rows_of(np.array([person])))
        losses = []
        for names in ((), *((name,) for name in probe.names)):
            with torch.no_grad(), probe.loss.choosing(names):
                rows = probe.loss.function(probe._model, (x[:, None], y[:, None]))
            losses.append(rows.flatten().double())
        d = torch.stack(losses[1:], 1) - losses[0][:, None]
        wanted += d.sum(0) * min(1.0, CLIP / float(d.sum(0).norm()))
        by_row += (d * (CLIP / d.norm(dim=1, keepdim=True)).clamp(max=1.0)).sum(0)
    assert weights.numel() == 2
    found = impacts(probe, batch)
    assert found == pytest.approx(wanted, abs=1e-4 * CLIP * len(persons))
    assert not torch.allclose(found, by_row, atol=CLIP)


@pytest.mark.parametrize("recipe", ["luq-fp4", "int8"])
def test_a_person_moves_the_probe_by_its_bound_whatever_the_rows(
    store: RecordStore, tmp_path: Path, recipe: str
) -> None:
    batch = drawn(store, np.arange(40))
    probe = probe_of(tmp_path, store, batch, recipe)
    x, y = batch.data
    assert x.shape[:2] == y.shape == (40, K)

    def changed(scale: float) -> PoissonBatch:
        features, labels = x.clone(), y.clone()
        features[4] = scale * torch.randn(K, x.shape[2], generator=torch.manual_seed(1))
        labels[4] = torch.arange(K) % 2  # as many rows as a person may have
        return PoissonBatch([features, labels], batch.size, batch.ticket)

    sums = []
    for scale in (0.0, 1e4, 1e38):
        probe = probe_of(tmp_path, store, batch, recipe)  # the same secret draws
        sums.append(impacts(probe, changed(scale)))
    assert max(float((one - sums[0]).norm()) for one in sums) > 0.0
    assert all(float((one - sums[0]).norm()) <= 2.0 * CLIP * (1 + 1e-9) for one in sums)


@pytest.mark.parametrize("schedule", ["dpquant", pytest.param("random", marks=pytest.mark.full)])
def test_a_run_of_persons_in_low_precision(
    store: RecordStore, tmp_path: Path, schedule: str
) -> None:
    out = tmp_path / "run"
    chosen = {"precision": "luq-fp4", "schedule": schedule, "rotate_every": 3}
    run_training(options(store, out, batch_size=32, steps=6, **chosen))
    run, ledger = open_run(out), Ledger.open(store.ledger_path)
    assert ledger.header.unit is Unit.PERSON
    assert ledger.charged(run.id) == 6
    assert (run.probes is None) == (schedule == "random")
    if run.probes is not None and run.plan is not None:
        assert run.probes.unit is Unit.PERSON
        assert run.probes.records == run.plan.records == int(store.split().train.size)
        assert ledger.charged(f"{run.id}/probe") == 2
    told = json.loads((out / "precision.json").read_bytes())
    widths = store.feature_dim * 8, 8 * 2
    assert told["costs"] == [2.0 * K * width for width in widths]  # of a person


@pytest.mark.parametrize("collated", [False, True])
def test_make_private_takes_persons_in_low_precision(
    store: RecordStore, tmp_path: Path, collated: bool
) -> None:
    model = mlp(store.feature_dim, (4,), 2, seed=0)
    dataset = StoreDataset(store, store.split().train)
    merge: Any = (lambda batch: batch) if collated else None  # whole batches come ready
    step, loader = dither.make_private(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        DataLoader(dataset, batch_size=len(dataset) // 2, collate_fn=merge),
        loss_fn=rows_loss(torch.tensor(TASK.class_weights)),
        ledger=tmp_path / "ledger.sqlite",
        plan=promise(len(dataset), l2_clip=1.0),
        precision=LOW,
    )
    step(next(iter(loader)))
    ledger = step.account.ledger
    assert step.plan.unit is Unit.PERSON
    assert ledger.charged(f"{step.account.run}/probe") == 1


def test_rows_of_a_person_taken_apart_are_refused_before_anything_is_charged(
    store: RecordStore, tmp_path: Path
) -> None:
    def apart(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        features, labels = batch
        return features.flatten(0, 1), labels.flatten().clamp(min=0)

    model = mlp(store.feature_dim, (4,), 2, seed=0)
    dataset = StoreDataset(store, store.split().train)
    step, loader = dither.make_private(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        DataLoader(dataset, batch_size=len(dataset) // 2, collate_fn=apart),
        loss_fn=nn.CrossEntropyLoss(),
        ledger=tmp_path / "ledger.sqlite",
        plan=promise(len(dataset), l2_clip=1.0),
        precision=LOW,
    )
    with pytest.raises(dither.errors.SamplingError, match="one row for each"):
        step(next(iter(loader)))
    assert step.account.ledger.charged(f"{step.account.run}/probe") == 0
    assert step.account.steps_charged == 0
