"""`dither train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from dither.cli.progress import TrainingBar, building
from dither.config import TrainConfig
from dither.report import write_report
from dither.train.loop import run_training


def run(config: TrainConfig) -> None:
    """Train, write the report, and print what was reached and spent."""
    console = Console(stderr=True, highlight=False)
    with building(console) as told, TrainingBar(console) as bar:
        folder = run_training(config, bar, told)
    page = write_report(folder)
    summary = json.loads((folder / "summary.json").read_bytes())
    _print(Console(highlight=False), summary, page)


def _print(console: Console, summary: dict[str, Any], page: Path) -> None:
    privacy, steps = summary["privacy"], summary["steps"]
    if summary["private"]:
        console.print(
            f"({privacy['epsilon']:.4f}, {privacy['delta']:g})-differentially private for one "
            f"{privacy['unit']} ({privacy['relation']}), trust {privacy['trust']}"
        )
    else:
        console.print(f"NOT PRIVATE: {privacy['guarantee'].removeprefix('none: ')}")
    console.print(
        f"held-out AUROC {summary['metrics']['auroc']:.4f} after {steps['taken']} of "
        f"{steps['planned']} steps, {summary['seconds']:.1f} s, "
        f"peak memory {summary['peak_rss_bytes'] / 2**30:.2f} GiB"
    )
    if steps["lost"]:
        console.print(f"{steps['lost']} steps were charged and lost in an earlier stop")
    console.print(f"report: {page}", soft_wrap=True)
