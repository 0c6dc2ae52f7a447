"""The library inside programs as valgrind and the compiler's sanitizers see it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.mpirun.harness import PROGRAMS, Mpi, Programs, Run, compile_program

from dither.errors import ReduceError
from dither.mpirun import recipe
from dither.mpirun.build import native

pytestmark = [pytest.mark.xdist_group("mpirun"), pytest.mark.timeout(600)]

OURS = re.compile(r"libdither_mpi|dither_")
FOREIGN = re.compile(r"\(in (?!.*(libdither_mpi|vgpreload))")


def watched(programs: Programs, name: str, *, ranks: int = 2, **options: Any) -> Run:
    if shutil.which("valgrind") is None:
        pytest.skip("no valgrind on PATH")
    prefix = programs.work / "watched"
    command = [
        "valgrind", "--leak-check=full", "--show-leak-kinds=definite", "--trace-children=no",
        "--num-callers=30", f"--log-file={programs.work}/valgrind.%p",
        str(programs.compiled(name)), str(prefix),
    ]  # fmt: skip
    return programs.launch(command, ranks, prefix, **options)


def findings(folder: Path) -> list[str]:
    """Paragraphs of valgrind's logs with a frame of ours."""
    found = []
    logs = list(folder.glob("valgrind.*"))
    assert logs
    for log in logs:
        text = re.sub(r"^==\d+== ?", "", log.read_text(errors="replace"), flags=re.MULTILINE)
        assert "ERROR SUMMARY" in text, f"{log.name} does not end"
        found += [part for part in text.split("\n\n") if ours(part)]
    return found


def ours(paragraph: str) -> bool:
    """Whether a stack's innermost library is ours: the MPIs have findings of their own."""
    stack = re.match(r".*?(^ +at 0x.*?)(?=^ *(Address|Block|Uninit)|\Z)", paragraph, re.M | re.S)
    for frame in stack[1].splitlines() if stack else []:
        if OURS.search(frame):
            return True
        if FOREIGN.search(frame):
            return False
    return False


def test_whose_findings_are_whose() -> None:
    theirs = "Invalid read\n   at 0x1: f (a.c:1)\n   by 0x2: g (in /x/libmpi.so.12)\n"
    called = "   by 0x3: MPI_Init (in /x/libdither_mpi.so)\n"
    assert not ours(theirs + called)
    assert ours("Invalid read\n   at 0x1: memcpy (a.c:1)\n" + called + theirs)
    assert not ours(theirs + "Address 0x4 is inside a block\n   at 0x1: malloc\n" + called)
    assert not ours("Memcheck, a memory error detector")


@pytest.mark.full
@pytest.mark.parametrize("path", ["shm", "mpi"])
@pytest.mark.parametrize("name", ["sums", "overlap", "communicators", "persistent", "refused"])
def test_no_bad_access_and_no_leak(programs: Programs, name: str, path: str) -> None:
    run = watched(programs, name, path=path, pool=1 << 17)
    assert run.status == 0, run.err
    assert run.ended()
    assert findings(programs.work) == []


SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
# The MPIs leak; of ours valgrind tells.
ASAN = "ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=1:exitcode=99"


def sanitizer(mpi: Mpi) -> Path:
    """AddressSanitizer's library: it must come before all others."""
    done = subprocess.run(
        [mpi.tool("mpicc"), "-print-file-name=libasan.so"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=mpi.environment(),
    )
    found = Path(done.stdout.strip())
    if not found.is_absolute():
        pytest.skip("the compiler has no libasan")
    return found.resolve()


@pytest.fixture
def sanitized(programs: Programs) -> Path:
    """The library with its checks compiled in, kept for the session."""
    sanitizer(programs.mpi)
    folder = programs.built / f"sanitized.{programs.mpi.name}"
    library = folder / recipe.LIBRARY
    if not library.exists():
        folder.mkdir(exist_ok=True)
        mpi = recipe.Mpi(programs.mpi.tool("mpicc"), programs.mpi.tool("mpiexec"))
        try:
            recipe.make(mpi, native(), library, (*SANITIZED, "-O1", "-g"))
        except ReduceError as error:
            pytest.skip(f"no sanitizers: {error}")
    return library


def checked(programs: Programs, library: Path, name: str, *words: str, **options: Any) -> Run:
    """Run a program, its own memory watched too, with that library in the place of the usual."""
    executable = programs.built / f"{name}.{programs.mpi.name}.sanitized"
    if not executable.exists():
        compile_program(programs.mpi, PROGRAMS / f"{name}.c", executable, SANITIZED)
    prefix = programs.work / "checked"
    preload = f"LD_PRELOAD={sanitizer(programs.mpi)}:{library}"
    command = ["env", preload, ASAN, str(executable), str(prefix), *words]
    return programs.launch(command, 2, prefix, **options)


@pytest.mark.full
@pytest.mark.parametrize("path", ["shm", "mpi"])
@pytest.mark.parametrize(
    "name",
    [
        *("sums", "overlap", "communicators", "persistent", "refused", "clip", "budget", "meet"),
        *("threads", "callbacks", "fortran_calls", "quiet", "spawn", "arithmetic"),
    ],
)
def test_sanitizers_find_nothing(programs: Programs, sanitized: Path, name: str, path: str) -> None:
    run = checked(programs, sanitized, name, path=path, pool=1 << 17)
    assert "Sanitizer" not in run.err, run.err
    assert "runtime error" not in run.err, run.err
    assert run.status == 0, run.err
    assert run.ended()


@pytest.mark.full
def test_sanitizers_find_nothing_when_a_rank_gives_up(programs: Programs, sanitized: Path) -> None:
    run = checked(programs, sanitized, "given_up", "left")
    assert "Sanitizer" not in run.err, run.err
    assert run.status == 0, run.err
    assert run.ended()


@pytest.mark.full
def test_sanitizers_would_find_something(programs: Programs, sanitized: Path) -> None:
    """A call of one element more than the buffer has: the library's write is seen."""
    run = checked(programs, sanitized, "beyond")
    assert "AddressSanitizer: " in run.err
    assert " in dm_from_floats " in run.err
    assert run.status != 0
