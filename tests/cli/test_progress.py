"""What a terminal shows of a training run."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from dither.cli.progress import TrainingBar
from dither.config import TrainConfig
from dither.train.run import Run

RUN = Run(Path("run"), "a", TrainConfig(steps=2000), None, Path("store"))
LINE = {"epsilon": 13.992, "auroc": 0.586, "loss": 0.294}


@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_figure_is_cut(width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    with TrainingBar(console) as bar:
        bar.started(replace(RUN), 1900, 2000)
        bar.evaluated(LINE)
        bar.stepped(1944)
    file = console.file
    assert isinstance(file, io.StringIO)
    last = [line for line in file.getvalue().splitlines() if "1944" in line][-1]
    for figure in ("training", "1944/2000", "ε 13.992", "AUROC 0.586", "loss 0.294", "0:00:0"):
        assert figure in last
    assert "…" not in last
