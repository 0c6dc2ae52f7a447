"""Fixtures for the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest
from jaxtyping import install_import_hook

import tests.typecheck

# Every public shape and type annotation is checked while the tests run.
install_import_hook("dither", f"{tests.typecheck.__name__}.check")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that need it skip without it."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data folder ../shared/data is not here")
    return folder


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep record stores and their ledgers out of the user's own folders."""
    monkeypatch.setenv("DITHER_HOME", str(tmp_path / "home"))
