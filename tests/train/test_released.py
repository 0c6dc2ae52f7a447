"""Stores whose constants were released: trained on only at the account that paid for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.train.options import options
from torch.utils.data import DataLoader

import dither
from dither.data.build import build_store
from dither.data.statistics import default_ledger, release_statistics
from dither.data.store import RecordStore, StoreDataset
from dither.errors import ConfigError, LedgerError
from dither.privacy.events import ApproximateDP, Unit
from dither.privacy.ledger import Ledger
from dither.report import write_report
from dither.train.distributed.place import find_place
from dither.train.distributed.world import join
from dither.train.loop import run_training
from dither.train.models import mlp, rows_loss
from dither.train.setup import open_ledger

pytest.importorskip("opendp")

ABOUT = """
name = "payments"
source = "terms of the card"
key = { CARD = "text", NUMBER = "integer" }
person = "CARD"
rows_per_person = 3
label = { column = "FRAUD", codes = ["1"] }

[columns]
AMOUNT = { bounds = { release = [0.0, 0.9], epsilon = 1, candidates = [0, 50, 100, 200] } }
SHOP = { codes = ["A", "B"] }
FRAUD = { codes = ["0", "1"] }
"""


@pytest.fixture(scope="module")
def about(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("payments")
    draw = np.random.default_rng(4)
    lines = ["CARD,NUMBER,AMOUNT,SHOP,FRAUD"]
    for card in range(300):
        for number in range(1, 5):
            amount, shop = int(draw.integers(0, 100)), "AB"[draw.integers(2)]
            lines.append(f"c{card:04d},{number},{amount},{shop},{int(draw.random() < 0.3)}")
    (folder / "payments.csv").write_text("\n".join(lines) + "\n")
    path = folder / "payments.toml"
    path.write_text(ABOUT)
    release_statistics(path, folder / "payments.csv")
    return path


@pytest.fixture
def store(about: Path, tmp_path: Path) -> RecordStore:
    return build_store(about.parent / "payments.csv", str(about), tmp_path / "store")


@pytest.mark.parametrize("given", [None, "other"])
def test_another_account_is_refused_before_anything_is_written(
    store: RecordStore, tmp_path: Path, given: str | None
) -> None:
    path = None
    if given is not None:
        path = tmp_path / "other.sqlite"
        Ledger.create(path, store="account payments", unit=Unit.PERSON)
    with pytest.raises(LedgerError, match="dither data statistics"):
        run_training(options(store, tmp_path / "run", batch_size=32, ledger=path))
    assert not (tmp_path / "run").exists()
    assert not store.ledger_path.exists()


def test_one_account_holds_statistics_and_training(
    store: RecordStore, about: Path, tmp_path: Path
) -> None:
    ledger = Ledger.open(default_ledger(about))
    before = ledger.epsilon(1e-5)
    assert before == pytest.approx(1.0, abs=1e-3)
    out = run_training(options(store, tmp_path / "run", batch_size=32, ledger=ledger.path, steps=5))
    told = json.loads((out / "run.json").read_bytes())
    own = ledger.epsilon(1e-5, told["id"])
    total = ledger.epsilon(1e-5)
    assert max(own, before) < total < own + before
    (released,) = told["store"]["released_inputs"]
    assert released["name"] == "bounds of AMOUNT"
    assert released["account"] == ledger.header.id
    assert "bounds of AMOUNT" not in told["store"]["public_inputs"]
    assert told["config"]["task"] == "payments"  # never the place of a description
    page = write_report(out).read_text()
    assert "Constants released from the records" in page
    assert released["run"] in page
    resumed = run_training(dither.TrainConfig(resume=out))
    assert resumed == out


def test_ranks_that_trust_nobody_cannot_use_what_one_party_released(
    store: RecordStore, about: Path, tmp_path: Path
) -> None:
    config = options(store, tmp_path / "run", trust="local", ledger=default_ledger(about))
    with (
        join(find_place({}), transport="auto", timeout=60.0) as world,
        pytest.raises(ConfigError, match="trust central"),
    ):
        open_ledger(config, store, world)


def test_make_private_asks_for_the_same_account(
    store: RecordStore, about: Path, tmp_path: Path
) -> None:
    def start(ledger: Path, name: str) -> tuple[Any, Any]:
        model = mlp(store.feature_dim, (4,), 2, seed=0)
        made: tuple[Any, Any] = dither.make_private(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            DataLoader(StoreDataset(store, store.split().train), batch_size=40),
            loss_fn=rows_loss(torch.ones(2)),
            ledger=ledger,
            store=name,
            epsilon=2.0,
            delta=1e-5,
            epochs=1,
        )
        return made

    with pytest.raises(LedgerError, match="dither data statistics"):
        start(tmp_path / "own.sqlite", "payments")
    step, _ = start(default_ledger(about), "account payments")
    assert step.plan.unit is Unit.PERSON
    book = Ledger.open(default_ledger(about))
    assert any(isinstance(event, ApproximateDP) for event, _ in book.events())
