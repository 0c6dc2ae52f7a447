"""`dither train`: start the ranks of a run, or be one of them."""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.markup import escape

from dither.config import TrainConfig
from dither.train.distributed.launch import follow_launcher, launch
from dither.train.distributed.place import find_place
from dither.train.preflight import check_command

# Told to PyTorch's own log, which else tells of every port it tried.
_LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"


def run(config: TrainConfig) -> int:
    """Train, in this process or in all that --nproc asks for, and return the exit status."""
    follow_launcher()  # first: what follows takes its time, and a launcher may die meanwhile
    config.check()
    if config.spark is not None:
        return _on_spark(config)
    place = find_place()
    if place.launcher == "none":
        check_command(config, config.nproc or 1)
    if place.launcher == "none" and config.nproc is not None and config.nproc > 1:
        return _launch(config, config.nproc)
    os.environ.setdefault(_LOG_LEVEL, "ERROR")
    from dither.cli.rank import train  # noqa: PLC0415 - the launcher needs no PyTorch

    return train(config, place)


def _launch(config: TrainConfig, ranks: int) -> int:
    console = Console(stderr=True, highlight=False)

    def failed(rank: int, text: str) -> None:
        console.print(f"[bold red]error:[/] rank {rank}: {escape(text)}", soft_wrap=True)

    return launch(
        [sys.executable, "-m", "dither", "train", *config.words()],
        ranks,
        max_restarts=config.max_restarts,
        told=lambda text: console.print(escape(text), soft_wrap=True),
        failed=failed,
    )


def _on_spark(config: TrainConfig) -> int:
    from dither.cli.rank import finished  # noqa: PLC0415 - the launcher needs no PyTorch
    from dither.train.distributed.spark import train_on_spark  # noqa: PLC0415

    master = None if config.spark == "submit" else config.spark
    finished(train_on_spark(config, ranks=config.nproc or 1, master=master))
    return 0
