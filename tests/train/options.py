"""Quick options for whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dither.config import TrainConfig
from dither.data.store import RecordStore


def options(store: RecordStore, out: Path, **changes: Any) -> TrainConfig:
    """A run of a second, with a given noise multiplier, so nothing has to be calibrated."""
    settings: dict[str, Any] = {
        "steps": 20,
        "batch_size": 64,
        "noise_multiplier": 1.0,
        "delta": 1e-5,
        "hidden": (8,),
        "checkpoint_every": 5,
        "lease": 8,
        "threads": 1,
    }
    return TrainConfig(store=store.path, out=out, **{**settings, **changes})
