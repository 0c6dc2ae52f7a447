"""Sums of unchanged C programs, exact in test mode: types, forms, ranks, both paths."""

from __future__ import annotations

import psutil
import pytest
from tests.mpirun.harness import (
    PROGRAMS,
    Mpi,
    Programs,
    Run,
    require_fortran,
    run_command,
)

pytestmark = pytest.mark.xdist_group("mpirun")

EXACT = {"insecure_zero_noise": True}
WAYS = (
    "wait", "waitall", "waitany", "waitsome", "test", "testall", "testany", "testsome", "status",
    "mixed", "plain",
)  # fmt: skip
TYPES = {"float", "double", "int", "long", "int32", "int64", "long_long"}


def expected(ranks: int) -> str:
    return " ".join(str(sum(i % 5 - 2 + rank for rank in range(ranks))) for i in range(7))


def check_sums(run: Run) -> None:
    assert run.status == 0, run.err
    assert run.ended(), run.lines(0)
    seen = set()
    for rank in range(run.ranks):
        for line in run.lines(rank)[:-1]:
            name, _, values = line.partition(" ")
            assert not line.startswith("spoilt"), line
            assert values == ("4.25" if name.endswith("/empty") else expected(run.ranks)), line
            seen.add(name)
    forms = {name.split("/")[0] for name in seen}
    assert forms >= {
        "Allreduce", "Reduce", "Iallreduce", "Ireduce", "Allreduce_init", "Reduce_init",
    }  # fmt: skip
    for form in forms:
        assert {name.split("/")[1] for name in seen if name.startswith(f"{form}/")} >= TYPES
        places = {"apart", "empty"} | (set() if "init" in form else {"in_place"})
        assert {name.split("/")[2] for name in seen if name.startswith(f"{form}/")} == places


@pytest.mark.parametrize("path", ["shm", "mpi"])
def test_every_type_and_form_is_exact(programs: Programs, path: str) -> None:
    run = programs.private("sums", path=path, **EXACT)
    check_sums(run)
    for form in ("MPI_Allreduce", "MPI_Reduce", "MPI_Iallreduce"):
        assert run.calls(form, "protected") > 0
        assert run.calls(form, "refused") == run.calls(form, "cleared") == 0


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.full), 3])
def test_other_numbers_of_ranks(programs: Programs, ranks: int) -> None:
    check_sums(programs.private("sums", ranks=ranks, **EXACT))


@pytest.mark.full
@pytest.mark.parametrize("ranks", [1, 3])
def test_other_numbers_of_ranks_over_mpi(programs: Programs, ranks: int) -> None:
    check_sums(programs.private("sums", ranks=ranks, path="mpi", **EXACT))


def test_the_program_computes_the_same_without_dither(programs: Programs) -> None:
    check_sums(programs.bare("sums"))


@pytest.mark.full
def test_a_run_without_noise_is_no_private_run(programs: Programs) -> None:
    run = programs.private("quiet", **EXACT)
    assert run.status == 0, run.err
    assert run.report["epsilon"] in (None, "inf", float("inf"))


def test_names_that_compiled_fortran_calls(programs: Programs) -> None:
    run = programs.private("fortran_calls", **EXACT)
    assert run.status == 0, run.err
    for rank in range(2):
        assert run.told(rank, "mpi_allreduce_")[0] == "0 1 3 5 7"
        for name in ("mpi_allreduce__", "MPI_ALLREDUCE"):
            assert run.told(rank, name) == ["0 1 3 5 7"], name
        maximum = run.told(rank, "mpi_allreduce_")[1].split()
        assert maximum[0] != "0"
        assert maximum[1:] == ["-1"] * 4
        assert run.told(rank, "mpi_iallreduce_") == ["0 1 3 5 7"]
        assert run.told(rank, "request") == ["1"]
        assert run.told(rank, "absent") == []


def test_a_fortran_program(programs: Programs, mpi: Mpi) -> None:
    compiler = require_fortran(mpi)
    executable = programs.built / f"sums_f90.{mpi.name}"
    command = [str(compiler), str(PROGRAMS / "sums.f90"), "-o", str(executable)]
    done = run_command(command, mpi.environment(), programs.work)
    assert done.returncode == 0, done.stderr
    prefix = programs.work / "fortran"
    run = programs.launch([str(executable), str(prefix)], 2, prefix, **EXACT)
    assert run.status == 0, run.err
    assert [float(word) for word in run.told(1, "double")[0].split()] == [2, 4, -6, 1]
    assert [float(word) for word in run.told(1, "in_place")[0].split()] == [1, 1]
    assert run.told(0, "reduce")[0].split() == ["1", "4", "-2"]
    assert run.told(1, "iallreduce")[0].split() == ["1", "4", "-2"]
    assert run.told(0, "refused") == ["1"]
    assert run.ended()


@pytest.mark.parametrize("path", ["shm", pytest.param("mpi", marks=pytest.mark.full)])
def test_communicators_of_all_makes(programs: Programs, path: str) -> None:
    run = programs.private("communicators", "10", path=path, **EXACT)
    check_communicators(run)


@pytest.mark.full
def test_communicators_of_three_ranks(programs: Programs) -> None:
    check_communicators(programs.private("communicators", "3", ranks=3, **EXACT))


def test_sums_made_in_callbacks_of_mpi_are_no_sums_of_mpi(programs: Programs) -> None:
    run = programs.private("callbacks", **EXACT)
    assert run.status == 0, run.err
    for rank in range(2):
        assert run.told(rank, "copy") == run.told(rank, "delete") == ["2 2"]
        assert run.report["ranks"][rank]["releases"] == 3
    assert run.calls("MPI_Allreduce", "protected") == 6


@pytest.mark.full
def test_a_thousand_communicators(programs: Programs) -> None:
    check_communicators(programs.private("communicators", "500", releases=20000, **EXACT))


def check_communicators(run: Run) -> None:
    assert run.status == 0, run.err
    assert run.ended()
    everyone = run.ranks * (run.ranks + 1) // 2
    for rank in range(run.ranks):
        same = [r + 1 for r in range(run.ranks) if r % 2 == rank % 2]
        totals = {
            "dup": (run.ranks, everyone),
            "halves": (len(same), sum(same)),
            "many": (run.ranks, everyone),
            "create": (run.ranks - 1, everyone - run.ranks),
            "create_group": (run.ranks - 1, everyone - run.ranks),
            "cart": (run.ranks, everyone),
            "host": (run.ranks, everyone),
            "idup": (run.ranks, everyone),
            "self": (1, rank + 1),
            "world": (run.ranks, everyone),
        }
        for name, (size, total) in totals.items():
            outside = name.startswith("create") and rank == run.ranks - 1
            assert set(run.told(rank, name)) == (set() if outside else {f"{size} {total}"}), name
        (made,) = run.told(rank, "made")
        assert run.report["ranks"][rank]["releases"] == int(made)


@pytest.mark.parametrize("path", ["shm", pytest.param("mpi", marks=pytest.mark.full)])
def test_threads_on_communicators_of_their_own(programs: Programs, path: str) -> None:
    check_threads(programs.private("threads", "multiple", "20", path=path, **EXACT))


@pytest.mark.full
@pytest.mark.parametrize("level", ["single", "funneled", "serialized"])
def test_lower_levels_of_threads(programs: Programs, level: str) -> None:
    check_threads(programs.private("threads", level, "5", **EXACT))


@pytest.mark.full
def test_threads_for_long(programs: Programs) -> None:
    check_threads(programs.private("threads", "multiple", "2000", releases=10000, **EXACT))


def check_threads(run: Run) -> None:
    assert run.status == 0, run.err
    assert run.ended()
    for rank in range(run.ranks):
        assert run.told(rank, "level") == ["1"]
        threads = [line.split() for line in run.told(rank, "thread")]
        assert [wrong for _, wrong in threads] == ["0"] * 3
        calls = sum(int(made) for made, _ in threads)
        assert run.report["ranks"][rank]["releases"] == calls


@pytest.mark.parametrize("path", ["mpi", pytest.param("shm", marks=pytest.mark.full)])
def test_sums_under_way_on_two_communicators_in_any_order(programs: Programs, path: str) -> None:
    """With so few releases leases are short, and much of the budget is agreed on under way."""
    check_overlap(programs.private("overlap", path=path, releases=300, **EXACT))


@pytest.mark.full
@pytest.mark.parametrize("path", ["shm", "mpi"])
def test_sums_under_way_between_three_ranks(programs: Programs, path: str) -> None:
    check_overlap(programs.private("overlap", path=path, ranks=3, **EXACT))


def check_overlap(run: Run) -> None:
    assert run.status == 0, run.err
    for rank in range(run.ranks):
        for way in WAYS:
            # The two of some and any tell their number of completions before.
            assert run.told(rank, way)[-1] == "1 0", (rank, way)
        assert run.told(rank, "waitany")[0] == run.told(rank, "waitsome")[0] == "8"
        assert run.told(rank, "message") == ["1"]
        assert run.told(rank, "between") == [str(run.ranks)]
        assert run.told(rank, "gone") == []
    assert run.ended()
    assert run.calls("MPI_Iallreduce", "protected") == run.ranks * 8 * len(WAYS)


@pytest.mark.parametrize("path", ["shm", pytest.param("mpi", marks=pytest.mark.full)])
def test_first_sums_of_communicators_in_orders_where_nobody_may_wait(
    programs: Programs, path: str
) -> None:
    run = programs.private("meet", path=path, **EXACT)
    assert run.status == 0, run.err
    for rank in range(2):
        assert run.told(rank, "crossed") == ["3 3"]
        assert run.told(rank, "behind") == run.told(rank, "persistent") == ["3"]
    assert run.ended()


@pytest.mark.parametrize("path", ["shm", pytest.param("mpi", marks=pytest.mark.full)])
def test_persistent_sums(programs: Programs, path: str) -> None:
    run = programs.private("persistent", path=path, **EXACT)
    assert run.status == 0, run.err
    for rank in range(2):
        assert run.told(rank, "turn") == [f"{turn} 1 1 1"[2:] for turn in range(5)]
        assert run.told(rank, "freed") == ["1"]
        assert run.told(rank, "inactive") == ["1 1"]
        # Each start is a release; a request that is never started is none.
        assert run.report["ranks"][rank]["releases"] == 10
    assert run.ended()


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", ["shm", "mpi"])
def test_a_sum_of_more_than_two_gibibytes(programs: Programs, path: str) -> None:
    if psutil.virtual_memory().available < 14 << 30:
        pytest.skip("two ranks of a huge sum need 14 GiB")
    run = programs.private("huge", path=path, clip=2.0, noise_multiplier=0.03, pool=0)
    assert run.status == 0, run.err
    for rank in range(2):
        assert int(run.told(rank, "bytes")[0]) > 2**31
        for place in run.told(rank, "at"):
            assert abs(float(place.split()[1]) - 1.0) < 8 * 0.06 * 2**0.5, place
        assert abs(float(run.told(rank, "noise")[0]) / (0.06 * 2**0.5) - 1) < 0.03
    assert run.ended()
