"""A short run that a test may kill: ``python -m tests.train.killable STORE FOLDER``.

Starts or resumes the run in FOLDER, and counts releases in FOLDER.tap: one byte for every sum that
leaves, written before it does, by no part of the ledger.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from dither.config import TrainConfig
from dither.release.chunk import ChunkEncoder
from dither.train.loop import run_training

STEPS, LEASE = 900, 16


def main(store: Path, folder: Path) -> None:
    tap = os.open(folder.with_suffix(".tap"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    send = ChunkEncoder.alone  # a rank without others encodes and decodes at once

    def tapped(self: ChunkEncoder, chunk: Any) -> Any:
        os.write(tap, b".")
        return send(self, chunk)

    ChunkEncoder.alone = tapped  # type: ignore[method-assign]
    if (folder / "run.json").is_file():
        run_training(TrainConfig(resume=folder, threads=1))
        return
    run_training(
        TrainConfig(
            store=store,
            out=folder,
            ledger=folder.with_suffix(".sqlite"),
            steps=STEPS,
            lease=LEASE,
            batch_size=32,
            # Much noise makes the accountant quick, so that kills also hit the other parts.
            noise_multiplier=8.0,
            delta=1e-5,
            hidden=(8,),
            checkpoint_every=60,
            threads=1,
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
