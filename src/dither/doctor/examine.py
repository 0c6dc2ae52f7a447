"""All checks, each by itself: what is broken for one is reported, and stops no other."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

from dither import __version__
from dither.doctor.check import Check, first_line

FORMAT = 1
PARTS = MappingProxyType(
    {
        "packages": "packages",
        "core": "C core",
        "torch_checks": "PyTorch",
        "machine": "machine",
        "places": "home",
        "mpi": "MPI",
        "java": "Java",
    }
)
"""Modules of checks, and how a part is called whose module itself fails."""
_AT_ONCE = 4  # most wait for other programs
_AGAIN = "install dither again, with what it requires: pip install --force-reinstall dither"


def examine(told: Callable[[int, int], None] = lambda _done, _total: None) -> list[Check]:
    """Return what all checks find, in their order.

    Args:
        told: Is told how many parts are done, and of how many.
    """
    found: list[Check] = []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for done, checks in enumerate(pool.map(_part, PARTS)):
            found += checks
            told(done + 1, len(PARTS))
    return found


def _part(module: str) -> list[Check]:
    found: list[Check] = []
    try:
        looked: Iterator[Check] = importlib.import_module(f"dither.doctor.{module}").checks()
        found.extend(looked)
    except Exception as error:  # noqa: BLE001 - any library may be the broken one
        what = f"{type(error).__name__}: {first_line(str(error))}"
        name, means = PARTS[module], "what this check could not look at"
        found.append(Check(name, "wrong", what, means, _AGAIN, needed=True))
    return found


def facts(checks: list[Check]) -> dict[str, Any]:
    """Return the checks as JSON has them."""
    return {
        "format": FORMAT,
        "dither": __version__,
        "able": not any(check.stops for check in checks),
        "checks": [check.to_json() for check in checks],
    }
