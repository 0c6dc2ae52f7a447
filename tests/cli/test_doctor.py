"""`dither doctor` as a user meets it, also where something it rests on is broken."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dither.cli.doctor import show
from dither.cli.main import main
from dither.doctor import machine
from dither.doctor.examine import PARTS

COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7]")


def doctor(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dither", "doctor", *words],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        env={**os.environ, **environment},
    )


def states(facts: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["state"] for check in facts["checks"]}


def test_table_and_file_where_something_optional_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert main(["doctor", "--json", str(tmp_path / "facts.json")]) == 0
    shown = capsys.readouterr().out
    facts = json.loads((tmp_path / "facts.json").read_bytes())
    assert all(check["name"] in shown for check in facts["checks"])
    assert {"matrix units", "GPU", "MPI", "extra opendp", "clock"} <= states(facts).keys()
    assert "dither can run here" in shown
    assert re.search(r"wrong: .*Java", shown)
    assert "\x1b" not in shown


def test_json_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", str(tmp_path / "no" / "facts.json")]) == 2
    assert "To mend it" in capsys.readouterr().err


def test_json_alone_and_without_torch_in_this_process() -> None:
    code = (
        "import sys; from dither.cli.main import main; "
        "assert main(['doctor', '--json']) == 0; "
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.split()[-1] == "False"
    facts = json.loads(done.stdout)
    assert facts["able"] is True
    assert len(states(facts)) == len(facts["checks"]) > len(PARTS)
    for check in facts["checks"]:
        assert check["found"]
        assert check["means"]
        assert bool(check["fix"]) is (check["state"] != "good")


def test_a_broken_torch_is_reported_and_everything_else_too(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    done = doctor("--json", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    found = states(json.loads(done.stdout))
    assert found["PyTorch"] == "wrong"
    assert found["C core"] == found["entropy"] == found["home"] == "good"


def test_a_broken_core_is_reported_and_everything_else_too(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['dither._native'] = None\n")
    done = doctor("--json", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    found = states(json.loads(done.stdout))
    assert found["C core"] == found["MPI"] == "wrong"
    assert found["PyTorch"] == found["entropy"] == "good"


def test_a_broken_library_takes_only_its_own_checks_along(tmp_path: Path) -> None:
    (tmp_path / "platformdirs.py").write_text("raise ImportError('half installed')\n")
    (tmp_path / "torch.py").write_text("raise ImportError('half installed too')\n")
    done = doctor(PYTHONPATH=str(tmp_path), COLUMNS="200")
    assert done.returncode == 1
    assert "ImportError: half installed\n" in re.sub(r" +\n", "\n", done.stdout)
    assert re.search(r"before this is mended: PyTorch, .*home", done.stdout)
    assert re.search(r"C core +good", done.stdout)
    assert "Traceback" not in done.stderr


def test_what_dither_needs_and_is_wrong_gives_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('half installed')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "file").touch()
    monkeypatch.setenv("DITHER_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("DITHER_SIMD", "sse9")
    assert main(["doctor"]) == 1
    shown = capsys.readouterr()
    assert "run here before this is mended: instruction set, PyTorch, home" in shown.out
    assert "error:" not in shown.err
    # Other verbs still refuse it at once.
    assert main(["plan", "--records", "9", "--steps", "1", "--epsilon", "1"]) == 2
    assert "sse9" in capsys.readouterr().err


@pytest.mark.parametrize("obeyed", [False, True])
def test_colours_obey_no_color(monkeypatch: pytest.MonkeyPatch, obeyed: bool) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1" if obeyed else "")
    out = io.StringIO()
    show(list(machine.checks()), Console(file=out))
    assert "entropy" in out.getvalue()
    assert bool(COLOUR.search(out.getvalue())) is not obeyed
