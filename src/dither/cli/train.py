"""`dither train`."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    with stop_on_interrupt() as stop, building(console) as told, TrainingBar(console) as bar:
        folder = run_training(config, bar, told, stop)
    page = write_report(folder)
    summary = json.loads((folder / "summary.json").read_bytes())
    _print(Console(highlight=False), summary, page)


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C end the run after the current step, and a second one at once."""
    asked: list[int] = []

    def handle(number: int, _: object) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


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
    loss, guess = (summary["metrics"][name] for name in ("loss", "loss_of_constant_guess"))
    if loss > guess:
        console.print(
            f"held-out loss {loss:.3f} is above that of a constant guess ({guess:.3f}): the "
            "ranking may be good, the probabilities are not. Class weights do that, and clipping "
            "(a larger --l2-clip with a smaller --learning-rate may help)",
            soft_wrap=True,
        )
    if steps["lost"]:
        console.print(f"{steps['lost']} steps were charged and lost in an earlier stop")
    console.print(f"report: {page}", soft_wrap=True)
