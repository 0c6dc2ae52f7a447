"""The ledger check: silent on a sound account, and one finding for each way to tamper with it."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.train.options import options

from dither.audit.ledger_check import RULES, check_ledger
from dither.cli.main import main
from dither.data.build import build_store
from dither.data.store import RecordStore
from dither.data.synth import write_synthetic
from dither.errors import CheckpointError
from dither.privacy.ledger_file import entry_hash
from dither.train.loop import run_training

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Where a run was trained, and a copy of what lay there then."""
    folder = tmp_path_factory.mktemp("trained")
    records = write_synthetic(folder / "persons.parquet", 2000, seed=1)
    run_training(options(build_store(records, "employment", folder / "store"), folder / "run"))
    kept = tmp_path_factory.mktemp("kept") / "trained"
    shutil.copytree(folder, kept)
    return folder, kept


@pytest.fixture
def trained(place: tuple[Path, Path]) -> tuple[RecordStore, Path]:
    """The store and the run as they were, whatever the test before did to them."""
    folder, kept = place
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)
    return RecordStore.open(folder / "store"), folder / "run"


def rules(store: RecordStore, run: Path) -> set[str]:
    return {found.rule for found in check_ledger(store.ledger_path, run, store.path)}


def rewrite(path: Path, change: Callable[[list[list[Any]]], list[list[Any]]]) -> None:
    """Change entries as a forger would who knows the format: the hashes are made anew."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as raw:
        for trigger in ("header_fixed", "entry_fixed", "entry_kept"):
            raw.execute(f"DROP TRIGGER {trigger}")
        rows = [list(row[:-1]) for row in raw.execute("SELECT * FROM entry ORDER BY seq")]
        raw.execute("DELETE FROM entry")
        previous = raw.execute("SELECT hash FROM header").fetchone()[0]
        for number, row in enumerate(change(rows), start=1):
            row[0] = number
            previous = entry_hash(previous, tuple(row))
            raw.execute("INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*row, previous))


def edit(path: Path, change: Change) -> None:
    values = json.loads(path.read_bytes())
    change(values)
    path.write_text(json.dumps(values))


def test_a_sound_account_has_no_finding(
    trained: tuple[RecordStore, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    store, run = trained
    assert rules(store, run) == set()
    for where in (run, store.path, store.ledger_path):
        assert main(["audit", "ledger", str(where)]) == 0
    assert "BROKEN" not in capsys.readouterr().out


def test_a_missing_charge_is_found(trained: tuple[RecordStore, Path]) -> None:
    store, run = trained

    def drop(rows: list[list[Any]]) -> list[list[Any]]:
        last = max(index for index, row in enumerate(rows) if row[3] == "lease")
        return rows[:last] + rows[last + 1 :]

    rewrite(store.ledger_path, drop)
    assert {"releases", "rolled back"} <= rules(store, run)


def test_a_charge_without_a_plan_is_found(trained: tuple[RecordStore, Path]) -> None:
    store, run = trained
    rewrite(store.ledger_path, lambda rows: [row for row in rows if row[3] != "plan"])
    assert {"promise", "plan"} <= rules(store, run)


def test_another_sampler_is_found(trained: tuple[RecordStore, Path]) -> None:
    store, run = trained
    full = json.dumps({"kind": "gaussian", "noise_multiplier": 1.0}, sort_keys=True)

    def unsampled(rows: list[list[Any]]) -> list[list[Any]]:
        return [[*row[:4], full if row[4] else row[4], *row[5:]] for row in rows]

    rewrite(store.ledger_path, unsampled)
    assert {"event", "epsilon"} <= rules(store, run)


def test_another_rate_is_found(trained: tuple[RecordStore, Path]) -> None:
    store, run = trained

    def rarer(rows: list[list[Any]]) -> list[list[Any]]:
        for row in rows:
            if row[4]:
                row[4] = json.dumps({**json.loads(row[4]), "rate": 1e-4}, sort_keys=True)
        return rows

    rewrite(store.ledger_path, rarer)
    assert "event" in rules(store, run)


def test_more_than_planned_is_found(trained: tuple[RecordStore, Path]) -> None:
    store, run = trained

    def more(rows: list[list[Any]]) -> list[list[Any]]:
        return [[*row[:5], row[5] * 3 if row[3] == "lease" else row[5], *row[6:]] for row in rows]

    rewrite(store.ledger_path, more)
    assert {"budget", "epsilon"} <= rules(store, run)


def test_more_returned_than_leased_is_found(trained: tuple[RecordStore, Path]) -> None:
    store, run = trained

    def returned(rows: list[list[Any]]) -> list[list[Any]]:
        lease = next(row for row in rows if row[3] == "lease")
        return [*rows, [0, lease[1], lease[2], "returned", lease[4], 1000, "{}"]]

    rewrite(store.ledger_path, returned)
    assert "budget" in rules(store, run)


def test_a_broken_chain_is_found(
    trained: tuple[RecordStore, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    store, run = trained
    with contextlib.closing(sqlite3.connect(store.ledger_path, isolation_level=None)) as raw:
        raw.execute("DROP TRIGGER entry_fixed")
        raw.execute("UPDATE entry SET count = 1 WHERE kind = 'lease'")
    assert rules(store, run) == {"chain"}
    assert main(["audit", "ledger", str(run), "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert not facts["sound"]
    assert [found["rule"] for found in facts["findings"]] == ["chain"]


def test_another_plan_in_the_run_folder_is_found(trained: tuple[RecordStore, Path]) -> None:
    store, run = trained
    edit(run / "run.json", lambda about: about["plan"].update(noise_multiplier=9.0))
    assert rules(store, run) == {"plan"}


def test_another_version_is_found(trained: tuple[RecordStore, Path]) -> None:
    store, run = trained
    edit(run / "run.json", lambda about: about["environment"].update(dither="9.9"))
    assert rules(store, run) == {"code"}


def test_a_claim_below_the_charges_is_found(trained: tuple[RecordStore, Path]) -> None:
    store, run = trained
    edit(run / "summary.json", lambda summary: summary["privacy"].update(epsilon=1e-3))
    assert rules(store, run) == {"epsilon"}


def test_an_unmarked_run_is_found(trained: tuple[RecordStore, Path]) -> None:
    store, run = trained
    edit(run / "run.json", lambda about: about.update(private=False))
    assert rules(store, run) == {"private"}


def test_more_recorded_than_charged_is_found(trained: tuple[RecordStore, Path]) -> None:
    store, run = trained
    with (run / "private" / "training.jsonl").open("a") as lines:
        lines.write('{"step": 21}\n')
    assert rules(store, run) == {"releases"}


def test_the_account_of_other_records_is_found(
    trained: tuple[RecordStore, Path], tmp_path: Path
) -> None:
    store, _ = trained
    other = write_synthetic(tmp_path / "other.parquet", 500, seed=2)
    theirs = build_store(other, "employment", tmp_path / "theirs")
    found = check_ledger(store.ledger_path, None, theirs.path)
    assert [each.rule for each in found] == ["records"]
    assert set(RULES) >= {each.rule for each in found}


def test_lines_cut_short_and_damaged_files_are_said(trained: tuple[RecordStore, Path]) -> None:
    """A kill may cut the last line; anything else that is broken is named, without a traceback."""
    store, run = trained
    lines = run / "private" / "training.jsonl"
    kept = lines.read_text()
    lines.write_text(kept + '{"step": ')
    assert rules(store, run) == set()
    lines.write_text("nothing\n" + kept)
    with pytest.raises(CheckpointError, match=r"training\.jsonl"):
        rules(store, run)
    lines.write_text(kept)
    for broken in ("{", "[]", '{"steps": {}}', '{"steps": {"taken": "x", "charged": 1}}'):
        (run / "summary.json").write_text(broken)
        with pytest.raises(CheckpointError, match=r"summary\.json"):
            rules(store, run)
