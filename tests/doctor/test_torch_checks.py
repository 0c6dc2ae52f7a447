"""PyTorch is tried in a process of its own: a broken one is reported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tests.doctor.test_packages import installed

from dither.doctor.check import Check
from dither.doctor.limits import processors
from dither.doctor.torch_checks import checks
from dither.precision.capability import processor

NAMES = ["PyTorch", "matrix units", "threads", "GPU"]


def by_name() -> dict[str, Check]:
    found = list(checks())
    assert [check.name for check in found] == NAMES
    return {check.name: check for check in found}


def test_the_torch_that_is_here_is_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a file of that name lies in the folder in which the user stands."""
    (tmp_path / "torch.py").write_text("raise ImportError('not this one')")
    monkeypatch.chdir(tmp_path)
    found = by_name()
    assert found["PyTorch"].state == "good"
    assert torch.__version__ in found["PyTorch"].found
    assert processor("cpu").described() in found["matrix units"].found
    fast = processor("cpu").bf16 or processor("cpu").int8
    assert (found["matrix units"].state == "good") is fast
    assert (found["GPU"].state == "good") is torch.cuda.is_available()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ImportError('libtorch_cpu.so: cannot open')", "libtorch_cpu.so: cannot open"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("raise SystemExit(3)", "exit status 3"),
        ("print('no answer')", "__version__"),
    ],
)
def test_a_broken_torch_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    (tmp_path / "torch.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = by_name()
    assert found["PyTorch"].stops
    assert said in found["PyTorch"].found
    assert "pip install" in str(found["PyTorch"].fix)
    assert {found[name].state for name in NAMES[1:]} == {"missing"}


def test_version_threads_and_driver_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "dither", "9", "Requires-Dist: torch>=99")
    monkeypatch.syspath_prepend(tmp_path)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexit 0\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", str(processors() + 3))
    found = by_name()
    assert found["PyTorch"].stops
    assert found["PyTorch"].fix == "pip install 'torch>=99'"
    assert (found["threads"].state, found["threads"].stops) == ("wrong", False)
    assert f"OMP_NUM_THREADS={processors()}" in str(found["threads"].fix)
    card = found["GPU"]
    assert (card.state, card.stops) == ("good" if torch.cuda.is_available() else "wrong", False)
    assert bool(card.fix) is not torch.cuda.is_available()
