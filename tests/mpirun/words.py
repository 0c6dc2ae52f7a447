"""Options of `dither mpirun` that its tests begin with."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dither.cli.main import main
from dither.mpirun.options import MpirunConfig

BASE = ["-n", "2", "--trust", "local", "--clip", "1", "--delta", "1e-6", "--releases", "10"]
BASE += ["--noise-multiplier", "10"]


def fails(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run dither mpirun, which must fail by one named error before anything is started."""
    assert main(["mpirun", *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    message = " ".join(shown.err.split())
    assert message.count("error:") == 1
    assert re.search(r"expected .*, got .*\. To mend it: .*\.", message)
    return message


def options(**changes: Any) -> MpirunConfig:
    values: dict[str, Any] = {
        "ranks": 2,
        "trust": "local",
        "clip": 1.0,
        "delta": 1e-6,
        "releases": 10,
        "noise_multiplier": 10.0,
        "program": ("true",),
    }
    return MpirunConfig(**{**values, **changes})
