"""N calls pass and call N + 1 does not, on all ranks together; ledgers are exact after any end."""

from __future__ import annotations

from typing import Any

import pytest
from tests.mpirun.harness import DELTA, Programs, Run

from dither.privacy.ledger import Ledger

pytestmark = pytest.mark.xdist_group("mpirun")


def made(run: Run, rank: int, name: str) -> int:
    (line,) = run.told(rank, f"{name} made")
    return int(line)


@pytest.mark.parametrize("path", ["shm", pytest.param("mpi", marks=pytest.mark.full)])
def test_exactly_as_many_calls_as_planned(programs: Programs, path: str) -> None:
    run = programs.private("budget", "world", releases=37, path=path)
    assert run.status == 0, run.err
    for rank in range(2):
        assert made(run, rank, "world") == 37
        assert made(run, rank, "again") == made(run, rank, "copy") == 0
        assert "MPI_Allreduce" in run.told(rank, "world error:")[0]
        assert run.charged(rank) == 37
        # Every form is refused, and a refused call leaves its result alone.
        assert not [line for line in run.lines(rank) if line.endswith("passed")]
        assert run.told(rank, "world left") == ["4.25"]
    forms = len([line for line in run.lines(0) if line.startswith("Iallreduce")])
    assert run.calls("MPI_Iallreduce", "refused") == 2 * forms
    assert run.ended()


@pytest.mark.full
def test_a_single_release(programs: Programs) -> None:
    run = programs.private("budget", "world", releases=1)
    assert [made(run, rank, "world") for rank in range(2)] == [1, 1]
    assert [run.charged(rank) for rank in range(2)] == [1, 1]


def test_parts_of_the_ranks_spend_their_own(programs: Programs) -> None:
    """Ranks 0 and 1 sum ten times by themselves: the world ends at what they have left."""
    run = programs.private("budget", "parts", releases=40, ranks=3)
    assert run.status == 0, run.err
    assert [made(run, rank, "world") for rank in range(3)] == [30, 30, 30]
    assert [made(run, rank, "part") for rank in range(2)] == [10, 10]
    assert [made(run, rank, "self") for rank in range(3)] == [0, 0, 10]
    assert [run.charged(rank) for rank in range(3)] == [40, 40, 40]
    assert run.ended()


@pytest.mark.full
def test_a_named_run_goes_on_with_what_is_left(programs: Programs) -> None:
    options: dict[str, Any] = {"releases": 50, "run": "experiment"}
    first = programs.private("budget", "some", "30", **options)
    assert first.status == 0, first.err
    assert [first.charged(rank, "experiment") for rank in range(2)] == [30, 30]
    second = programs.private("budget", "world", **options)
    assert [made(second, rank, "world") for rank in range(2)] == [20, 20]
    assert [second.charged(rank, "experiment") for rank in range(2)] == [50, 50]
    other = programs.private("budget", "some", "1", releases=50)
    assert made(other, 0, "some") == 1  # a run without a name is one of its own
    changed = programs.private("budget", "some", "1", releases=60, run="experiment")
    assert changed.status == 2
    assert "experiment" in changed.err


def test_epsilon_of_the_report_is_the_ledgers(programs: Programs) -> None:
    run = programs.private("budget", "some", "5", noise_multiplier=20.0, releases=20)
    for rank in range(2):
        ledger = Ledger.open(run.ledger / f"rank-{rank}.sqlite")
        spent = ledger.epsilon(DELTA, run.report["run"])
        assert 0.0 < spent < 10.0
        assert run.report["ranks"][rank]["epsilon"] == pytest.approx(spent, rel=1e-6)
    assert run.report["epsilon"] == max(rank["epsilon"] for rank in run.report["ranks"])
    assert [rank["ended"] for rank in run.report["ranks"]] == ["well", "well"]


def check_after_a_crash(run: Run, releases: int) -> None:
    """Never below what was released, and at most one lease above."""
    for rank in range(run.ranks):
        calls = len(run.told(rank, "call"))
        assert calls >= 11  # one may not have its last sum yet
        # A rank may have sent one more that it got no sum of.
        assert calls <= run.charged(rank) <= calls + 1 + max(1, releases // 16)
        assert Ledger.open(run.ledger / f"rank-{rank}.sqlite").entries()
    assert run.report["epsilon"] > 0.0


@pytest.mark.parametrize("way", [pytest.param("abort", marks=pytest.mark.full), "kill"])
def test_the_ledger_after_a_rank_ends_badly(programs: Programs, way: str) -> None:
    run = programs.private("ends", way, "12", releases=800)
    assert run.status not in (0, 2)
    assert not run.ended()
    check_after_a_crash(run, 800)
    assert any(rank["ended"] == "lost" for rank in run.report["ranks"])


@pytest.mark.full
@pytest.mark.parametrize("way", ["abort", "kill"])
@pytest.mark.parametrize("path", ["shm", "mpi"])
def test_the_ledger_after_a_rank_of_three_ends_badly(
    programs: Programs, way: str, path: str
) -> None:
    run = programs.private("ends", way, "12", releases=800, path=path, ranks=3)
    assert run.status not in (0, 2)
    check_after_a_crash(run, 800)


@pytest.mark.full
def test_a_run_goes_on_after_a_crash_with_what_was_not_charged(programs: Programs) -> None:
    options: dict[str, Any] = {"releases": 64, "run": "again"}
    crashed = programs.private("ends", "kill", "12", **options)
    before = [crashed.charged(rank, "again") for rank in range(2)]
    second = programs.private("budget", "world", **options)
    left = 64 - max(before)
    assert [made(second, rank, "world") for rank in range(2)] == [left, left]
    for rank in range(2):
        assert second.charged(rank, "again") == before[rank] + left


@pytest.mark.full
def test_leaving_without_finalize_gives_nothing_back(programs: Programs) -> None:
    run = programs.private("ends", "leave", "12", releases=800)
    check_after_a_crash(run, 800)
    assert [rank["ended"] for rank in run.report["ranks"]] == ["lost", "lost"]


@pytest.mark.full
def test_a_status_of_the_program_is_that_of_the_launch(programs: Programs) -> None:
    run = programs.private("ends", "fail", "3", releases=800)
    assert run.status == 5
    assert run.ended()
    assert [run.charged(rank) for rank in range(2)] == [3, 3]


def test_a_program_that_is_not_there_charges_nothing(programs: Programs) -> None:
    missing = programs.work / "nothing-here"
    run = programs.launch([str(missing)], 2, programs.work / "missing")
    assert run.status != 0
    assert "nothing-here" in run.err
    assert "Traceback" not in run.err
