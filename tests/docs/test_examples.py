"""Code that is shown runs."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.markdown import PAGES, ROOT, blocks, name

from dither.privacy.events import ApproximateDP, SampledGaussian
from dither.privacy.ledger import Ledger

README = ROOT / "README.md"


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p != README and blocks(p, "python")], ids=name
)
def test_python_of_a_page_runs_from_top_to_bottom(page: Path) -> None:
    names: dict[str, object] = {"__name__": "__docs__"}
    for number, block in enumerate(blocks(page, "python"), start=1):
        exec(compile(block, f"{name(page)}, block {number}", "exec"), names)  # noqa: S102


def test_readme_shows_one_short_example_that_spends_what_it_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (block,) = blocks(README, "python")
    assert len([line for line in block.splitlines() if line.strip()]) <= 20
    exec(block, {})  # noqa: S102
    said = capsys.readouterr().out.strip()
    spent = Ledger.open(Path("records.sqlite")).epsilon(1e-6)
    assert 2.5 < spent <= 3.0
    assert said == f"spent: epsilon = {spent:.2f} of 3"


def test_example_loop_learns_and_stays_in_budget() -> None:
    options = ["--records", "1500", "--epochs", "2", "--epsilon", "4", "--ledger", "book.sqlite"]
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "pytorch_loop.py", *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    spent = Ledger.open(Path("book.sqlite")).epsilon(0.1 / 1500)
    assert 3.5 < spent <= 4.0
    assert math.isclose(float(done.stdout.split("epsilon = ")[1].split()[0]), spent, abs_tol=1e-3)
    assert done.stdout.count("held-out accuracy") == 2


def test_card_fraud_runs_from_its_description_to_a_private_model_of_cards(tmp_path: Path) -> None:
    pytest.importorskip("opendp")
    about = ROOT / "examples" / "card_fraud.toml"
    lines = [line for line in about.read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 20
    options = ["--folder", str(tmp_path), "--cards", "1500", "--steps", "40", "--epsilon", "3"]
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "card_fraud.py", *options],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    ledger = Ledger.open(tmp_path / "card_fraud.ledger.sqlite")
    assert str(ledger.header.unit) == "person"
    events = ledger.events()
    assert sum(isinstance(event, ApproximateDP) for event, _ in events) == 2
    assert sum(n for event, n in events if isinstance(event, SampledGaussian)) == 40
    total = ledger.epsilon(0.1 / 1500)
    assert 3.0 < total < 3.9  # more than the training alone, less than all parts added up
    about_run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about_run["plan"]["unit"] == "person"
    released = {item["name"] for item in about_run["store"]["released_inputs"]}
    assert released == {"bounds of AMOUNT", "vocabulary of COUNTRY"}
    auroc = json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]["auroc"]
    assert auroc > 0.6
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Released from the records" in page
    assert "vocabulary of COUNTRY" in page
    assert "1500 cards" in done.stdout
    assert "per person: " in done.stdout
