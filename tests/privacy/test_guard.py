"""Unprotected use of sensitive records."""

from __future__ import annotations

from pathlib import Path

import pytest

from dither.errors import ConfigError, DitherWarning
from dither.privacy.guard import unprotected
from dither.privacy.ledger import Ledger


@pytest.mark.parametrize("sensitive", [True, False])
def test_only_force_opens_sensitive_records(tmp_path: Path, sensitive: bool) -> None:
    ledger = Ledger.create(tmp_path / "l.sqlite", store="s", sensitive=sensitive)
    if sensitive:
        with pytest.raises(ConfigError, match="marked sensitive"):
            unprotected(ledger, "a plain run", force=False)
    for force in (True, False) if not sensitive else (True,):
        with pytest.warns(DitherWarning, match="NOT PRIVATE"):
            reason = unprotected(ledger, "a plain run", force=force)
        assert reason.startswith("a plain run")
        assert ("forced on sensitive" in reason) == sensitive
