"""Unprotected use of records: refused on sensitive ones unless forced."""

from __future__ import annotations

import warnings

from dither.errors import ConfigError, DitherWarning
from dither.privacy.ledger import Ledger


def unprotected(ledger: Ledger, what: str, *, force: bool) -> str:
    """Return the reason to write into the ledger, or refuse.

    Args:
        ledger: Account of the records.
        what: What is unprotected, for the auditor.
        force: The operator takes the responsibility.

    Warns:
        DitherWarning: Whenever something is unprotected.

    Raises:
        ConfigError: The records are sensitive and nobody forced it.
    """
    if ledger.header.sensitive and not force:
        raise ConfigError(
            expected="protected use of records that are marked sensitive",
            got=what,
            fix="train privately; or use --force (force=True), which is charged as ε = ∞ for good",
        )
    warnings.warn(
        f"{what}: NOT PRIVATE, written into the ledger as ε = ∞", DitherWarning, stacklevel=3
    )
    return f"{what}, forced on sensitive records" if ledger.header.sensitive else what
