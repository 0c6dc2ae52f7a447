"""Training whose unit is the person: one coin, one clip, one promise, one account."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from tests.train.options import options
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

import dither
from dither.clipping.clipping import Clipping
from dither.clipping.engine import clipped_sum
from dither.data import Categorical, KeyColumn, Numeric, OneOf, Schema, Task
from dither.data.build import build_store
from dither.data.store import RecordStore, StoreDataset
from dither.errors import ConfigError, LedgerError, SamplingError
from dither.noise.entropy import OsEntropy
from dither.privacy.events import Unit
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.report import write_report
from dither.sampling.loader import PoissonLoader, check_loader
from dither.sampling.poisson import PoissonSampler
from dither.train.loop import run_training
from dither.train.models import mlp, rows_loss

K = 5
SCHEMA = Schema(
    name="payments",
    key=(KeyColumn("CARD"), KeyColumn("NUMBER", "integer")),
    features=(Numeric("AMOUNT", 0, 100, clip=True), Categorical("SHOP", ("A", "B", "C"))),
    context=(Categorical("FRAUD", ("0", "1")),),
    source="terms of the card",
    person=KeyColumn("CARD"),
    rows_per_person=K,
)
TASK = Task("fraud", SCHEMA, (), OneOf("FRAUD", ("1",)), (0.5, 3.0), "yearly report")


@pytest.fixture(scope="module")
def payments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = np.random.default_rng(2)
    path = tmp_path_factory.mktemp("payments") / "payments.csv"
    lines = ["CARD,NUMBER,AMOUNT,SHOP,FRAUD"]
    for card in range(500):
        for number in range(1, 1 + int(draw.geometric(0.2))):
            amount = int(draw.integers(0, 120))
            fraud = int(draw.random() < (0.5 if amount > 90 else 0.1))
            lines.append(f"c{card:04d},{number},{amount},{'ABC'[draw.integers(3)]},{fraud}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def store(payments: Path, tmp_path: Path) -> RecordStore:
    return build_store(payments, TASK, tmp_path / "store")


def one_by_one(
    model: nn.Module, store: RecordStore, persons: np.ndarray, bound: float
) -> torch.Tensor:
    """The oracle: each person's rows in a batch of their own, summed, then clipped as one."""
    weights = torch.tensor(TASK.class_weights)
    total = torch.zeros(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    for person in persons:
        x, y = store.gather(store.rows_of(np.array([person])))
        loss = F.cross_entropy(model(x), y, weights, reduction="none").sum()
        parts = torch.autograd.grad(loss, list(model.parameters()))
        gradient = torch.cat([part.reshape(-1) for part in parts]).double()
        total += gradient * min(1.0, bound / float(gradient.norm()))
    return total


@pytest.mark.parametrize("bound", [0.3, 100.0])
def test_a_persons_summed_gradient_is_clipped_as_one(store: RecordStore, bound: float) -> None:
    model = mlp(store.feature_dim, (7,), 2, seed=3)
    persons = np.arange(100, 220)
    dataset = StoreDataset(store, persons)
    (batch,) = PoissonLoader(dataset, PoissonSampler(len(dataset), 1.0), 1)
    found = clipped_sum(
        model,
        rows_loss(torch.tensor(TASK.class_weights)),
        batch.data,
        batch.ticket,
        clipping=Clipping(bound),
        entropy=OsEntropy(),
    )
    wanted = one_by_one(model, store, persons, bound)
    ours = torch.cat(
        [t.reshape(-1).double() for chunk in found.bounded.chunks for t in chunk.values()]
    )
    assert torch.allclose(ours, wanted, atol=2e-5 * max(1.0, float(wanted.abs().max())))
    # Clipping row by row is something else: it would let a person move the sum by up to k times C.
    rows = store.rows_of(persons)
    if bound < 1.0:
        by_row = sum(one_by_one_row(model, store, row, bound) for row in rows)
        assert not torch.allclose(ours, by_row, atol=1e-2)  # type: ignore[arg-type]


def one_by_one_row(model: nn.Module, store: RecordStore, row: int, bound: float) -> torch.Tensor:
    x, y = store.gather(np.array([row]))
    loss = F.cross_entropy(model(x), y, torch.tensor(TASK.class_weights), reduction="none").sum()
    parts = torch.autograd.grad(loss, list(model.parameters()))
    gradient = torch.cat([part.reshape(-1) for part in parts]).double()
    return gradient * min(1.0, bound / float(gradient.norm()))


def test_a_run_promises_persons_and_charges_them(store: RecordStore, tmp_path: Path) -> None:
    out = run_training(options(store, tmp_path / "run", batch_size=32, steps=10))
    about = json.loads((out / "run.json").read_bytes())
    train = int(store.split().train.size)
    assert about["plan"]["unit"] == "person"
    assert about["plan"]["records"] == train < store.units < len(store)
    assert about["plan"]["sampling_rate"] == 32 / train
    assert about["store"]["records"] == store.units
    assert about["store"]["rows_per_unit"] == K
    assert str(len(store)) not in json.dumps(about["store"])  # how many rows is not public
    summary = json.loads((out / "summary.json").read_bytes())
    assert summary["privacy"]["unit"] == "person"
    ledger = Ledger.open(store.ledger_path)
    assert ledger.header.unit is Unit.PERSON
    plan = Plan.from_json(about["plan"])
    assert ledger.epsilon(1e-5) == pytest.approx(plan.epsilon(), rel=1e-9)
    page = write_report(out).read_text()
    assert "Unit of privacy: person" in page
    assert f"at most {K} a person" in page
    assert "each training person enters the batch" in page
    assert "<dt>Persons</dt>" in page
    operator = (out / "private" / "report.html").read_text()
    assert "share of positives" in operator
    assert "rows bounded" in operator


def test_a_record_account_is_not_charged_for_persons(store: RecordStore, tmp_path: Path) -> None:
    Ledger.create(store.ledger_path, store=store.id, unit=Unit.RECORD)
    with pytest.raises(LedgerError, match="per person"):
        run_training(options(store, tmp_path / "run", batch_size=32))


def test_engines_give_the_same_model_of_the_same_persons(
    store: RecordStore, tmp_path: Path
) -> None:
    with pytest.warns(dither.DitherWarning, match="NOT PRIVATE"):
        runs = [
            run_training(
                options(
                    store,
                    tmp_path / name,
                    batch_size=32,
                    steps=3,
                    insecure_seed=5,
                    seed=1,
                    force=True,
                    microbatch_size=size,
                )
            )
            for name, size in (("whole", None), ("parts", 8))
        ]
    losses = [json.loads((run / "summary.json").read_bytes())["metrics"]["loss"] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def make(
    store: RecordStore, tmp_path: Path, dataset: Dataset[Any], plan: Plan | None = None
) -> Plan:
    model = mlp(store.feature_dim, (4,), 2, seed=0)
    promise = {"epsilon": 4.0, "delta": 1e-5, "epochs": 1} if plan is None else {"plan": plan}
    step, loader = dither.make_private(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        DataLoader(dataset, batch_size=50),
        loss_fn=rows_loss(torch.tensor(TASK.class_weights)),
        ledger=tmp_path / "ledger.sqlite",
        **promise,
    )
    for batch in loader:
        step(batch)
    return cast(Plan, step.plan)


def test_make_private_takes_persons_as_the_unit(store: RecordStore, tmp_path: Path) -> None:
    train = store.split().train
    assert make(store, tmp_path, StoreDataset(store, train)).unit is Unit.PERSON
    inner = Subset(StoreDataset(store, train), range(300))
    plan = make(store, tmp_path, inner)
    assert (plan.unit, plan.records) == (Unit.PERSON, 300)
    with pytest.raises(ConfigError, match="unit person"):
        make(store, tmp_path, inner, replace(plan, unit=Unit.RECORD))


def test_a_stream_is_refused_by_its_type(store: RecordStore, tmp_path: Path) -> None:
    class Pages(torch.utils.data.IterableDataset[torch.Tensor]):
        def __iter__(self) -> object:  # type: ignore[override]
            return iter(())

    class Prefetched:
        def __len__(self) -> int:
            return 4

        def __iter__(self) -> object:
            return iter(())

    model = mlp(store.feature_dim, (4,), 2, seed=0)
    given = {
        "loss_fn": nn.CrossEntropyLoss(),
        "ledger": tmp_path / "ledger.sqlite",
        "epsilon": 1.0,
        "delta": 1e-5,
        "epochs": 1,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(SamplingError, match="StoreDataset"):
        dither.make_private(model, optimizer, DataLoader(Pages(), batch_size=4), **given)
    with pytest.raises(SamplingError, match="StoreDataset"):
        check_loader(Prefetched())
    for source in (Pages(), Prefetched()):
        with pytest.raises(SamplingError, match="random access"):
            PoissonLoader(source, PoissonSampler(4, 0.5), 1)
    assert not (tmp_path / "ledger.sqlite").exists()
