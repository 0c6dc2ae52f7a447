"""Whole runs in low precision: charged, saved, resumed, said, and drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tests.train.options import options
from tests.train.test_loop import crash, lines_of, summary_of
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dither.clipping.loss import per_example
from dither.config import TrainConfig
from dither.data.store import RecordStore
from dither.errors import ConfigError
from dither.noise.entropy import OsEntropy
from dither.precision.options import Dynamic
from dither.precision.probe import ProbeOptions
from dither.precision.recipe import parse_recipe
from dither.precision.schedules import AllLayers, DpQuant, NoLayers, Rotating
from dither.privacy.account import Account
from dither.privacy.accountant import epsilon
from dither.privacy.events import Relation
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.report import write_report
from dither.train.door import make_private
from dither.train.loop import run_training
from dither.train.models import mlp
from dither.train.run import open_run
from dither.train.step import PrivateStep


def low(store: RecordStore, out: Path, **changes: Any) -> TrainConfig:
    chosen = {
        "precision": "luq-fp4",
        "schedule": "random",
        "quantized": 0.4,
        "quantized_by": "layers",
        "rotate_every": 4,
    }
    return options(store, out, **{**chosen, **changes})


def saved(path: Path) -> Any:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["dither"])["precision"]


def choices(folder: Path) -> list[list[int]]:
    told = json.loads((folder / "precision.json").read_bytes())
    return [period["chosen"] for period in told["periods"]]


def test_a_run_with_a_probe_charges_and_says_it(store: RecordStore, tmp_path: Path) -> None:
    folder = run_training(low(store, tmp_path / "run", schedule="dpquant", probe_share=0.1))
    run, ledger = open_run(folder), Ledger.open(store.ledger_path)
    assert run.probes is not None
    assert run.plan is not None
    assert ledger.charged(run.id) == 20
    assert ledger.charged(f"{run.id}/probe") == 5 == run.probes.steps
    privacy = summary_of(folder)["privacy"]
    assert privacy["epsilon"] == pytest.approx(ledger.epsilon(1e-5, run.id))
    assert privacy["epsilon"] > run.plan.epsilon()
    probe = privacy["probe"]
    assert probe["charged"] == probe["planned"] == 5
    assert probe["epsilon"] == pytest.approx(epsilon([(run.probes.event, 5)], 1e-5))
    assert probe["share"] == pytest.approx(probe["epsilon"] / privacy["epsilon"])
    assert 0.0 < probe["share"] <= 0.1
    lines = lines_of(folder / "metrics.jsonl")
    assert lines[-1]["epsilon"] == pytest.approx(privacy["epsilon"])
    assert lines[0]["quantized"] == 0.0  # before the first step
    assert lines[-1]["quantized"] > 0.0
    precision = summary_of(folder)["precision"]
    assert precision["schedule"] == "dpquant"
    assert precision["periods"] == 5
    assert precision["quantized_layers"] == pytest.approx(0.5)  # one of two: at least 0.4
    page = " ".join(write_report(folder).read_text("utf-8").split())
    assert "Layers in low precision" in page
    assert 'id="figure-precision"' in page
    assert "Which ones follows, beside public chance, a probe" in page
    facts = json.loads((folder / "run.json").read_bytes())
    assert facts["probes"] == run.probes.to_json()


@pytest.mark.full
def test_a_resumed_run_reproduces_its_schedule(store: RecordStore, tmp_path: Path) -> None:
    whole = run_training(low(store, tmp_path / "whole", schedule_seed=6))
    folder = crash(low(store, tmp_path / "run", schedule_seed=6), 12)
    newest = max((folder / "checkpoints").iterdir())
    state = saved(newest)
    assert (state["step"], state["seed"]) == (10, 6)
    assert [entry[0] for entry in state["history"]] == [0, 4, 8]
    run_training(TrainConfig(resume=folder))
    made = choices(folder)
    assert made == choices(whole)[: len(made)]
    assert len({tuple(chosen) for chosen in made}) == 2  # it rotates between two layers


def test_a_resumed_run_keeps_its_seed_and_what_probes_told(
    store: RecordStore, tmp_path: Path
) -> None:
    """Crash at step 14: the probes at 0, 4, 8 and 12 are charged, the checkpoint has three."""
    config = low(store, tmp_path / "run", schedule="dpquant", lease=1)
    folder = crash(config, 14)
    state = saved(max((folder / "checkpoints").iterdir()))
    assert state["step"] == 10
    assert state["impacts"]["probes"] == 3
    run_training(TrainConfig(resume=folder))
    run, ledger = open_run(folder), Ledger.open(store.ledger_path)
    assert ledger.charged(f"{run.id}/probe") == 5
    final = saved(max((folder / "checkpoints").iterdir()))
    assert final["seed"] == state["seed"]
    assert final["history"][:3] == state["history"]
    # Of five probes one was lost with its lineage; the run ends at step 16, in its fourth period.
    assert [entry[0] for entry in final["history"]] == [0, 4, 8, 12]
    assert all(entry[2] is not None for entry in final["history"])
    assert final["impacts"]["probes"] == 4
    privacy = summary_of(folder)["privacy"]
    assert privacy["probe"]["charged"] == 5
    assert privacy["epsilon"] == pytest.approx(ledger.epsilon(1e-5, run.id))


def test_evaluation_is_in_full_precision(store: RecordStore, tmp_path: Path) -> None:
    """With all layers quantised, what a checkpoint says is what its weights say by themselves."""
    folder = run_training(low(store, tmp_path / "run", schedule="all", steps=3, seed=1))
    model = mlp(store.feature_dim, (8,), 2, None)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    split = store.split(0.2, "zero_out")
    features, labels = store.gather(split.test)
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(model(features).double(), labels))
    assert summary_of(folder)["metrics"]["loss"] == pytest.approx(loss, rel=1e-6)


def test_a_plain_run_rotates_too(store: RecordStore, tmp_path: Path) -> None:
    with pytest.warns(Warning, match="NOT PRIVATE"):
        folder = run_training(low(store, tmp_path / "run", private=False, steps=8))
    assert len(choices(folder)) == 2
    assert "precision" in summary_of(folder)


def test_runs_without_precision_write_nothing_of_it(store: RecordStore, tmp_path: Path) -> None:
    folder = run_training(options(store, tmp_path / "run", steps=3))
    assert not (folder / "precision.json").exists()
    assert "precision" not in summary_of(folder)
    assert "probes" not in json.loads((folder / "run.json").read_bytes())
    assert "Layers in low precision" not in write_report(folder).read_text("utf-8")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"precision": None}, "together with options of it"),
        ({"relation": "add_remove", "declared_records": 100}, "zero_out or replace_one"),
        ({"schedule": "dpquant", "private": False, "force": True}, "schedule random"),
        ({"probe_share": 0.1}, "with --schedule random"),
        ({"quantized": 1.5}, "quantized in"),
        ({"probe_share": 0.0, "schedule": "dpquant"}, "probe-share in"),
        ({"rotate_every": 0}, "rotate-every in"),
        ({"precision": "int9"}, "recipe"),
        ({"schedule": "dpquant", "probe_every": 5}, "whole number of periods of 4"),
    ],
)
def test_mistakes_leave_nothing_behind(
    store: RecordStore, tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        run_training(low(store, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


# In a loop of one's own.

RECORDS, BATCH = 120, 30


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(RECORDS, 5, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long())


def plan_of(steps: int = 8, **changes: Any) -> Plan:
    return Plan(
        records=RECORDS,
        sampling_rate=BATCH / RECORDS,
        steps=steps,
        l2_clip=1.0,
        noise_multiplier=1.0,
        delta=1e-4,
        **changes,
    )


def make(tmp_path: Path, precision: Any, **changes: Any) -> Any:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
    made = make_private(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        DataLoader(data(), batch_size=BATCH),
        **{
            "loss_fn": nn.CrossEntropyLoss(),
            "ledger": tmp_path / "ledger.sqlite",
            "plan": plan_of(),
            "precision": precision,
            **changes,
        },
    )
    return model, *made


def test_three_lines_are_enough(tmp_path: Path) -> None:
    model, step, loader = make(
        tmp_path,
        Dynamic(
            parse_recipe("luq-fp4"),
            DpQuant(0.5),
            by="layers",
            probe=ProbeOptions(noise_multiplier=3.0),
        ),
    )
    before = [p.detach().clone() for p in model.parameters()]
    told = [step(batch).quantized for batch in loader]
    assert len(told) == 4
    assert len(set(told)) == 1  # an epoch
    assert len(told[0]) == 1
    assert step.account.ledger.charged(f"{step.account.run}/probe") == 1
    assert step.epsilon() > step.plan.epsilon(4)
    assert all(p.dtype is torch.float32 for p in model.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_low_precision_is_what_the_step_trains_with(tmp_path: Path) -> None:
    """Without noise to speak of, one seed: quantised steps differ from full ones, none do not."""
    found = []
    for name, schedule in (("a", None), ("b", NoLayers()), ("c", AllLayers())):
        precision = None if schedule is None else Dynamic(parse_recipe("mxfp4"), schedule)
        (tmp_path / name).mkdir()
        with pytest.warns(Warning, match="NOT PRIVATE"):
            model, step, loader = make(tmp_path / name, precision, insecure_seed=3, sensitive=False)
        for batch in loader:
            step(batch)
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=1e-4)
    assert torch.allclose(found[0], found[2], atol=0.3)


def test_a_recipe_s_name_means_dpquant(tmp_path: Path) -> None:
    _, step, loader = make(tmp_path, "bf16")
    step(next(iter(loader)))
    assert step.account.ledger.charged(f"{step.account.run}/probe") == 1


def test_a_loss_of_another_controller_is_refused(tmp_path: Path) -> None:
    _, step, _ = make(tmp_path, Dynamic(parse_recipe("int8"), Rotating(0.5)))
    controller = step._clip._precision
    ledger = Ledger.open(tmp_path / "ledger.sqlite")
    with pytest.raises(ConfigError, match="controller's own loss"):
        PrivateStep(
            step.model,
            step.optimizer,
            loss_fn=per_example(nn.CrossEntropyLoss()),
            precision=controller,
            account=Account(ledger, "other", plan_of()),
            entropy=OsEntropy(),
        )


def test_add_remove_is_refused_before_anything_is_charged(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="for low precision"):
        make(tmp_path, "int8", plan=plan_of(relation=Relation.ADD_REMOVE))
