"""The command line as a user meets it: exit status, messages, JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dither.cli.main import main
from dither.data.build import build_store
from dither.data.store import RecordStore
from dither.data.synth import write_synthetic
from dither.privacy.ledger import Ledger


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("records") / "persons.parquet", 3000, seed=2)


@pytest.fixture
def train(records: Path, tmp_path: Path) -> list[str]:
    build_store(records, "employment", tmp_path / "store")
    words = "--steps 4 --batch-size 32 --delta 1e-5 --noise-multiplier 1 --hidden 4 --lease 2"
    return ["train", "--store", str(tmp_path / "store"), *words.split()]


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail by a named error, and return its one message."""
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    message = " ".join(shown.err.split())
    assert message.count("error:") == 1
    assert re.search(r"expected .*, got .*\. To mend it: .*\.", message)
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize("verb", ["data build", "data synth", "train", "plan", "ledger", "report"])
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*verb.split(), "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 300


def test_an_unknown_verb_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["tarin"])
    assert stop.value.code == 2


def test_a_run_from_train_to_ledger_and_report(
    train: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*train, "--out", str(run)]) == 0
    assert "differentially private" in capsys.readouterr().out
    assert (run / "report.html").is_file()
    assert (run / "private" / "report.html").is_file()
    assert main(["ledger", str(run), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    summary = json.loads((run / "summary.json").read_bytes())
    assert facts["run"]["epsilon"] == summary["privacy"]["epsilon"]
    assert facts["run"]["events"][0]["count"] == 4
    assert main([*train, "--no-private", "--out", str(tmp_path / "plain")]) == 0
    assert "NOT PRIVATE" in capsys.readouterr().out
    assert main(["report", str(run), "--against", str(tmp_path / "plain")]) == 0
    assert main(["ledger", str(tmp_path / "store")]) == 0
    assert "∞" in capsys.readouterr().out


def test_warnings_are_shown_with_their_reason(
    train: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weak = [word if word != "1e-5" else "0.01" for word in train]
    assert main([*weak, "--out", str(tmp_path / "run"), "--insecure-seed", "1"]) == 0
    shown = capsys.readouterr()
    assert "warning:" in shown.err
    assert "1/n" in shown.err
    assert "seed" in shown.err
    assert "NOT PRIVATE" in shown.out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--epsilon", "0"], "--epsilon above 0"),
        (["--epsilon", "1"], "either --epsilon"),
        (["--steps", "0"], "--steps in [1, 1e8]"),
        (["--batch-size", "100000"], "sampling rate"),
        (["--trust", "local"], "trust central"),
        (["--relation", "add_remove"], "--declared-records"),
    ],
)
def test_bad_options_exit_with_2(
    train: list[str],
    tmp_path: Path,
    change: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert words in fails([*train, "--out", str(tmp_path / "run"), *change], capsys)
    assert not (tmp_path / "run").exists()


def test_unknown_task_and_engine_exit_with_2(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["data", "build", "--data", str(records), "--out", str(tmp_path / "s")]
    assert "unemployment" in fails([*base, "--task", "retirement"], capsys)
    assert "duckdb" in fails([*base, "--engine", "abacus"], capsys)
    assert not (tmp_path / "s").exists()


def test_missing_records_exit_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--data", str(tmp_path / "no.zip"), "--out", str(tmp_path / "run")]
    arguments += ["--epsilon", "1"]
    assert "no.zip" in fails(arguments, capsys)


def test_a_folder_without_a_run_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "run" in fails(["report", str(tmp_path)], capsys)
    assert "ledger" in fails(["ledger", str(tmp_path / "nowhere")], capsys)
    (tmp_path / "accounts").mkdir()
    (tmp_path / "accounts" / "rank-0.sqlite").touch()
    assert "rank-0.sqlite" in fails(["ledger", str(tmp_path / "accounts")], capsys)


def test_a_changed_store_exits_with_2(
    train: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = next((tmp_path / "store").rglob("*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert "checksum" in fails([*train, "--out", str(tmp_path / "run")], capsys)


def test_a_broken_ledger_entry_exits_with_2(
    train: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import sqlite3

    assert main([*train, "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    with sqlite3.connect(tmp_path / "store" / "ledger.sqlite") as database:
        database.execute("DROP TRIGGER entry_fixed")
        database.execute("UPDATE entry SET count = 1 WHERE kind = 'lease'")
    database.close()
    assert "hash chain" in fails(["ledger", str(tmp_path / "run")], capsys)
    assert "hash chain" in fails([*train, "--out", str(tmp_path / "again")], capsys)


def test_a_locked_ledger_exits_with_2(
    train: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sqlite3

    path = tmp_path / "store" / "ledger.sqlite"
    Ledger.create(path, store=RecordStore.open(tmp_path / "store").id, sensitive=False)
    real = Ledger.create
    monkeypatch.setattr(Ledger, "create", lambda *a, **k: real(*a, **{**k, "busy_seconds": 0.2}))
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        message = fails([*train, "--out", str(tmp_path / "run")], capsys)
    finally:
        holder.close()
    assert "another process" in message


def test_ctrl_c_saves_a_checkpoint_and_says_how_to_go_on(
    train: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real interrupt, in a process of its own."""
    import signal
    import subprocess
    import sys
    import time

    words = [w if w != "4" else "3000" for w in train[:6]] + train[6:]
    command = [sys.executable, "-m", "dither", *words, "--out", str(tmp_path / "run")]
    errors = tmp_path / "errors"
    with errors.open("wb") as stream:
        process = subprocess.Popen(command, stderr=stream, stdout=stream)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    said = " ".join(errors.read_text().split())
    found = re.search(r"stop at step (\d+); a checkpoint was saved.*--resume", said)
    assert found, said
    newest = max((tmp_path / "run" / "checkpoints").iterdir()).name
    assert newest == f"step-{int(found[1]):09d}.safetensors"


def test_plan_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = "plan --records 10000 --batch-size 100 --steps 50 --noise-multiplier 1 --json"
    assert main(words.split()) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert facts["epsilon"] < facts["epsilon_rdp"]
    assert facts["plan"]["sampling_rate"] == 0.01


@pytest.mark.parametrize(
    "words",
    [
        "plan --records 100 --batch-size 10 --steps 5",
        "plan --records 100 --batch-size 10 --steps 5 --epsilon 1 --noise-multiplier 1",
        "plan --records 100 --batch-size 10 --epsilon 1",
        "plan --records 100 --batch-size 101 --steps 5 --epsilon 1",
        "plan --records 100 --batch-size 10 --steps 0 --epsilon 1",
        "plan --records 100 --batch-size 10 --steps 5 --epsilon 0",
        "plan --records 100 --batch-size 10 --steps 5 --epsilon 1 --delta 2",
        "plan --records 100 --batch-size 10 --steps 5 --noise-multiplier 0",
        "plan --records 0 --batch-size 1 --steps 5 --noise-multiplier 1",
    ],
)
def test_bad_plans_exit_with_2(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    fails(words.split(), capsys)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)
