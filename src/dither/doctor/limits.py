"""How much of this machine a process may use: containers give less than there is."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

_GROUP = Path("/sys/fs/cgroup")


def processors(group: Path = _GROUP) -> int:
    """Return on how many processors this process may run: its affinity, and its container's quota.

    Args:
        group: Folder of the control group.
    """
    allowed = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota, _, period = _read(group / "cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        allowed = min(allowed, max(1, -(-int(quota) // int(period))))
    return allowed


def memory(group: Path = _GROUP) -> tuple[int, int]:
    """Return how much memory this process may use, and how much of it is free, in bytes.

    Args:
        group: Folder of the control group.
    """
    here = psutil.virtual_memory()
    limit, used = _read(group / "memory.max"), _read(group / "memory.current")
    if not limit.isdigit() or int(limit) >= here.total:
        return here.total, here.available
    left = int(limit) - int(used) if used.isdigit() else int(limit)
    return int(limit), max(0, min(left, here.available))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        return ""
