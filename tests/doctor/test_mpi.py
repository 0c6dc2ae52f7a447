"""MPI as `dither mpirun` finds it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from dither.doctor.check import Check
from dither.doctor.mpi import checks, said_by
from dither.errors import ConfigError
from dither.mpirun.build import LIBRARY, Mpi, find_library, find_mpi, library

HYDRA = "HYDRA build details:\n    Version:      4.3.1\n    CC:   cc\n"


@pytest.fixture
def mpi() -> Mpi:
    try:
        return find_mpi()
    except ConfigError:
        pytest.skip("no MPI is installed")


def by_name() -> dict[str, Check]:
    found = {check.name: check for check in checks()}
    assert list(found) == ["MPI", LIBRARY]
    return found


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setattr(sys, "executable", str(path / "python"))


def test_the_mpi_that_is_here_is_good_and_nothing_is_built(mpi: Mpi, tmp_path: Path) -> None:
    found = by_name()
    assert found["MPI"].state == "good"
    assert str(mpi.launcher) in found["MPI"].found
    built = find_library(mpi)
    assert found[LIBRARY].state == ("missing" if built is None else "good")
    assert not (tmp_path / "home").exists()


@pytest.mark.full
def test_a_built_library_is_good(mpi: Mpi) -> None:
    built = library(mpi)
    found = by_name()[LIBRARY]
    assert found.state == "good"
    assert str(built) in found.found


def test_a_library_that_does_not_load_is_wrong(
    mpi: Mpi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dither.mpirun.build import native
    from dither.mpirun.recipe import key

    if find_library(mpi) is not None:
        pytest.skip("the library came with this installation")
    place = tmp_path / "home" / "mpi" / key(mpi, native())
    place.mkdir(parents=True)
    (place / LIBRARY).write_bytes(b"no library")
    found = by_name()[LIBRARY]
    assert (found.state, found.stops) == ("wrong", False)
    assert found.fix


def test_no_mpi_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(tmp_path, monkeypatch)
    found = by_name()
    assert {check.state for check in found.values()} == {"missing"}
    assert "dither[mpi]" in str(found["MPI"].fix)


def test_a_launcher_without_its_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "mpiexec", "exit 0")
    only(tmp_path, monkeypatch)
    found = by_name()["MPI"]
    assert found.state == "missing"
    assert "libmpich-dev" in str(found.fix)


def test_a_launcher_that_fails_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "mpiexec", "exit 1")
    program(tmp_path / "mpicc", "exit 0")
    only(tmp_path, monkeypatch)
    found = by_name()["MPI"]
    assert (found.state, found.stops) == ("wrong", False)


def test_a_missing_c_compiler_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "mpiexec", f"echo '{HYDRA}'")
    program(tmp_path / "mpicc", "echo no-such-cc -I/nowhere -lmpi")
    only(tmp_path, monkeypatch)
    found = by_name()
    assert found["MPI"].state == "good"
    assert found[LIBRARY].state == "wrong"
    assert "no no-such-cc" in found[LIBRARY].found


def test_a_home_that_the_linker_splits_is_wrong(
    mpi: Mpi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DITHER_HOME", str(tmp_path / "my data"))
    if find_library(mpi) is not None:
        pytest.skip("the library came with this installation")
    found = by_name()[LIBRARY]
    assert (found.state, found.stops) == ("wrong", False)
    assert "my data" in found.found


@pytest.mark.parametrize(
    ("says", "kind"),
    [
        (HYDRA, "MPICH 4.3.1"),
        ("mpiexec (OpenRTE) 4.1.4\n", "Open MPI 4.1.4"),
        ("mpiexec (Open MPI) 5.0.3\n", "Open MPI 5.0.3"),
        ("srun-like 3\nmore", "srun-like 3"),
    ],
)
def test_the_launcher_says_which_mpi_it_is(tmp_path: Path, says: str, kind: str) -> None:
    program(tmp_path / "mpiexec", f"{shutil.which('cat')} <<'END'\n{says}END")
    assert said_by(Mpi(tmp_path / "mpicc", tmp_path / "mpiexec")) == kind
