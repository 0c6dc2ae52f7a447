"""A rank's account is found again by its folder; what is no folder is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from dither.errors import LedgerError
from dither.reduce.rank_ledger import open_rank_ledger


def test_a_rank_finds_its_own_account_again(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "accounts"
    first = open_rank_ledger(folder, 3)
    assert (folder / "rank-3.sqlite").is_file()
    assert open_rank_ledger(str(folder), 3).header == first.header
    assert open_rank_ledger(folder, 4).header != first.header


def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "accounts").write_text("mine")
    with pytest.raises(LedgerError, match="a folder for accounts"):
        open_rank_ledger(tmp_path / "accounts", 0)
    assert (tmp_path / "accounts").read_text() == "mine"
