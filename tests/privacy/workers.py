"""What other processes do to a ledger in the tests; importable, so that `spawn` can run it."""

from __future__ import annotations

from multiprocessing.synchronize import Barrier
from pathlib import Path

from dither.errors import BudgetExhaustedError
from dither.privacy.events import SampledGaussian
from dither.privacy.ledger import Ledger

EVENT = SampledGaussian(0.01, 1.0)


def create_and_charge(path: Path, barrier: Barrier, run: str, lease: int, limit: int) -> list[int]:
    """Create the ledger (both at once) and charge until nothing is left."""
    barrier.wait(timeout=60)
    ledger = Ledger.create(path, store="records", busy_seconds=60.0)
    granted = []
    while True:
        try:
            granted.append(ledger.charge(run, EVENT, lease, limit=limit))
        except BudgetExhaustedError:
            return granted
