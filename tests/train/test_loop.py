"""Whole runs on a small store: what is written, charged, resumed and refused."""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
import torch
from dp_accounting import pld
from safetensors.torch import load_file
from tests.train.options import options

from dither.config import TrainConfig
from dither.data.build import build_store
from dither.data.store import RecordStore
from dither.errors import (
    BudgetExhaustedError,
    CheckpointError,
    ConfigError,
    DataError,
    LedgerBehindError,
    LedgerError,
    ModelError,
    OutputError,
    StoppedError,
)
from dither.privacy.ledger import Ledger
from dither.train.loop import run_training
from dither.train.run import exclusive, open_run
from dither.train.step import PrivateStep

# Runs that are unprotected on purpose; that they warn is tested with the guard.
pytestmark = pytest.mark.filterwarnings("ignore:.*NOT PRIVATE")


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_bytes())  # type: ignore[no-any-return]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class StopAt:
    """A watcher that breaks a run off, as a crash in the middle of a step would."""

    class Crash(Exception):  # noqa: N818
        pass

    def __init__(self, step: int) -> None:
        self.step = step

    def started(self, run: object, first_step: int, last_step: int) -> None:
        self.first, self.last = first_step, last_step

    def stepped(self, step: int) -> None:
        if step == self.step:
            raise StopAt.Crash

    def evaluated(self, line: dict[str, Any]) -> None:
        pass

    def measured(self, step: int, figures: object) -> None:
        pass


def crash(config: TrainConfig, step: int) -> Path:
    with pytest.raises(StopAt.Crash):
        run_training(config, StopAt(step))
    assert config.out is not None
    return config.out


def test_a_run_writes_its_folder_and_charges_its_plan(store: RecordStore, tmp_path: Path) -> None:
    folder = run_training(options(store, tmp_path / "run"))
    summary, ledger = summary_of(folder), Ledger.open(store.ledger_path, store=store.id)
    assert summary["steps"] == {"planned": 20, "taken": 20, "charged": 20, "lost": 0}
    assert summary["private"]
    assert summary["records"] == len(store)
    assert 0.0 <= summary["metrics"]["auroc"] <= 1.0
    assert ledger.charged(open_run(folder).id) == 20
    assert {p.name for p in folder.iterdir()} == {
        "run.json", "metrics.jsonl", "curves.json", "summary.json", "model.safetensors",
        "starts.jsonl", "checkpoints", "private", ".lock",
    }  # fmt: skip
    assert [line["step"] for line in lines_of(folder / "metrics.jsonl")] == [0, 5, 10, 15, 20]
    assert len(lines_of(folder / "private" / "training.jsonl")) == 20
    assert (folder / "private").stat().st_mode & 0o077 == 0
    assert sum(summary["timing"].values()) == pytest.approx(summary["seconds"], rel=0.3)


def test_epsilon_is_dp_accountings_for_the_steps_that_ran(
    store: RecordStore, tmp_path: Path
) -> None:
    folder = run_training(options(store, tmp_path / "run"))
    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    rate = 64 / store.split().train.size
    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(1.0))
    accountant.compose(event, 20)
    assert summary_of(folder)["privacy"]["epsilon"] == pytest.approx(
        accountant.get_epsilon(1e-5), abs=1e-9
    )


def test_the_released_model_is_the_last_one(store: RecordStore, tmp_path: Path) -> None:
    folder = run_training(options(store, tmp_path / "run"))
    weights = load_file(folder / "model.safetensors")
    assert {name: tuple(w.shape) for name, w in weights.items()} == {
        "0.weight": (8, store.feature_dim), "0.bias": (8,), "2.weight": (2, 8), "2.bias": (2,),
    }  # fmt: skip
    assert all(torch.isfinite(w).all() for w in weights.values())


def test_training_learns(store: RecordStore, tmp_path: Path) -> None:
    """With little noise a private run beats chance clearly; it fails if gradients are wrong.

    Fourteen runs: 0.68 to 0.73; seen once in many: 0.648. Chance is 0.5, give or take 0.02.
    """
    config = options(store, tmp_path / "run", noise_multiplier=0.4, steps=60, batch_size=256)
    config = replace(config, checkpoint_every=60)
    assert summary_of(run_training(config))["metrics"]["auroc"] > 0.6


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_resumed_run_keeps_within_its_plan(
    store: RecordStore, tmp_path: Path, optimizer: str
) -> None:
    rate = 0.01 if optimizer == "adam" else 0.5
    config = options(store, tmp_path / "run", optimizer=optimizer, learning_rate=rate)
    folder = crash(config, 12)  # checkpoint at 10, two leases of 8 charged
    watcher = StopAt(-1)
    run_training(TrainConfig(resume=folder), watcher)
    summary = summary_of(folder)
    assert (watcher.first, watcher.last) == (10, 14)
    assert summary["steps"] == {"planned": 20, "taken": 14, "charged": 20, "lost": 6}
    steps = [line["step"] for line in lines_of(folder / "metrics.jsonl")]
    assert steps == [0, 5, 10, 14]
    assert len(lines_of(folder / "private" / "training.jsonl")) == 14


def test_epsilon_shown_after_a_resume_counts_what_was_lost(
    store: RecordStore, tmp_path: Path
) -> None:
    folder = crash(options(store, tmp_path / "run"), 12)
    run_training(TrainConfig(resume=folder))
    lines = {line["step"]: line["epsilon"] for line in lines_of(folder / "metrics.jsonl")}
    plan = open_run(folder).plan
    assert plan is not None
    assert lines[10] == pytest.approx(plan.epsilon(10))
    assert lines[14] == pytest.approx(plan.epsilon(20))


def test_resuming_a_finished_run_changes_nothing_and_charges_nothing(
    store: RecordStore, tmp_path: Path
) -> None:
    folder = run_training(options(store, tmp_path / "run"))
    before = (folder / "model.safetensors").read_bytes()
    run_training(TrainConfig(resume=folder))
    assert (folder / "model.safetensors").read_bytes() == before
    assert summary_of(folder)["steps"]["charged"] == 20


def test_a_run_that_is_asked_to_stop_saves_a_checkpoint_and_loses_nothing(
    store: RecordStore, tmp_path: Path
) -> None:
    config = options(store, tmp_path / "run", lease=5)
    asked = iter([False] * 6 + [True] * 100)
    with pytest.raises(StoppedError, match="step 7"):
        run_training(config, stop=lambda: next(asked))
    run_training(TrainConfig(resume=tmp_path / "run"))
    steps = summary_of(tmp_path / "run")["steps"]
    assert steps == {"planned": 20, "taken": 20, "charged": 20, "lost": 0}


def test_a_crash_before_the_first_step_loses_nothing(store: RecordStore, tmp_path: Path) -> None:
    config = options(store, tmp_path / "run")

    class AtOnce(StopAt):
        def started(self, run: object, first_step: int, last_step: int) -> None:
            raise StopAt.Crash

    with pytest.raises(StopAt.Crash):
        run_training(config, AtOnce(0))
    assert config.out is not None
    assert not config.out.exists()  # nothing was charged: the same command begins anew
    assert summary_of(run_training(config))["steps"]["lost"] == 0


def test_a_ledger_behind_its_checkpoint_is_refused(store: RecordStore, tmp_path: Path) -> None:
    config = options(store, tmp_path / "run")
    Ledger.create(store.ledger_path, store=store.id, sensitive=False)
    older = store.ledger_path.read_bytes()
    folder = crash(config, 12)
    store.ledger_path.write_bytes(older)
    with pytest.raises(LedgerBehindError, match="older copy"):
        run_training(TrainConfig(resume=folder))


def test_a_ledger_of_another_store_is_refused(store: RecordStore, tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    Ledger.create(path, store="another store")
    with pytest.raises(LedgerError, match="another"):
        run_training(options(store, tmp_path / "run", ledger=path))
    assert not (tmp_path / "run").exists()


def test_a_ledger_under_another_relation_is_refused(store: RecordStore, tmp_path: Path) -> None:
    run_training(options(store, tmp_path / "first"))
    config = options(store, tmp_path / "run", relation="add_remove", declared_records=5000)
    with pytest.raises(LedgerError, match="zero_out"):
        run_training(config)


def test_a_truncated_checkpoint_is_refused_and_the_one_before_works(
    store: RecordStore, tmp_path: Path
) -> None:
    folder = crash(options(store, tmp_path / "run"), 12)
    newest = max((folder / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="delete this file"):
        run_training(TrainConfig(resume=folder))
    newest.unlink()
    summary = summary_of(run_training(TrainConfig(resume=folder)))
    assert summary["steps"]["taken"] + summary["steps"]["lost"] == 20


def test_a_flipped_bit_in_a_checkpoint_is_refused(store: RecordStore, tmp_path: Path) -> None:
    folder = crash(options(store, tmp_path / "run"), 12)
    newest = max((folder / "checkpoints").iterdir())
    content = bytearray(newest.read_bytes())
    content[-3] ^= 1
    newest.write_bytes(content)
    with pytest.raises(CheckpointError, match="digest"):
        run_training(TrainConfig(resume=folder))


def test_an_altered_position_in_a_checkpoint_is_refused(store: RecordStore, tmp_path: Path) -> None:
    folder = crash(options(store, tmp_path / "run"), 12)
    newest = max((folder / "checkpoints").iterdir())
    content = newest.read_bytes()
    found = re.search(rb'\\"spent\\": ?(\d)', content)
    assert found is not None
    other = b"1" if found[1] != b"1" else b"2"
    newest.write_bytes(content[: found.start(1)] + other + content[found.end(1) :])
    with pytest.raises(CheckpointError, match="digest"):
        run_training(TrainConfig(resume=folder))


def test_a_checkpoint_of_another_format_is_refused(store: RecordStore, tmp_path: Path) -> None:
    folder = crash(options(store, tmp_path / "run"), 12)
    newest = max((folder / "checkpoints").iterdir())
    content = newest.read_bytes()
    newest.write_bytes(content.replace(b'\\"format\\": \\"2\\"', b'\\"format\\": \\"1\\"'))
    with pytest.raises(CheckpointError, match="format '1' where this version reads '2'"):
        run_training(TrainConfig(resume=folder))


def test_a_checkpoint_of_another_model_is_refused(store: RecordStore, tmp_path: Path) -> None:
    first = crash(options(store, tmp_path / "first"), 12)
    second = crash(options(store, tmp_path / "second", hidden=(9,)), 12)
    (name,) = {max((f / "checkpoints").iterdir()).name for f in (first, second)}
    (second / "checkpoints" / name).write_bytes((first / "checkpoints" / name).read_bytes())
    with pytest.raises(CheckpointError, match="another model"):
        run_training(TrainConfig(resume=second))


def test_a_checkpoint_of_another_run_is_refused(store: RecordStore, tmp_path: Path) -> None:
    """Above all an unprotected run's model in a private run's folder."""
    plain = run_training(options(store, tmp_path / "plain", private=False))
    private = crash(options(store, tmp_path / "private"), 12)
    newest = max((plain / "checkpoints").iterdir())
    (private / "checkpoints" / newest.name).write_bytes(newest.read_bytes())
    with pytest.raises(CheckpointError, match="not covered"):
        run_training(TrainConfig(resume=private))


def edit(path: Path, **changes: Any) -> None:
    facts = json.loads(path.read_bytes())
    for name, value in changes.items():
        part = facts["config"] if name in facts["config"] else facts
        part[name] = value
    path.write_text(json.dumps(facts))


def test_an_edited_run_cannot_turn_unprotected_unseen(records: Path, tmp_path: Path) -> None:
    store = build_store(records, "employment", tmp_path / "hospital", sensitive=True)
    first = crash(options(store, tmp_path / "first"), 12)
    edit(first / "run.json", plan=None)
    with pytest.raises(CheckpointError, match="edited"):
        run_training(TrainConfig(resume=first))
    second = crash(options(store, tmp_path / "second"), 12)
    edit(second / "private" / "run.json", private=False)
    with pytest.raises(ConfigError, match="--force"):
        run_training(TrainConfig(resume=second))
    third = crash(options(store, tmp_path / "third", private=False, force=True), 12)
    edit(third / "private" / "run.json", private=True, force=False)
    with pytest.raises(CheckpointError, match="edited"):
        run_training(TrainConfig(resume=third))


def test_more_steps_or_less_noise_by_editing_are_refused(
    store: RecordStore, tmp_path: Path
) -> None:
    folder = crash(options(store, tmp_path / "run"), 12)
    facts = json.loads((folder / "run.json").read_bytes())
    for change in ({"steps": 500}, {"noise_multiplier": 0.5}):
        edit(folder / "run.json", plan={**facts["plan"], **change})
        with pytest.raises(LedgerError, match="plan"):
            run_training(TrainConfig(resume=folder))


def test_resuming_without_the_ledger_is_refused_and_makes_none(
    store: RecordStore, tmp_path: Path
) -> None:
    folder = crash(options(store, tmp_path / "run"), 12)
    store.ledger_path.unlink()
    with pytest.raises(LedgerError, match="no file"):
        run_training(TrainConfig(resume=folder))
    assert not store.ledger_path.exists()


def test_a_diverged_model_is_named(store: RecordStore, tmp_path: Path) -> None:
    config = options(store, tmp_path / "run", learning_rate=1e30)
    with pytest.raises(ModelError, match="diverged"):
        run_training(config)


def test_checkpoints_hold_released_state_only(store: RecordStore, tmp_path: Path) -> None:
    """Weights, momentum and position; no un-noised sum, no sampler state, no key."""
    folder = run_training(options(store, tmp_path / "run"))
    for path in (folder / "checkpoints").iterdir():
        names = set(load_file(path))
        assert {n.split(".")[0] for n in names} <= {"model", "optimizer"}
        assert {n.rsplit(".", 1)[1] for n in names if n.startswith("opt")} <= {"momentum_buffer"}
        assert not any("gradient" in name or "sum" in name for name in names)


def test_a_second_process_cannot_train_in_the_same_run(store: RecordStore, tmp_path: Path) -> None:
    folder = crash(options(store, tmp_path / "run"), 3)
    with exclusive(open_run(folder)), pytest.raises(OutputError, match="trains in it now"):
        run_training(TrainConfig(resume=folder))


def test_stores_of_the_same_people_can_share_an_account(records: Path, tmp_path: Path) -> None:
    ledger = tmp_path / "people.sqlite"
    for task in ("employment", "unemployment"):
        store = build_store(records, task, tmp_path / task)
        run_training(options(store, tmp_path / f"run-{task}", ledger=ledger, account="people"))
    book = Ledger.open(ledger, store="account people")
    assert sum(count for _, count in book.events()) == 40
    named = {e.detail["records"] for e in book.entries() if e.kind == "plan"}
    assert len(named) == 2
    with pytest.raises(LedgerError, match="that of store"):
        run_training(options(store, tmp_path / "third", ledger=ledger))


def test_held_out_records_of_one_class_are_refused(tmp_path: Path, store: RecordStore) -> None:
    with pytest.raises(DataError, match="both classes"):
        run_training(options(store, tmp_path / "run", test_fraction=1e-4))
    assert not (tmp_path / "run").exists()
    assert not store.ledger_path.exists()


def test_n_is_not_published_under_add_remove(store: RecordStore, tmp_path: Path) -> None:
    config = options(store, tmp_path / "run", relation="add_remove", declared_records=9999)
    folder = run_training(config)
    split = store.split(0.2, "add_remove")
    for name in ("run.json", "summary.json", "metrics.jsonl", "curves.json"):
        text = (folder / name).read_text()
        for exact in (len(store), split.train.size, split.test.size):
            assert not re.search(rf"\b{exact}\b", text), (name, exact)
    assert '"records": 9999' in (folder / "summary.json").read_text()


def test_places_on_the_operators_machine_are_not_published(
    store: RecordStore, tmp_path: Path
) -> None:
    folder = run_training(options(store, tmp_path / "run"))
    for path in folder.iterdir():
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path


def test_an_unprotected_run_is_written_down(store: RecordStore, tmp_path: Path) -> None:
    folder = run_training(options(store, tmp_path / "run", private=False))
    summary, ledger = summary_of(folder), Ledger.open(store.ledger_path)
    assert not summary["private"]
    assert summary["privacy"]["epsilon"] is None
    assert ledger.epsilon(1e-5) == math.inf
    assert not json.loads((folder / "run.json").read_bytes())["private"]


def test_an_unprotected_run_on_sensitive_records_must_be_forced(
    records: Path, tmp_path: Path
) -> None:
    store = build_store(records, "employment", tmp_path / "hospital", sensitive=True)
    for unprotected in ({"private": False}, {"insecure_seed": 1}):
        config = options(store, tmp_path / "run", **unprotected)
        with pytest.raises(ConfigError, match="--force"):
            run_training(config)
        assert not (tmp_path / "run").exists()
    assert Ledger.open(store.ledger_path).epsilon(1e-5) == 0.0
    run_training(options(store, tmp_path / "run", private=False, force=True))
    assert Ledger.open(store.ledger_path).epsilon(1e-5) == math.inf
    assert json.loads((tmp_path / "run" / "run.json").read_bytes())["forced"]


def test_the_content_hash_of_sensitive_records_is_not_published(
    records: Path, tmp_path: Path
) -> None:
    store = build_store(records, "employment", tmp_path / "hospital", sensitive=True)
    folder = run_training(options(store, tmp_path / "run"))
    head = Ledger.open(store.ledger_path).head()
    for path in [*folder.iterdir(), *(folder / "checkpoints").iterdir()]:
        if path.is_file():
            assert store.id[:16].encode() not in path.read_bytes(), path
    # A checkpoint shows the chain's head. Its start is salted, so no guess at the records fits.
    assert head.hash.encode() in max((folder / "checkpoints").iterdir()).read_bytes()
    salts = {Ledger.create(tmp_path / n, store=store.id).header.salt for n in ("a", "b")}
    assert len(salts) == 2


def test_a_seeded_run_repeats_and_is_marked(store: RecordStore, tmp_path: Path) -> None:
    config = [options(store, tmp_path / name, insecure_seed=7, seed=1) for name in "ab"]
    models = [load_file(run_training(c) / "model.safetensors") for c in config]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not summary_of(tmp_path / "a")["private"]
    assert "insecure" in summary_of(tmp_path / "a")["privacy"]["guarantee"]
    assert Ledger.open(store.ledger_path).epsilon(1e-5) == math.inf


def test_the_seed_covers_the_initial_weights_only(store: RecordStore, tmp_path: Path) -> None:
    folders = [run_training(options(store, tmp_path / name, seed=1, steps=1)) for name in "ab"]
    first = [load_file(f / "checkpoints" / "step-000000000.safetensors") for f in folders]
    last = [load_file(f / "model.safetensors") for f in folders]
    assert torch.equal(first[0]["model.0.weight"], first[1]["model.0.weight"])
    assert not torch.equal(last[0]["0.weight"], last[1]["0.weight"])


def test_an_output_folder_with_an_earlier_run_names_resume_if_it_can_go_on(
    store: RecordStore, tmp_path: Path
) -> None:
    config = options(store, tmp_path / "run")
    folder = run_training(config)
    with pytest.raises(OutputError, match=r"a finished run.*choose another --out"):
        run_training(config)
    (folder / "summary.json").unlink()
    with pytest.raises(OutputError, match="--resume"):
        run_training(config)


def test_a_full_disk_ends_the_run_and_space_resumes_it(
    store: RecordStore, tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    """Fills at run start, at checkpoints and at the last files, by growing a real file system."""
    disk = small_disk(64)
    folder, ledger = disk / "run", tmp_path / "ledger.sqlite"
    refused, reasons = 0, set()
    for kib in range(64, 400, 16):
        subprocess.run(["mount", "-o", f"remount,size={kib}k", str(disk)], check=True)
        started = (folder / "run.json").is_file()
        config = options(store, folder, ledger=ledger)
        try:
            run_training(TrainConfig(resume=folder) if started else config)
            break
        except OutputError as error:
            reasons.add(error.got)
            refused += 1
        assert started or not list(disk.iterdir()) or (folder / "run.json").is_file()
        assert not [path for path in disk.rglob(".*") if path.name != ".lock"]  # no partial file
    assert refused >= 3
    assert reasons == {"a full disk"}
    steps = summary_of(folder)["steps"]
    assert steps["charged"] == 20
    assert steps["taken"] + steps["lost"] == 20


def test_an_empty_local_batch_is_a_normal_step(store: RecordStore, tmp_path: Path) -> None:
    config = options(store, tmp_path / "run", batch_size=1, steps=60, checkpoint_every=60)
    folder = run_training(config)
    sizes = [line["batch_size"] for line in lines_of(folder / "private" / "training.jsonl")]
    assert len(sizes) == 60
    assert min(sizes) == 0  # 60 batches of mean size 1 all have a record with P < 1e-11
    assert summary_of(folder)["steps"]["charged"] == 60


def test_add_remove_divides_by_the_declared_size(store: RecordStore, tmp_path: Path) -> None:
    config = options(store, tmp_path / "run", relation="add_remove", declared_records=9999)
    plan = open_run(run_training(config)).plan
    assert plan is not None
    assert plan.records == 9999
    assert plan.expected_batch_size == pytest.approx(64)


def test_a_batch_larger_than_the_records_is_refused(store: RecordStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sampling rate"):
        run_training(options(store, tmp_path / "run", batch_size=10**6))
    assert not (tmp_path / "run").exists()


def test_a_store_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="manifest"):
        run_training(TrainConfig(store=tmp_path / "nothing", out=tmp_path / "run", epsilon=1.0))


def test_resuming_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="run folder"):
        run_training(TrainConfig(resume=tmp_path))


def test_a_run_whose_budget_another_process_took_ends(
    store: RecordStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop also stops when the account says no, and saves what it has."""
    made: list[int] = []
    real = PrivateStep.__call__

    def refuse_the_eighth(self: Any, batch: Any) -> Any:
        if len(made) == 7:
            raise BudgetExhaustedError(expected="a step", got="none", fix="stop")
        made.append(1)
        return real(self, batch)

    monkeypatch.setattr(PrivateStep, "__call__", refuse_the_eighth)
    folder = run_training(options(store, tmp_path / "run"))
    assert summary_of(folder)["steps"]["taken"] == 7
    assert max((folder / "checkpoints").iterdir()).name == "step-000000007.safetensors"
