"""What a rank does alone: starts programs, gives up, has arithmetic of its own."""

from __future__ import annotations

import pytest
from tests.mpirun.harness import Programs, Run

pytestmark = pytest.mark.xdist_group("mpirun")

SUMS = ("numbers", "none", "huge", "tiny", "only_tiny")


def test_programs_that_a_program_starts_are_refused(programs: Programs) -> None:
    run = programs.private("spawn")
    assert run.status == 0, run.err
    assert run.ended()
    for rank in range(2):
        assert run.told(rank, "spawn started") == []
        for call, name in (("spawn", "MPI_Comm_spawn"), ("multiple", "MPI_Comm_spawn_multiple")):
            (said,) = run.told(rank, f"{call} error:")
            assert f"{name} refused: its programs would run without dither" in said
            assert f"--allow-clear {name} if" in said
    assert run.calls("MPI_Comm_spawn", "refused") == 2
    assert run.calls("MPI_Comm_spawn", "counted") == 0
    assert "MPI_Comm_spawn: 2 refused" in run.err
    assert "NOT COVERED" not in run.err


@pytest.mark.full
def test_programs_that_may_start_run_without_dither_and_are_named(programs: Programs) -> None:
    run = programs.private("spawn", "once", ranks=1, allow_clear=("MPI_Comm_spawn",))
    if programs.mpi.name == "openmpi" and run.status != 0:
        pytest.skip(f"this Open MPI starts no program: {run.err.splitlines()[-1]}")
    assert run.status == 0, run.err
    assert run.told(0, "spawn started") == ["1"]
    assert run.calls("MPI_Comm_spawn", "counted") == 1
    assert "NOT COVERED, passed as they are: MPI_Comm_spawn 1" in run.err


def test_communicators_of_threads_are_refused(programs: Programs) -> None:
    if programs.mpi.name != "mpich":
        pytest.skip("MPICH's alone")
    run = programs.private("threadcomm")
    assert run.status == 0, run.err
    for rank in range(2):
        (said,) = run.told(rank, "threadcomm error:")
        assert "MPIX_Threadcomm_init refused: its ranks are threads" in said


@pytest.mark.parametrize("path", ["shm", pytest.param("mpi", marks=pytest.mark.full)])
def test_a_programs_own_arithmetic_changes_no_sum(programs: Programs, path: str) -> None:
    """Without noise, so that sums can be compared; clipping makes their values uneven."""
    runs = {
        how: programs.private(
            "arithmetic",
            how,
            path=path,
            clip=3.0,
            insecure_zero_noise=True,
            ledger=programs.work / how,
        )
        for how in ("plain", "all")
    }
    for how, run in runs.items():
        assert run.status == 0, (how, run.err)
        assert run.ended(), how
        for rank in range(2):
            for name in SUMS:
                kept, marks = sorted(run.told(rank, name), reverse=True)
                assert kept == "kept 1", (how, name)
                assert [marks, kept] == sorted(runs["plain"].told(0, name)), (how, name)


@pytest.mark.full
def test_traps_do_not_tell_of_a_contribution_beside_noise(programs: Programs) -> None:
    """With noise, also from a pool, whose thread was started by a program that traps."""
    run = programs.private("arithmetic", "trap")
    assert run.status == 0, run.err
    assert run.ended()
    assert all("kept 1" in run.told(0, name) for name in SUMS)


def seconds(run: Run, rank: int, name: str) -> float:
    (said,) = run.told(rank, f"{name} seconds")
    return float(said)


def test_a_rank_that_leaves_keeps_nobody_waiting(programs: Programs) -> None:
    run = programs.private("given_up", "left")
    assert run.status == 0, run.err
    assert run.ended()
    assert len(run.told(0, "nothing error:")) == 1
    for name in ("short", "long", "later", "later_short"):
        (said,) = run.told(1, f"{name} error:")
        assert "(rank 0 of the communicator)" in said, said
        assert seconds(run, 1, name) < 20.0


@pytest.mark.full
def test_a_rank_that_gave_up_tells_the_others(programs: Programs) -> None:
    run = programs.private("given_up", "late", timeout=2.0)
    assert run.status == 0, run.err
    assert run.ended()
    for name in ("short", "later"):
        (said,) = run.told(0, f"{name} error:")
        assert "(rank 1 of the communicator)" in said, said
        (said,) = run.told(1, f"{name} error:")
        assert "(rank 0 of the communicator)" in said, said
        assert seconds(run, 1, name) < 1.0
