"""What is refused before anything starts: at once, by name, and with nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dither.config import TrainConfig
from dither.errors import CheckpointError, ConfigError, DataError, DitherWarning, OutputError
from dither.train.preflight import check_command, check_start

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def good(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "store").mkdir()
    return {"store": tmp_path / "store", "out": tmp_path / "run", "epsilon": 1.0}


def a_run(folder: Path, *, finished: bool, **options: Any) -> Path:
    (folder / "private").mkdir(parents=True)
    config = TrainConfig(store=folder.parent / "store", out=folder, epsilon=1.0, **options)
    (folder / "run.json").write_text("{}")
    (folder / "private" / "run.json").write_text(json.dumps({"config": config.to_json()}))
    if finished:
        (folder / "summary.json").write_text("{}")
    return folder


def a_secret(path: Path, mode: int = 0o600, size: int = 32) -> Path:
    path.write_bytes(os.urandom(size))
    path.chmod(mode)
    return path


def test_good_commands_pass(good: dict[str, Any], tmp_path: Path) -> None:
    check_command(TrainConfig(**good), 1)
    check_command(TrainConfig(**good, trust="local", algorithm="ring", engine="ddp"), 2)
    secret = a_secret(tmp_path / "secret")
    places: dict[str, Any] = {"profile": tmp_path / "t.json", "ledger": tmp_path / "l.sqlite"}
    masked = TrainConfig(**good, **places, trust="distributed(1)", cluster_secret=secret)
    check_command(masked, 2)
    good["out"].mkdir()
    check_command(TrainConfig(**good), 1)  # an empty folder is free
    check_command(TrainConfig(resume=a_run(tmp_path / "old", finished=True)), 1)


@pytest.mark.parametrize(
    ("changes", "ranks", "words"),
    [
        ({"algorithm": "foo"}, 2, "'foo'"),
        ({"trust": "local"}, 1, "add --nproc 2"),
        ({"trust": "distributed(2)"}, 1, "add --nproc 3"),
        ({"trust": "distributed(2)"}, 2, "colluders"),
        ({"track": ("board:x",)}, 2, "--track of the form"),
        ({"track_private": ("mlflow:ftp://x",)}, 2, "another kind"),
        ({"profile": Path("nowhere/trace.json")}, 2, "mkdir -p .*nowhere"),
        ({"ledger": Path("nowhere/l.sqlite")}, 1, "--ledger nowhere"),
        ({"trust": "distributed(1)", "cluster_secret": Path("none")}, 2, "head -c 32"),
    ],
)
def test_wrong_options_are_named(
    good: dict[str, Any], changes: dict[str, Any], ranks: int, words: str
) -> None:
    for check in (check_command, check_start):
        with pytest.raises(ConfigError, match=words):
            check(TrainConfig(**{**good, **changes}), ranks)


def test_a_resumed_runs_own_options_are_checked_against_the_ranks_of_now(tmp_path: Path) -> None:
    old = a_run(tmp_path / "old", finished=False, trust="distributed(2)")
    check_command(TrainConfig(resume=old), 3)
    for ranks in (1, 2):
        with pytest.raises(ConfigError, match=r"distributed\(2\)|colluders"):
            check_command(TrainConfig(resume=old), ranks)
    with pytest.raises(ConfigError, match="'foo'"):
        check_command(TrainConfig(resume=old, algorithm="foo"), 3)


def test_a_secret_that_others_may_read_or_that_is_short_is_refused(
    good: dict[str, Any], tmp_path: Path
) -> None:
    for secret, words in (
        (a_secret(tmp_path / "open", 0o644), "chmod 600"),
        (a_secret(tmp_path / "short", size=8), "16 random bytes"),
    ):
        config = TrainConfig(**good, trust="distributed(1)", cluster_secret=secret)
        with pytest.raises(ConfigError, match=words):
            check_command(config, 2)


def test_a_taken_folder_says_what_to_do(good: dict[str, Any], tmp_path: Path) -> None:
    started = a_run(tmp_path / "started", finished=False)
    with pytest.raises(OutputError, match=f"use --resume {started}"):
        check_command(TrainConfig(**{**good, "out": started}), 2)
    finished = a_run(tmp_path / "finished", finished=True)
    with pytest.raises(OutputError, match=r"finished run.*choose another --out") as raised:
        check_command(TrainConfig(**{**good, "out": finished}), 2)
    assert "--resume" not in str(raised.value)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="something else"):
        check_command(TrainConfig(**{**good, "out": tmp_path / "file"}), 2)


def test_what_is_no_run_or_no_record_is_refused(good: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        check_command(TrainConfig(resume=tmp_path / "none"), 2)
    with pytest.raises(CheckpointError, match="no run there"):
        check_command(TrainConfig(resume=tmp_path), 2)
    damaged = a_run(tmp_path / "damaged", finished=False)
    (damaged / "private" / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match="a damaged one"):
        check_command(TrainConfig(resume=damaged), 2)
    with pytest.raises(DataError, match=r"--store .*gone"):
        check_command(TrainConfig(**{**good, "store": tmp_path / "gone"}), 2)
    data = {**good, "store": None, "data": (tmp_path / "gone.parquet",)}
    with pytest.raises(DataError, match=r"--data .*gone\.parquet"):
        check_command(TrainConfig(**data), 2)


def test_ddp_on_one_process_is_doubtful(good: dict[str, Any]) -> None:
    with pytest.warns(DitherWarning, match="--nproc 2"):
        check_command(TrainConfig(**good, engine="ddp"), 1)


@pytest.mark.parametrize("nproc", [(), ("--nproc", "2")])
def test_the_command_refuses_without_pytorch_once_and_leaves_nothing(
    good: dict[str, Any], tmp_path: Path, nproc: tuple[str, ...]
) -> None:
    words = ["--store", str(good["store"]), "--out", str(good["out"]), "--epsilon", "1", *nproc]
    code = (
        "import sys; from dither.cli.main import main; code = main(sys.argv[1:]);"
        "print('torch' in sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "train", *words, "--algorithm", "foo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == "False\n"
    assert done.stderr.count("'foo'") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
    assert not list(good["store"].iterdir())
