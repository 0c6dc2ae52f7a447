"""Where a rank keeps the account of its own contributions."""

from __future__ import annotations

from pathlib import Path

from dither.errors import ConfigError, LedgerError
from dither.privacy.events import Relation, Unit
from dither.privacy.ledger import Ledger


def open_rank_ledger(folder: str | Path, rank: int) -> Ledger:
    """Open ``rank-R.sqlite`` in a folder, or make both.

    Raises:
        ConfigError: No path.
        LedgerError: The folder cannot be made, or what is there is another ledger.
    """
    if not isinstance(folder, str | Path):
        raise ConfigError(
            expected="ledger=, a folder where each rank keeps its account",
            got=type(folder).__name__,
            fix="name one, for instance accounts; keep it for as long as the data is used",
        )
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LedgerError(
            expected=f"a folder for accounts at {folder}",
            got=error.strerror or type(error).__name__,
            fix="name a folder that can be written to",
        ) from error
    return Ledger.create(
        Path(folder) / f"rank-{rank}.sqlite",
        store=f"contributions of rank {rank}",
        unit=Unit.RANK,
        relation=Relation.REPLACE_ONE,
        sensitive=True,
    )
