"""Whole runs with options of clipping: charged, saved, resumed and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from tests.train.options import options
from tests.train.test_loop import crash, lines_of, summary_of

from dither.config import TrainConfig
from dither.data.store import RecordStore
from dither.privacy.ledger import Ledger
from dither.report import write_report
from dither.train.loop import run_training
from dither.train.run import open_run


def saved_bound(path: Path) -> Any:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["dither"])["bound"]


def test_an_adaptive_run_charges_its_quantiles(store: RecordStore, tmp_path: Path) -> None:
    folder = run_training(options(store, tmp_path / "run", clipping="adaptive", steps=25))
    ledger, run = Ledger.open(store.ledger_path), open_run(folder)
    assert ledger.charged(run.id) == 25
    assert ledger.charged(f"{run.id}/quantile") == 3
    privacy = summary_of(folder)["privacy"]
    assert privacy["epsilon"] == ledger.epsilon(1e-5) == ledger.epsilon(1e-5, run.id)
    assert run.plan is not None
    assert privacy["epsilon"] > run.plan.epsilon()
    assert privacy["clipping"] == "adaptive"
    assert privacy["quantile"]["charged"] == privacy["quantile"]["planned"] == 3
    lines = lines_of(folder / "metrics.jsonl")
    assert lines[-1]["epsilon"] == pytest.approx(privacy["epsilon"])
    assert lines[0]["clip_bound"] == 1.0
    assert lines[-1]["clip_bound"] == privacy["clip_bound"] != 1.0
    assert "follows a quantile of gradient norms" in write_report(folder).read_text("utf-8")


def test_a_budget_covers_the_quantiles_of_a_run(store: RecordStore, tmp_path: Path) -> None:
    budget: dict[str, Any] = {"noise_multiplier": None, "epsilon": 0.7}
    folder = run_training(options(store, tmp_path / "run", clipping="adaptive", **budget))
    spent = summary_of(folder)["privacy"]["epsilon"]
    assert spent <= 0.7
    assert spent == pytest.approx(0.7, rel=1e-3)


def test_a_resumed_run_keeps_its_bound_and_its_budget(store: RecordStore, tmp_path: Path) -> None:
    """Crash at step 12: both the shares of steps 1 and 11 are charged, one checkpoint has one."""
    config = options(store, tmp_path / "run", clipping="adaptive", steps=40, lease=1)
    folder = crash(config, 12)
    newest = max((folder / "checkpoints").iterdir())
    bound = saved_bound(newest)
    assert bound != 1.0
    run_training(TrainConfig(resume=folder))
    lines = {line["step"]: line for line in lines_of(folder / "metrics.jsonl")}
    assert lines[10]["clip_bound"] == bound
    moves = [lines[step]["clip_bound"] for step in (5, 10, 15, 20, 25, 30, 35)]
    # Two of four shares were charged before; the others move it at steps 11 and 21, none at 31.
    assert moves[0] == moves[1] != moves[2] == moves[3] != moves[4] == moves[5] == moves[6]
    privacy, steps = summary_of(folder)["privacy"], summary_of(folder)["steps"]
    assert privacy["quantile"]["charged"] == 4
    assert steps == {"planned": 40, "taken": 38, "charged": 40, "lost": 2}
    assert max(lines) == 38
    ledger = Ledger.open(store.ledger_path)
    assert lines[38]["epsilon"] == pytest.approx(ledger.epsilon(1e-5))


def test_run_files_from_before_adaptive_clipping_still_load(
    store: RecordStore, tmp_path: Path
) -> None:
    folder = crash(options(store, tmp_path / "run"), 12)
    path = folder / "private" / "run.json"
    facts = json.loads(path.read_bytes())
    for name in ("clipping", "clip_quantile", "microbatch_size", "memory_limit"):
        del facts["config"][name]
    path.write_text(json.dumps(facts))
    run_training(TrainConfig(resume=folder))
    assert summary_of(folder)["steps"]["charged"] == 20


@pytest.mark.parametrize("name", ["automatic", "per_layer"])
def test_a_style_changes_no_charge(store: RecordStore, tmp_path: Path, name: str) -> None:
    flat = run_training(options(store, tmp_path / "flat"))
    other = run_training(options(store, tmp_path / name, clipping=name))
    plans = [open_run(folder).plan for folder in (flat, other)]
    assert plans[0] == plans[1]
    spent = [summary_of(folder)["privacy"]["epsilon"] for folder in (flat, other)]
    assert spent[0] == spent[1]
    assert summary_of(other)["privacy"]["clipping"] == name
    assert json.loads((other / "run.json").read_bytes())["config"]["clipping"] == name
    words = {"automatic": "is normalised to", "per_layer": "is clipped layer by layer to"}
    assert words[name] in " ".join(write_report(other).read_text("utf-8").split())


def test_speed_options_of_a_run_change_no_plan(store: RecordStore, tmp_path: Path) -> None:
    plain = run_training(options(store, tmp_path / "plain", steps=3))
    fast = run_training(
        options(store, tmp_path / "fast", steps=3, microbatch_size=5, memory_limit=1)
    )
    assert open_run(plain).plan == open_run(fast).plan
    assert summary_of(fast)["steps"]["taken"] == 3


def test_a_plain_run_takes_no_notice(store: RecordStore, tmp_path: Path) -> None:
    with pytest.warns(Warning, match="NOT PRIVATE"):
        folder = run_training(
            options(store, tmp_path / "run", private=False, clipping="adaptive", steps=2)
        )
    assert "clip_bound" not in lines_of(folder / "metrics.jsonl")[0]
