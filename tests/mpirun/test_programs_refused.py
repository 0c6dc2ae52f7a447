"""What cannot be protected does not pass: refused by name, or cleared by name and counted."""

from __future__ import annotations

import pytest
from tests.mpirun.harness import Programs, Run

pytestmark = pytest.mark.xdist_group("mpirun")

OPERATIONS = {
    "max": ("MPI_DOUBLE", "MPI_MAX"),
    "min": ("MPI_DOUBLE", "MPI_MIN"),
    "prod": ("MPI_DOUBLE", "MPI_PROD"),
    "replace": ("MPI_DOUBLE", "MPI_REPLACE"),
    "land": ("MPI_INT", "MPI_LAND"),
    "bxor": ("MPI_INT", "MPI_BXOR"),
    "maxloc": ("MPI_DOUBLE_INT", "MPI_MAXLOC"),
    "own": ("MPI_DOUBLE", ""),
}
TYPES = {
    "unsigned": "MPI_UNSIGNED",
    "uint64": "MPI_UINT64_T",
    "short": "MPI_SHORT",
    "int8": "MPI_INT8_T",
    "char": "MPI_SIGNED_CHAR",
    "byte": "MPI_UINT8_T",
    "complex": "COMPLEX",
    "long_double": "MPI_LONG_DOUBLE",
    "derived": "",
    "inter": "MPI_DOUBLE",
}


def message(run: Run, rank: int, name: str) -> str:
    (line,) = run.told(rank, f"{name} error:")
    return line


def test_refusals_name_call_type_operation_and_count(programs: Programs) -> None:
    run = programs.private("refused")
    assert run.status == 0, run.err
    for rank in range(2):
        for name, (kind, operation) in OPERATIONS.items():
            text = message(run, rank, name)
            assert all(word in text for word in ("MPI_Allreduce", "10", kind, operation)), text
        for name, kind in TYPES.items():
            text = message(run, rank, name)
            assert all(word in text for word in ("MPI_Allreduce", "10", kind, "MPI_SUM")), text
        for line in run.lines(rank):
            if line.startswith("form_"):
                form = line.split()[0].removeprefix("form_")
                assert f"MPI_{form.removesuffix('_c')} of 10 MPI_DOUBLE" in line, line
                assert "passed" not in line
        assert not [line for line in run.lines(rank) if "no class" in line]
        # What may pass still does.
        assert len(run.told(rank, "sum passed")) == 1
        assert [line for line in run.lines(rank) if " passed" in line] == [
            line for line in run.lines(rank) if line.startswith("sum passed")
        ]
    assert run.ended()
    assert run.calls("MPI_Allreduce", "refused") >= 2 * (len(OPERATIONS) + len(TYPES))
    assert run.report["ranks"][0]["releases"] == 1
    # On the terminal once a kind, by each rank.
    said = [line for line in run.err.splitlines() if line.startswith("dither: MPI_Allreduce of")]
    assert "dither: MPI_Allreduce of 10 MPI_DOUBLE with MPI_MAX refused" in run.err
    assert max(said.count(line) for line in said) <= 2


def test_the_default_handler_ends_the_program(programs: Programs) -> None:
    run = programs.private("refused", "default")
    assert run.status not in (0, 2)
    assert "dither: MPI_Allreduce of 10 MPI_DOUBLE with MPI_MAX refused" in run.err
    assert not any("passed" in line for rank in range(2) for line in run.lines(rank))
    assert run.charged(0) == 0 or run.charged(0) <= 2000 // 16


def test_allowed_operations_pass_in_clear_and_are_counted(programs: Programs) -> None:
    run = programs.private("refused", allow_clear=("MPI_MAX", "MPI_MIN"))
    assert run.status == 0, run.err
    for rank in range(2):
        assert run.told(rank, "max passed") == ["2 2"]  # the larger rank's
        assert run.told(rank, "min passed") == ["1 1"]
        assert len(run.told(rank, "prod error:")) == 1
        assert len(run.told(rank, "form_Iallreduce passed")) == 1
        assert len(run.told(rank, "form_Reduce_init passed")) == 1
        # Sums of other types are not let through by a name that is not theirs.
        assert len(run.told(rank, "unsigned error:")) == 1
    # Both ranks: a maximum, a minimum, and a maximum in each form.
    widths = len(run.told(0, "form_Allreduce passed")) + len(run.told(0, "form_Allreduce_c passed"))
    assert run.calls("MPI_Allreduce", "cleared") == 2 * (2 + widths)
    assert run.calls("MPI_Iallreduce", "cleared") == 2 * widths
    assert run.report["ranks"][0]["releases"] == 1
    assert run.ended()


@pytest.mark.full
def test_sums_of_other_types_pass_only_by_name(programs: Programs) -> None:
    run = programs.private("refused", allow_clear=("MPI_SUM",))
    assert run.status == 0, run.err
    assert len(run.told(0, "unsigned passed")) == 1
    assert len(run.told(0, "max error:")) == 1
    # A sum between groups is none that a name lets pass: its type could be protected.
    assert len(run.told(0, "inter error:")) == 1
    # And what can be protected still is.
    assert run.calls("MPI_Allreduce", "protected") == 2


def test_other_calls_pass_and_are_named(programs: Programs) -> None:
    run = programs.private("quiet")
    assert run.status == 0, run.err
    assert run.ended()
    assert [run.told(rank, "last") for rank in range(2)] == [["1 0"], ["1 1"]]
    for name in ("MPI_Isend", "MPI_Recv", "MPI_Bcast", "MPI_Allgather"):
        assert run.calls(name, "counted") == 4, name
        assert name in run.err  # the report says what is not covered
    assert run.calls("MPI_Scan", "counted") == 2
    assert run.calls("MPI_Allreduce", "protected") == 0
    # A program that never sums spends nothing.
    assert [run.charged(rank) for rank in range(2)] == [0, 0]
    assert run.report["epsilon"] == 0.0
    # Its own words reach its own place.
    assert sorted(run.out.splitlines()) == ["rank 0 of 2", "rank 1 of 2"]
