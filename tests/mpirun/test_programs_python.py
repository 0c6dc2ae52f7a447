"""mpi4py programs, and a file of plain mpi4py tests, unchanged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.mpirun.harness import PROGRAMS, Programs, Run, run_command

pytestmark = pytest.mark.xdist_group("mpirun")

PYTEST = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no"]


def told(run: Run, rank: int) -> dict[str, object]:
    (line,) = run.told(rank, "json")
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("path", ["mpi", pytest.param("shm", marks=pytest.mark.full)])
def test_buffers_of_all_kinds(programs: Programs, path: str) -> None:
    run = programs.private("sums.py", insecure_zero_noise=True, path=path)
    assert run.status == 0, run.err
    for rank in range(2):
        found = told(run, rank)
        for code in "fdilq":
            assert found[f"allreduce {code}"] == [2, -4, 6, 1]
        assert found["in place"] == [1, 1]
        assert found["nothing"] is True
        assert found["reduce"] == ([2, 1] if rank == 0 else None)
        assert found["iallreduce"] == [[2 * i, 1, 2] for i in range(3)]
        assert found["persistent"] == [1, 3, 5]
        assert found["split"] == [1, rank + 1]
        text = str(found["refused"])
        assert all(word in text for word in ("MPI_Allreduce", " 1 ", "MPI_DOUBLE", "MPI_MAX")), text


@pytest.mark.full
def test_objects_go_as_messages_and_are_named(programs: Programs) -> None:
    """The lower-case allreduce pickles and sends: no AllReduce at all, so not covered, and said."""
    run = programs.private("objects.py")
    assert run.status == 0, run.err
    assert [run.told(rank, "allreduce") for rank in range(2)] == [["3"], ["3"]]
    assert [run.charged(rank) for rank in range(2)] == [0, 0]
    counted = {name for name, kinds in run.report["calls"].items() if kinds.get("counted")}
    assert any(name.startswith(("MPI_Send", "MPI_Sendrecv", "MPI_Isend")) for name in counted)
    assert any(name in run.err for name in counted)


def plain_tests(programs: Programs) -> Path:
    """A copy out of reach of this repository's own pytest settings."""
    folder = programs.work / "theirs"
    folder.mkdir(exist_ok=True)
    shutil.copy(PROGRAMS / "allreduce_mpi4py.py", folder)
    return folder / "allreduce_mpi4py.py"


def launch_tests(programs: Programs, ranks: int, **options: Any) -> Run:
    tests = plain_tests(programs)
    command = [str(programs.python()), *PYTEST, "--rootdir", str(tests.parent), str(tests)]
    options = {"clip": 2.0, "noise_multiplier": 0.03, "releases": 1000, **options}
    return programs.launch(command, ranks, programs.work / "pytest", **options)


def passed(run: Run) -> None:
    assert run.status == 0, run.out + run.err
    assert run.out.count(" passed") == run.ranks
    assert "failed" not in run.out


def test_plain_mpi4py_tests_pass_with_noise(programs: Programs) -> None:
    run = launch_tests(programs, 2)
    passed(run)
    assert run.report["releases"] > 50
    assert run.calls("MPI_Allreduce_c", "protected") + run.calls("MPI_Allreduce", "protected") > 60


@pytest.mark.full
@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("path", ["shm", "mpi"])
def test_plain_mpi4py_tests_pass_on_other_numbers_of_ranks(
    programs: Programs, ranks: int, path: str
) -> None:
    passed(launch_tests(programs, ranks, path=path))


@pytest.mark.full
def test_the_plain_tests_notice_noise_that_is_too_wide(programs: Programs) -> None:
    run = launch_tests(programs, 2, noise_multiplier=5.0)
    assert run.status != 0
    assert "failed" in run.out


@pytest.mark.full
def test_the_plain_tests_pass_without_dither(programs: Programs) -> None:
    tests = plain_tests(programs)
    launcher = [str(programs.mpi.tool("mpiexec")), "-n", "2", str(programs.python())]
    command = [*launcher, *PYTEST, "--rootdir", str(tests.parent), str(tests)]
    done = run_command(command, programs.mpi.environment(), programs.work)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(" passed") == 2
