"""A small record store, shared by the distributed tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from dither.data.build import build_store
from dither.data.store import RecordStore
from dither.data.synth import write_synthetic


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("records") / "persons.parquet", 3000, seed=1)


@pytest.fixture
def store(records: Path, tmp_path: Path) -> RecordStore:
    """A store of its own for every test, since each has its own ledger."""
    return build_store(records, "employment", tmp_path / "store")
