"""Training on a Spark cluster: executors of a real local-cluster are the ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dither.config import TrainConfig
from dither.data.build import build_store
from dither.data.engines.java import check_spark
from dither.data.store import RecordStore
from dither.data.synth import write_synthetic
from dither.errors import ConfigError, LedgerError, OutputError
from dither.privacy.ledger import Ledger
from dither.train.distributed.spark import _refused, run_rank, train_on_spark
from dither.train.loop import run_training

pytest.importorskip("pyspark")
CLUSTER = "local-cluster[2,1,1024]"
SHORT_LIFE = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"  # of all Javas: little compiling


def can_run() -> bool:
    """Whether Spark finds its Java here."""
    try:
        check_spark()
    except ConfigError:
        return False
    return True


JAVA = can_run()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RecordStore:
    folder = tmp_path_factory.mktemp("spark")
    table = write_synthetic(folder / "persons.parquet", 3000, seed=1)
    return build_store(table, "employment", folder / "store")


def config(store: RecordStore, out: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "steps": 4,
        "batch_size": 64,
        "noise_multiplier": 1.0,
        "delta": 1e-5,
        "hidden": (8,),
        "checkpoint_every": 2,
        "timeout": 120.0,
    }
    return TrainConfig(store=store.path, out=out, **{**settings, **changes})


def in_a_process_of_its_own(text: str) -> dict[str, Any]:
    """A driver of its own: one Spark a process, and none is left in this one."""
    done = subprocess.run(
        [sys.executable, "-c", text],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "JAVA_TOOL_OPTIONS": SHORT_LIFE},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


DRIVER = """
import json, sys
from pathlib import Path
from dither.config import TrainConfig
from dither.errors import DitherError
from dither.train.distributed.spark import train_on_spark
if __name__ == "__main__":
    config = TrainConfig.from_json(json.loads({config!r}))
    try:
        print(json.dumps({{"folder": str(train_on_spark(config, ranks=2, master={master!r}))}}))
    except DitherError as error:
        print(json.dumps({{"error": type(error).__name__, "said": str(error)}}))
"""


def driven(options: TrainConfig, master: str = CLUSTER) -> dict[str, Any]:
    text = DRIVER.format(config=json.dumps(options.to_json()), master=master)
    return in_a_process_of_its_own(text)


@pytest.mark.timeout(900)
@pytest.mark.skipif(not JAVA, reason="no Java for Spark here")
@pytest.mark.xdist_group("spark")
def test_executors_train_together_and_charge_one_ledger(store: RecordStore, tmp_path: Path) -> None:
    found = driven(config(store, tmp_path / "run"))
    assert found == {"folder": str(tmp_path / "run")}
    summary = json.loads((tmp_path / "run" / "summary.json").read_bytes())
    assert [summary["ranks"], summary["steps"]["taken"], summary["finished"]] == [2, 4, True]
    about = json.loads((tmp_path / "run" / "run.json").read_bytes())
    events = Ledger.open(store.ledger_path).events(about["id"])
    assert sum(count for _, count in events) == 4
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.skipif(not JAVA, reason="no Java for Spark here")
@pytest.mark.xdist_group("spark")
def test_a_refusal_on_the_cluster_is_the_drivers_own_error(
    store: RecordStore, tmp_path: Path
) -> None:
    other = Ledger.create(tmp_path / "other.sqlite", store="other records")
    found = driven(config(store, tmp_path / "run", ledger=other.path))
    assert found["error"] == LedgerError.__name__
    assert "other records"[:16] in found["said"]
    assert not (tmp_path / "run").exists()


def test_a_rank_says_its_named_error_as_a_value(store: RecordStore, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_training(config(store, out, steps=1))
    found = run_rank(config(store, out, steps=1).to_json())
    assert found["error"] == "OutputError"
    assert found["got"] == "a finished run"
    refusal = _refused(found)
    assert isinstance(refusal, OutputError)
    assert "another --out" in refusal.fix
    other = Ledger.create(tmp_path / "other.sqlite", store="other records")
    found = run_rank(config(store, tmp_path / "second", ledger=other.path).to_json())
    assert isinstance(_refused(found), LedgerError)
    assert not (tmp_path / "second").exists()


LOW: dict[str, Any] = {
    "precision": "luq-fp4",
    "quantized": 0.4,
    "quantized_by": "layers",
    "rotate_every": 2,
}


def check_low(store: RecordStore, out: Path) -> None:
    told = json.loads((out / "precision.json").read_bytes())
    assert [period["step"] for period in told["periods"]] == [0, 2]
    assert {len(period["chosen"]) for period in told["periods"]} == {1}
    about = json.loads((out / "run.json").read_bytes())
    ledger = Ledger.open(store.ledger_path)
    assert [ledger.charged(about["id"]), ledger.charged(f"{about['id']}/probe")] == [4, 2]


def test_a_rank_is_told_of_low_precision(store: RecordStore, tmp_path: Path) -> None:
    found = run_rank(config(store, tmp_path / "run", **LOW).to_json())
    assert found == {"folder": str(tmp_path / "run")}
    check_low(store, tmp_path / "run")


@pytest.mark.full
@pytest.mark.skipif(not JAVA, reason="no Java here")
@pytest.mark.xdist_group("spark")
def test_executors_train_in_low_precision(store: RecordStore, tmp_path: Path) -> None:
    assert driven(config(store, tmp_path / "run", **LOW)) == {"folder": str(tmp_path / "run")}
    check_low(store, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"store": None, "data": (Path("persons.csv"),)}, "record store that all executors reach"),
        ({"out": Path("run")}, "absolute paths"),
    ],
)
def test_what_a_cluster_cannot_do_is_refused_before_spark_starts(
    store: RecordStore, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    options = config(store, tmp_path / "run")
    wrong = TrainConfig(**{**vars(options), **changes})
    with pytest.raises(ConfigError, match=says):
        train_on_spark(wrong, ranks=2, master=CLUSTER)


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.skipif(not JAVA, reason="no Java for Spark here")
@pytest.mark.xdist_group("spark")
def test_too_few_slots_are_said_before_anybody_waits(store: RecordStore, tmp_path: Path) -> None:
    found = driven(config(store, tmp_path / "run"), "local[1]")
    assert found["error"] == "ConfigError"
    assert "2 slots" in found["said"]
