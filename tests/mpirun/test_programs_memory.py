"""valgrind's view of the library inside programs: no bad access, no unset choice, no leak."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.mpirun.harness import Programs, Run

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
