"""`dither bench noise`: the cases that are promised, measured through what releases call."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dither.bench import noise as bench
from dither.cli.main import main
from dither.noise import simd
from dither.noise.codec import decode
from dither.noise.key import Key
from dither.noise.pool import FreshNoise


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_SIZE", 1 << 12)
    monkeypatch.setattr(bench, "_LARGE", 1 << 17)
    monkeypatch.setattr(bench, "_PAIRS", 4)


def test_every_case_and_variant_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    path = tmp_path / "noise.json"
    assert main(["bench", "noise", "--json", str(path)]) == 0
    rows = {row["case"]: row for row in json.loads(path.read_text())["rows"]}
    narrower = [f"/{name}" for name in simd.available() if name != simd.active()]
    for case in ("gaussian_f32", "lattice_i32", "mask_i32"):
        assert {f"{case}{variant}" for variant in ["", *narrower]} <= rows.keys()
    assert {"pool_add", "pool_producer"} <= rows.keys()
    assert all(row["ours"] > 0 and row["baseline"] > 0 for row in rows.values())
    assert rows["lattice_i32"]["baseline_name"] == "normal_"
    assert rows["pool_add"]["baseline_name"] == "add_"
    assert torch.get_num_threads() == threads
    capsys.readouterr()


@pytest.mark.parametrize("bits", [16, 32])
def test_the_benched_lattice_is_the_issues(bits: int) -> None:
    """σ = 2²⁰ fine steps, and messages that really carry it."""
    grid = bench.bench_lattice(bits)
    assert grid.sigma == 2.0**20
    message = FreshNoise(Key()).encode(np.zeros(1 << 16), grid).message
    assert message.dtype == (np.int16 if bits == 16 else np.int32)
    assert decode(message, grid).std() == pytest.approx(1.0, rel=0.02)
