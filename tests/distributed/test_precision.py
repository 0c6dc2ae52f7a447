"""Low precision on several ranks: one probe of all, one choice on all, one seed from rank 0.

Ranks are threads, and processes where DDP makes the step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from tests.distributed.test_engines_cli import check_whole, command, finished
from tests.distributed.test_loop import Seen, summary_of, train, whole
from tests.train.options import options
from tests.train.test_persons import TASK, K, payments

from dither.config import TrainConfig
from dither.data.build import build_store
from dither.data.store import RecordStore
from dither.errors import MismatchError
from dither.precision.controller import Controller
from dither.privacy.ledger import Ledger
from dither.train.distributed.accounts import rank_ledger_path
from dither.train.run import open_run

__all__ = ["payments"]
pytestmark = pytest.mark.filterwarnings("ignore:.*NOT PRIVATE")


def low(store: RecordStore, out: Path, **changes: Any) -> TrainConfig:
    chosen = {
        "precision": "luq-fp4",
        "schedule": "dpquant",
        "quantized": 0.4,
        "quantized_by": "layers",
        "rotate_every": 3,
        "steps": 9,
        "checkpoint_every": 9,
    }
    return options(store, out, **{**chosen, **changes})


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Controller]:
    """The controllers of all ranks, in no order; they work as ever."""
    made: list[Controller] = []
    begin = Controller.before_step

    def before_step(self: Controller, transport: Any = None) -> None:
        begin(self, transport)
        if not any(self is other for other in made):
            made.append(self)

    monkeypatch.setattr(Controller, "before_step", before_step)
    return made


@pytest.mark.parametrize(
    ("ranks", "trust"),
    [
        pytest.param(3, "central", marks=pytest.mark.full),
        (2, "local"),
        pytest.param(2, "distributed(1)", marks=pytest.mark.full),
    ],
)
def test_all_ranks_choose_alike_and_pay_alike(
    store: RecordStore, tmp_path: Path, seen: list[Controller], ranks: int, trust: str
) -> None:
    folder = whole(train(ranks, low(store, tmp_path / "run", trust=trust)))
    assert len(seen) == ranks
    assert len({controller.seed for controller in seen}) == 1
    assert len({controller.history for controller in seen}) == 1  # bit for bit, averages too
    first = seen[0]
    assert first.impacts is not None
    assert first.impacts.probes == 3
    run = open_run(folder)
    assert run.probes is not None
    for rank in range(ranks if trust != "central" else 1):
        ledger = Ledger.open(rank_ledger_path(Path(store.ledger_path), rank))
        assert ledger.charged(f"{run.id}/probe") == 3
        assert ledger.charged(run.id) == 9
    told = json.loads((folder / "precision.json").read_bytes())
    assert [period["step"] for period in told["periods"]] == [0, 3, 6]
    assert summary_of(folder)["privacy"]["probe"]["charged"] == 3


def test_ranks_go_on_in_another_number_with_the_same_schedule(
    store: RecordStore, tmp_path: Path, seen: list[Controller]
) -> None:
    config = low(store, tmp_path / "run", schedule="random", steps=12, checkpoint_every=4)
    outcomes = train(2, config, watcher=Seen(crash_at=6))
    assert outcomes.errors
    folder = tmp_path / "run"
    newest = max((folder / "checkpoints").iterdir())
    with safe_open(newest, framework="pt") as file:
        state = json.loads(file.metadata()["dither"])["precision"]
    assert state["step"] == 4
    seed = seen[0].seed
    seen.clear()
    whole(train(3, TrainConfig(resume=folder)))
    assert {controller.seed for controller in seen} == {seed} == {state["seed"]}
    for controller in seen:
        for number, period in enumerate(controller.history):
            chosen = controller.dynamic.schedule.choose(
                number, controller.candidates, seed=seed, periods=4
            )
            assert period.chosen == chosen


def test_other_options_of_precision_are_refused_on_all(store: RecordStore, tmp_path: Path) -> None:
    outcomes = train(2, lambda rank: low(store, tmp_path / "run", quantized=0.4 if rank else 0.9))
    assert {type(error) for error in outcomes.errors.values()} == {MismatchError}
    assert "quantized" in str(outcomes.errors[0])


LOW = ("--precision", "luq-fp4", "--quantized", "0.4", "--quantized-by", "layers")


def told(folder: Path) -> list[int]:
    """Steps at which a finished run chose layers, one of its two each time."""
    periods = json.loads((folder / "precision.json").read_bytes())["periods"]
    assert {len(period["chosen"]) for period in periods} == {1}
    return [period["step"] for period in periods]


def test_ddp_trains_persons_in_low_precision(payments: Path, tmp_path: Path) -> None:
    """Two processes, a step of DDP's, persons of several rows, a probe over both ranks."""
    store, out = build_store(payments, TASK, tmp_path / "store"), tmp_path / "run"
    words = ("--nproc", "2", "--engine", "ddp", "--rotate-every", "2", *LOW)
    done = finished(command(store, out, *words, steps=6))
    assert done.returncode == 0, done.stderr
    summary = check_whole(store, out)
    assert summary["privacy"]["unit"] == "person"
    assert summary["privacy"]["probe"]["charged"] == 3
    run = open_run(out)
    assert Ledger.open(Path(store.ledger_path)).charged(f"{run.id}/probe") == 3
    assert told(out) == [0, 2, 4]
    costs = json.loads((out / "precision.json").read_bytes())["costs"]
    assert costs == [2.0 * K * store.feature_dim * 8, 2.0 * K * 8 * 2]


@pytest.mark.full
def test_plain_ddp_trains_in_low_precision(store: RecordStore, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ("--nproc", "2", "--engine", "ddp", "--rotate-every", "2", *LOW)
    plain = ("--no-private", "--schedule", "random")
    without = command(store, out, *words, *plain, steps=6)
    at = without.index("--noise-multiplier")
    done = finished(without[:at] + without[at + 2 :])
    assert done.returncode == 0, done.stderr
    assert told(out) == [0, 2, 4]
