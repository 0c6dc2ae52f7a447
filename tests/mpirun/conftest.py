"""Fixtures for programs that run under MPI."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.mpirun.harness import Mpi, Programs, find_mpich, find_openmpi


@pytest.fixture(scope="session")
def _found() -> dict[str, Mpi | str]:
    return {"mpich": find_mpich(), "openmpi": find_openmpi()}


@pytest.fixture(scope="session")
def _shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all workers build: programs and libdither_mpi.so."""
    base = tmp_path_factory.getbasetemp()
    # Workers of pytest-xdist have a folder each, below the session's.
    shared = (base.parent if base.name.startswith("popen-") else base) / "mpirun-programs"
    (shared / "home").mkdir(parents=True, exist_ok=True)
    return shared


@pytest.fixture(params=["mpich", "openmpi"])
def mpi(request: pytest.FixtureRequest, _found: dict[str, Mpi | str]) -> Mpi:
    """Both MPIs in turn; Open MPI only where DITHER_TEST_OPENMPI or PATH names one."""
    found = _found[request.param]
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture
def programs(mpi: Mpi, _shared_folder: Path, tmp_path: Path) -> Programs:
    """Compiled programs, and a place for their files."""
    work = tmp_path / "work"
    work.mkdir()
    return Programs(mpi, _shared_folder, _shared_folder / "home", work)
