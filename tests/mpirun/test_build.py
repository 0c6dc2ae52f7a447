"""The library is found, built once for each MPI, and built again when anything it needs changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.mpirun.harness import Mpi, Programs

from dither import __version__, _native
from dither.errors import ConfigError, OutputError, ReduceError
from dither.mpirun import build
from dither.mpirun.build import LIBRARY, Native, find_mpi, library, native
from dither.mpirun.preload import require_loads
from dither.mpirun.recipe import key

NATIVE = Path(__file__).resolve().parents[2] / "native"
# Stands for the whole library, so that a build takes no time.
SMALL = """
#include <mpi.h>
#include "counted.h"
int dither_is_mpi(const void *caller) { return caller == 0; }
int dither_allows(const char *name) { return !name; }
int dither_refuse(unsigned number, MPI_Comm comm, const char *text) {
    return (int)number + (comm == MPI_COMM_NULL) + !text;
}
DITHER_EXPORT int dither_small(void);
int dither_small(void) { int here; return PMPI_Initialized(&here); }
"""


@pytest.fixture
def found(mpi: Mpi) -> build.Mpi:
    return build.Mpi(mpi.tool("mpicc"), mpi.tool("mpiexec"))


@pytest.fixture
def small(tmp_path: Path) -> Native:
    """Sources of a small library, with the real core and interface."""
    real = native()
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "small.c").write_text(SMALL)
    shutil.copy(real.sources / "counted.h", tmp_path / "sources")
    return Native(real.core, real.include, tmp_path / "sources")


def program(path: Path, text: str = "exit 0") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setattr(sys, "executable", str(path / "python"))


def test_the_compiler_is_the_one_beside_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("first", "second"):
        program(tmp_path / folder / "mpicc")
        program(tmp_path / folder / "mpiexec")
    only(tmp_path / "first", monkeypatch)
    first, second = tmp_path / "first", tmp_path / "second"
    assert find_mpi() == build.Mpi(first / "mpicc", first / "mpiexec")
    assert find_mpi(second / "mpiexec") == build.Mpi(second / "mpicc", second / "mpiexec")
    (second / "mpicc").unlink()
    assert find_mpi(second / "mpiexec").compiler == first / "mpicc"


def test_a_link_to_the_launcher_finds_its_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "real" / "mpicc")
    program(tmp_path / "real" / "mpiexec")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mpiexec").symlink_to(tmp_path / "real" / "mpiexec")
    only(tmp_path / "bin", monkeypatch)
    assert find_mpi().compiler == tmp_path / "real" / "mpicc"


def test_the_mpi_beside_python_serves_where_the_path_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "env" / "mpicc")
    program(tmp_path / "env" / "mpiexec")
    only(tmp_path / "env", monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_mpi().launcher == tmp_path / "env" / "mpiexec"


def test_missing_programs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match="mpiexec on the PATH"):
        find_mpi()
    with pytest.raises(ConfigError, match="/nowhere/mpiexec"):
        find_mpi("/nowhere/mpiexec")
    program(tmp_path / "mpiexec")
    with pytest.raises(ConfigError, match="mpicc"):
        find_mpi()


def test_the_real_library_takes_the_calls(
    found: build.Mpi, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DITHER_HOME", str(programs.home))
    built = library(found)
    require_loads(built)
    done = subprocess.run(
        ["nm", "-D", "--defined-only", built], capture_output=True, text=True, check=True
    )
    symbols = {line.split()[-1] for line in done.stdout.splitlines()}
    assert {"MPI_Allreduce", "MPI_Reduce", "MPI_Iallreduce", "MPI_Init", "MPI_Wait"} <= symbols
    assert {"MPI_Send", "MPI_Bcast", "MPI_Start", "MPI_Finalize"} <= symbols
    # Names of ours that a program could have too stay inside.
    taken = {name for name in symbols if not name.lower().startswith(("mpi", "ompi_"))}
    assert not {name for name in taken if not name.startswith("_")}


def test_a_second_use_builds_nothing(found: build.Mpi, small: Native) -> None:
    told: list[str] = []
    first = library(found, told.append, sources=small)
    before = first.stat()
    assert library(found, told.append, sources=small) == first
    assert len(told) == 1
    assert "once" in told[0]
    assert first.stat().st_mtime_ns == before.st_mtime_ns
    assert {path.name for path in first.parents[1].iterdir()} == {first.parent.name, "lock"}


def test_changed_sources_are_built_again(found: build.Mpi, small: Native) -> None:
    first = library(found, sources=small)
    (small.sources / "small.c").write_text(f"{SMALL}\n/* newer */\n")
    second = library(found, sources=small)
    assert second != first
    assert second.is_file()
    assert library(found, sources=small) == second


@pytest.mark.full
def test_another_mpi_is_built_for_itself(found: build.Mpi, small: Native, tmp_path: Path) -> None:
    """The wrapper's answer names include folder and libraries: another MPI, another key."""
    first = library(found, sources=small)
    other = program(tmp_path / "other" / "mpicc", f'exec {found.compiler} "$@" -DOTHER=1')
    assert library(build.Mpi(other, found.launcher), sources=small) != first


@pytest.mark.full
def test_an_updated_mpi_is_noticed(found: build.Mpi, small: Native, tmp_path: Path) -> None:
    shown = tmp_path / "lib"
    shown.mkdir()
    (shown / "libmpi.so").write_bytes(b"one")
    script = f"""[ "$1" = -show ] && echo cc -L{shown} -lmpi || exec {found.compiler} "$@" """
    wrapped = build.Mpi(program(tmp_path / "w" / "mpicc", script), found.launcher)
    first = library(wrapped, sources=small)
    assert library(wrapped, sources=small) == first
    (shown / "libmpi.so").write_bytes(b"three")
    assert library(wrapped, sources=small) != first


def test_processes_that_need_it_at_once_build_it_once(found: build.Mpi, small: Native) -> None:
    told: list[str] = []
    paths: list[Path] = []

    def need() -> None:
        paths.append(library(found, told.append, sources=small))

    threads = [threading.Thread(target=need) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1
    assert len(paths) == 3
    assert len(told) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("#error something is wrong here\n", "something is wrong here"),
        (
            "int MPI_Nothing_here(void); int f(void) { return MPI_Nothing_here(); }\n",
            "MPI_Nothing_here",
        ),
    ],
    ids=["compiler", "linker"],
)
def test_a_build_that_fails_says_why_and_leaves_nothing(
    text: str, words: str, found: build.Mpi, small: Native
) -> None:
    (small.sources / "broken.c").write_text(text)
    with pytest.raises(ReduceError, match=words):
        library(found, sources=small)
    folder = Path(os.environ["DITHER_HOME"]) / "mpi"
    assert [path.name for path in folder.iterdir()] == ["lock"]
    (small.sources / "broken.c").unlink()
    assert library(found, sources=small).name == LIBRARY


def test_a_compiler_that_cannot_run_is_named(
    found: build.Mpi, small: Native, tmp_path: Path
) -> None:
    broken = program(tmp_path / "b" / "mpicc", "echo 'cc: command not found' >&2; exit 127")
    with pytest.raises(ReduceError, match="command not found"):
        library(build.Mpi(broken, found.launcher), sources=small)


def test_a_home_that_cannot_be_written_is_named(
    found: build.Mpi, small: Native, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DITHER_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError):
        library(found, sources=small)


def test_an_installation_without_sources_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_native, "__file__", str(tmp_path / "_native.so"))
    with pytest.raises(ReduceError, match="install dither again"):
        native()


def prebuild(out: Path, core: Path, mpi: Mpi) -> subprocess.CompletedProcess[str]:
    """As CMake runs it: by a Python that has no package installed."""
    words = ("--version", __version__, "--core", core, "--native", NATIVE, "--out", out)
    return subprocess.run(
        [sys.executable, "-I", "-S", NATIVE / "mpi" / "prebuild.py", *words],
        env=mpi.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.full
def test_the_wheels_library_is_taken_by_the_mpi_it_was_built_for(
    mpi: Mpi, found: build.Mpi, tmp_path: Path
) -> None:
    out = tmp_path / "prebuilt"
    (out / "older").mkdir(parents=True)
    done = prebuild(out, native().core, mpi)
    assert done.returncode == 0, done.stderr
    (folder,) = out.iterdir()
    assert [path.name for path in folder.iterdir()] == [LIBRARY]
    told: list[str] = []
    sources = Native(native().core, NATIVE / "include", NATIVE / "mpi")
    taken = library(found, told.append, sources=sources, prebuilt=out)
    assert taken == folder / LIBRARY
    assert told == []
    require_loads(taken)
    # And by no other.
    assert key(build.Mpi(tmp_path / "mpicc", tmp_path / "mpiexec"), sources) != folder.name


def test_a_wheel_is_built_where_no_library_can_be(mpi: Mpi, tmp_path: Path) -> None:
    done = prebuild(tmp_path / "out", tmp_path / "nowhere.a", mpi)
    assert done.returncode == 0, done.stderr
    assert "is not prebuilt" in done.stdout
    assert "built when first needed" in done.stdout
    assert list((tmp_path / "out").glob("*")) == []
