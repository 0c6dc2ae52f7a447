"""Memory, randomness and clock; what a container allows."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from dither.doctor import machine
from dither.doctor.limits import memory, processors


def test_this_machine_is_good() -> None:
    found = {check.name: check for check in machine.checks()}
    assert list(found) == ["memory", "entropy", "clock"]
    assert found["entropy"].state == found["clock"].state == "good"
    assert found["entropy"].needed


def test_a_clock_before_the_installation_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of next century instead of a clock of the last."""
    later = tmp_path / "machine.py"
    later.touch()
    os.utime(later, (4e9, 4e9))
    monkeypatch.setattr(machine, "__file__", str(later))
    clock = list(machine.checks())[-1]
    assert (clock.state, clock.stops) == ("wrong", False)
    assert "2096" in clock.found


@pytest.mark.parametrize(
    ("quota", "most"), [("50000 100000", 1), ("100000 100000", 1), ("max 100000", None), ("", None)]
)
def test_a_quota_of_processors_counts(tmp_path: Path, quota: str, most: int | None) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    everything = len(os.sched_getaffinity(0))
    assert processors(tmp_path) == (everything if most is None else most)


def test_a_limit_of_memory_counts(tmp_path: Path) -> None:
    assert memory(tmp_path)[0] == psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert memory(tmp_path) == (3_000_000, 2_000_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory(tmp_path)[0] == psutil.virtual_memory().total
