"""How much memory this process holds."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Resident:
    """Resident memory of this process, in bytes.

    Attributes:
        present: Now.
        peak: At most so far.
    """

    present: int
    peak: int


def resident() -> Resident:
    """Return what memory this process holds and held at most.

    From /proc where there is one: ``ru_maxrss`` of a child also counts what its parent held when it
    was started.
    """
    if not _STATUS.exists():
        return Resident(psutil.Process().memory_info().rss, _ru_maxrss())
    values = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE))
    return Resident(int(values["VmRSS"]) * 1024, int(values["VmHWM"]) * 1024)


def _ru_maxrss() -> int:
    import resource  # noqa: PLC0415 - not on every platform

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
