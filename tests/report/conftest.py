"""Run folders as the training room writes them, small and made here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dither.privacy.plan import Plan

MakeRun = Callable[..., Path]
PARTS = ("sample", "gather", "clip", "release", "optimizer", "evaluate", "checkpoint", "other")


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a run folder; keyword arguments change its ``run.json`` and ``summary.json``."""

    def make(name: str = "acs", **options: Any) -> Path:
        return write_run(tmp_path / name, **options)

    return make


def write_run(
    folder: Path,
    *,
    private: bool = True,
    about: dict[str, Any] | None = None,
    summary: dict[str, Any] | None = None,
    finished: bool = True,
    operator: bool = False,
    steps: int = 400,
) -> Path:
    """Write a run folder of 20 checkpoints with plausible figures."""
    folder.mkdir(parents=True)
    _put(folder / "run.json", _merge(_about(private, steps), about or {}))
    lines = [_checkpoint(index * steps // 20, steps, private) for index in range(1, 21)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        _put(folder / "summary.json", _merge(_summary(private, steps), summary or {}))
        _put(folder / "curves.json", _curves(0.55 if private else 0.5))
    if operator:
        write_operator_part(folder, steps=steps)
    return folder


def write_operator_part(folder: Path, *, steps: int, shift: float = 0.0) -> None:
    """Write the private part; ``shift`` changes every value in it."""
    (folder / "private").mkdir(exist_ok=True)
    edges = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0, None]
    _put(folder / "private" / "norm_edges.json", edges)
    with (folder / "private" / "training.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            wave = math.sin(12.9898 * step)
            line = {
                "step": step,
                "loss": 0.2 + 0.5 * math.exp(-step / 80) + 0.02 * wave + shift,
                "batch_size": 4096 + round(60 * wave) + round(shift),
                "saturated": 0,
                "non_finite": 0,
                "clipped_fraction": 0.3 + 0.2 * math.exp(-step / 80) + 0.02 * wave,
                "norm_histogram": [310, 820, 1100, 700, 500, 380, 190, 80, 16],
            }
            file.write(json.dumps(line) + "\n")


def _about(private: bool, steps: int) -> dict[str, Any]:
    plan = Plan(
        records=1_062_449,
        sampling_rate=4096 / 1_062_449,
        steps=steps,
        l2_clip=1.0,
        noise_multiplier=0.8123,
        delta=1e-7,
    )
    return {
        "format": 1,
        "private": private,
        "seeded": False,
        "forced": False,
        "started": "2026-11-22T01:30:00+00:00",
        "config": _config(steps, private),
        "plan": plan.to_json() if private else None,
        "store": {
            "id": "5f0c8a17d2e94b63",
            "task": "unemployment",
            "records": 1_328_061,
            "train_records": 1_062_449,
            "test_records": 265_612,
            "unit": "record",
            "sensitive": False,
            "feature_dim": 112,
            "public_inputs": {
                "n": "1328061, counted",
                "class_weights": "1, 24, declared in the task",
                "imputation": "AGEP 40, from the data dictionary",
            },
        },
        "environment": {
            "dither": "0.1.0",
            "python": "3.12.3",
            "torch": "2.13.0",
            "numpy": "2.3.1",
            "dp_accounting": "0.6.0",
            "cpu": "a test",
            "cores": 2,
        },
    }


def _config(steps: int, private: bool) -> dict[str, Any]:
    return {
        "task": "unemployment",
        "data": "/home/somebody/acs.parquet",
        "epsilon": 1.0,
        "delta": 1e-7,
        "batch_size": 4096,
        "steps": steps,
        "hidden": [64, 32],
        "optimizer": "adam",
        "learning_rate": 0.003,
        "l2_clip": 1.0,
        "private": private,
    }


def _checkpoint(step: int, steps: int, private: bool) -> dict[str, Any]:
    progress = step / steps
    top = 0.719 if private else 0.727
    return {
        "step": step,
        "epsilon": 0.35 + 0.6321 * math.sqrt(progress) if private else None,
        "auroc": top - 0.12 * math.exp(-6 * progress),
        "loss": 0.19 + 0.3 * math.exp(-5 * progress) + (0.01 if private else 0.0),
        "seconds": 52.5 * progress,
    }


def _summary(private: bool, steps: int) -> dict[str, Any]:
    times = (4.1, 6.3, 18.2, 7.9, 1.2, 9.8, 2.0, 3.0) if private else (4, 6, 9, 0, 1.2, 9.8, 2, 3)
    last = _checkpoint(steps, steps, private)
    return {
        "format": 1,
        "finished": True,
        "private": private,
        "steps": {"planned": steps, "taken": steps, "charged": steps, "lost": 0},
        "metrics": {"auroc": last["auroc"], "loss": last["loss"]},
        "privacy": {
            "epsilon": last["epsilon"],
            "delta": 1e-7,
            "rdp_epsilon": 1.1287 if private else None,
            "relation": "zero_out",
            "unit": "record",
            "trust": "central",
            "sampler": "poisson",
            "sampling_rate": 4096 / 1_062_449,
            "noise_multiplier": 0.8123 if private else 0.0,
            "l2_clip": 1.0,
            "accountant": "PLD (dp-accounting)",
            "guarantee": "(ε, δ)-DP" if private else "none: trained with --no-private",
        },
        "seconds": float(sum(times)),
        "peak_rss_bytes": 2_312_904_704,
        "records": 1_328_061,
        "timing": dict(zip(PARTS, times, strict=True)),
    }


def _curves(power: float) -> dict[str, Any]:
    grid = [index / 200 for index in range(201)]
    return {
        "roc": {"fpr": grid, "tpr": [value**power for value in grid]},
        "pr": {"recall": grid, "precision": [0.04 + 0.3 * (1 - value) ** 3 for value in grid]},
    }


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, change in changes.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(change, dict) and change
        merged[key] = _merge(old, change) if both else change  # type: ignore[arg-type]
    return merged


def _put(path: Path, values: object) -> None:
    path.write_text(json.dumps(values, allow_nan=False))
