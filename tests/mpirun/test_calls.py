"""Every function of mpi.h, in each of its forms, is judged by name."""

from __future__ import annotations

import re

import pytest
from tests.mpirun.harness import Mpi

from dither.mpirun import build, recipe
from dither.mpirun.calls import BY_HAND, COUNTED, LOCAL, PROTECTED, REFUSED, Kind, kind_of
from dither.mpirun.generate import Prototype, prototypes

# Their buffers stay in the process, or are only named.
KEEP_THEIR_BUFFERS = {
    *("MPI_Pack", "MPI_Unpack", "MPI_Pack_external", "MPI_Unpack_external", "MPI_Reduce_local"),
    *("MPI_Type_get_attr", "MPI_Type_set_attr"),
}


@pytest.fixture
def functions(mpi: Mpi) -> list[Prototype]:
    found = build.Mpi(mpi.tool("mpicc"), mpi.tool("mpiexec"))
    return prototypes(recipe.header(found))


def test_every_function_of_the_header_is_judged(functions: list[Prototype]) -> None:
    names = {each.name for each in functions}
    assert {name for name in names if kind_of(name) is None} == set()
    assert len(names) > 300
    assert {"MPI_Allreduce", "MPI_Send", "MPI_Ineighbor_alltoallw", "MPI_Rput"} <= names


def test_what_carries_a_buffer_and_a_type_is_not_local(functions: list[Prototype]) -> None:
    """From the arguments, so that a wrong line of the table shows."""
    carrying = {
        each.name
        for each in functions
        if any(re.fullmatch(r"(const )?void ?\* ?\w+", text) for text in each.parameters)
        and any(
            text.startswith(("MPI_Datatype ", "const MPI_Datatype")) for text in each.parameters
        )
    }
    assert len(carrying) > 60
    local = {name.removesuffix("_c") for name in carrying if kind_of(name) is Kind.LOCAL}
    assert local == KEEP_THEIR_BUFFERS


def test_sums_over_ranks_are_protected_or_refused_in_every_form(
    functions: list[Prototype],
) -> None:
    form = re.compile(r"_I?(all)?reduce(_init)?(_c)?$", re.IGNORECASE)
    reductions = {n.name for n in functions if form.search(n.name)}
    assert {kind_of(name) for name in reductions} == {Kind.PROTECTED}
    assert {"MPI_Allreduce", "MPI_Iallreduce", "MPI_Ireduce"} <= reductions
    others = {n.name for n in functions if "llreduce" in n.name} - reductions
    assert {kind_of(name) for name in others} <= {Kind.REFUSED}


def test_large_counts_are_judged_as_the_plain_form() -> None:
    assert kind_of("MPI_Allreduce_c") is kind_of("MPI_Allreduce") is Kind.PROTECTED
    assert kind_of("MPI_Ireduce_scatter_block_c") is Kind.COUNTED
    assert kind_of("MPIX_Allreduce_enqueue_c") is Kind.REFUSED
    assert kind_of("MPI_Type_size_c") is Kind.LOCAL


def test_handles_and_tools_are_local() -> None:
    for name in ("MPI_Comm_f2c", "MPI_Status_c2f08", "MPI_Session_toint", "MPI_T_pvar_read"):
        assert kind_of(name) is Kind.LOCAL


def test_a_new_function_is_not_judged() -> None:
    for name in ("MPI_Teleport", "MPI_Allreduce_twice", "MPIX_Send", "MPI_Send_c_c", "PMPI_Send"):
        assert kind_of(name) is None


def test_tables_do_not_overlap() -> None:
    tables = [PROTECTED, COUNTED, REFUSED, LOCAL]
    assert sum(map(len, tables)) == len(frozenset().union(*tables))
    assert BY_HAND <= COUNTED
