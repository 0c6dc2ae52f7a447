"""The attacks as a user runs them: JSON, figures, exit status, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dither.cli.main import main
from dither.data.build import build_store
from dither.data.synth import write_synthetic
from dither.privacy.ledger import Ledger


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("records") / "persons.parquet", 1500, seed=7)


SMALL = ["--models", "8", "--epochs", "1", "--batch-size", "30", "--hidden", "4", "--threads", "1"]


def test_allreduce(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["audit", "allreduce", "--ranks", "2", "3", "--games", "512", "--out", str(tmp_path)]
    assert main([*words, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["findings"] == found["blind"] == []
    keys = {"observer", "inference", "trust", "ranks", "advantage", "ceiling", "within"}
    assert all(keys <= set(row) for row in found["rows"])
    assert {row["ranks"] for row in found["rows"]} == {2, 3}
    assert json.loads((tmp_path / "audit-allreduce.json").read_bytes()) == found
    assert (tmp_path / "audit-allreduce.svg").read_text("utf-8").count("<svg") == 1


def test_membership_and_inversion(source: Path, tmp_path: Path) -> None:
    store = build_store(source, "employment", tmp_path / "store", sensitive=False)
    where, out = str(store.path), str(tmp_path / "out")
    words = ["audit", "membership", where, *SMALL, "--records", "60", "--out", out]
    assert main([*words, "--json", str(tmp_path / "m.json")]) == 0
    found = json.loads((tmp_path / "m.json").read_bytes())
    assert [model["epsilon"] for model in found["models"]] == [None, 1.0]
    words = ["audit", "inversion", where, *SMALL, "--records", "60", "--known", "200"]
    assert main([*words, "--attributes", "SEX", "--epsilons", "1", "--out", out]) == 0
    found = json.loads((tmp_path / "out" / "audit-inversion.json").read_bytes())
    assert [row["name"] for row in found["rows"]] == ["plain", "epsilon 1"]
    for name in ("membership", "inversion"):
        assert (tmp_path / "out" / f"audit-{name}.svg").stat().st_size > 1000
    # Both trained plain models on these records: both are in their account.
    entries = Ledger.open(Path(store.ledger_path)).entries()
    assert sum("dither audit" in str(entry) for entry in entries) == 2


@pytest.mark.parametrize("verb", ["membership", "inversion"])
def test_sensitive_records_are_refused(
    verb: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = build_store(source, "employment", tmp_path / "store", sensitive=True)
    known = ["--known", "200"] if verb == "inversion" else []
    assert main(["audit", verb, str(store.path), *SMALL, "--records", "60", *known]) == 2
    assert "sensitive" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--ranks", "8", "1"], ["--games", "0"], ["--ranks"]])
def test_games_that_cannot_be_are_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", "allreduce", *words]) == 2
    assert "expected" in capsys.readouterr().err


REFUSED = [
    ["--models", "7"],
    ["--records", "10"],
    ["--records", "100000000"],
    ["--l2-clip", "0"],
    ["--delta", "2"],
    ["--threads", "0"],
    ["--json", "/dev/null/nowhere.json"],
]
OF_ONE = {
    "membership": [["--epsilon", "nan"], ["--epsilon", "0"]],
    "inversion": [
        ["--epsilons", "-1"],
        ["--attributes", "AGEP"],
        ["--attributes", "SEX", "SEX"],
        ["--attributes"],
        ["--known", "0"],
    ],
}


@pytest.mark.parametrize("verb", ["membership", "inversion"])
def test_what_is_refused_costs_nothing(
    verb: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An entry of ε = ∞ stays for good: it must not be written for a slip of the keyboard."""
    store = build_store(source, "employment", tmp_path / "store", sensitive=True)
    small = [
        "--models",
        "8",
        "--epochs",
        "1",
        "--records",
        "40",
        "--json",
        str(tmp_path / "a.json"),
    ]
    small += ["--known", "100"] if verb == "inversion" else []
    for wrong in [*REFUSED, *OF_ONE[verb]]:
        kept = [*small]
        if wrong[0] in kept:
            place = kept.index(wrong[0])
            del kept[place : place + 2]
        assert main(["audit", verb, str(store.path), "--force", *kept, *wrong]) == 2, wrong
        assert "expected" in capsys.readouterr().err, wrong
        assert not Path(store.ledger_path).exists(), wrong
    assert not (tmp_path / "a.json").exists()
