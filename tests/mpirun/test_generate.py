"""The wrappers that count: read from mpi.h, complete, and passing all arguments on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.mpirun.harness import Mpi

from dither.errors import ReduceError
from dither.mpirun import build, recipe
from dither.mpirun.calls import BY_HAND, Kind, base_name, kind_of
from dither.mpirun.generate import Prototype, counted, prototypes, source

SOURCES = Path(__file__).resolve().parents[2] / "native" / "mpi"
STRICT = ["-std=gnu11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I", str(SOURCES)]
STUB = """
#include <mpi.h>
#include <string.h>
#include "counted.h"
int dither_is_mpi(const void *caller) { return caller == 0; }
int dither_allows(const char *name) { return !strcmp(name, "MPI_Comm_spawn_multiple"); }
int dither_refuse(unsigned number, MPI_Comm comm, const char *text) {
    dither_refused[number] += comm == MPI_COMM_SELF && strstr(text, " refused: ");
    return MPI_ERR_OP;
}
"""
HEADER = """
# 1 "mpi.h"
typedef int MPI_Comm;
typedef int (MPI_Copy_function)(MPI_Comm, int, void *);
extern int MPI_Send(const void *buf, int count, MPI_Datatype type, int dest, int tag,
                    MPI_Comm comm) __attribute__((visibility("default"))) __attribute__((a(1,3)));
int MPI_Send_c(const void *buf, MPI_Count count, MPI_Datatype type, int dest, int tag,
               MPI_Comm comm);
int MPI_Allreduce(const void *a, void *b, int n, MPI_Datatype t, MPI_Op op, MPI_Comm comm);
int MPI_Alltoallw(const void *a, const int ac[], const int ad[], const MPI_Datatype at[], void *b,
                  const int bc[], const int bd[], const MPI_Datatype bt[], MPI_Comm comm);
int MPI_Op_create(void (*function)(void *, int), int commute, MPI_Op *op);
int MPI_Group_range_incl(MPI_Group group, int n, int ranges[][3], MPI_Group *out);
double MPI_Wtime(void);
int MPI_Start(MPI_Request *request);
int MPI_Teleport(void *where);
int MPI_Comm_spawn(const char *command, char *argv[], int n, MPI_Comm comm);
int PMPI_Send(const void *buf, int count);
"""


def run(*command: str | Path) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def functions(mpi: Mpi) -> list[Prototype]:
    return prototypes(recipe.header(build.Mpi(mpi.tool("mpicc"), mpi.tool("mpiexec"))))


@pytest.fixture
def generated(functions: list[Prototype], tmp_path: Path) -> Path:
    (tmp_path / "stub.c").write_text(STUB)
    (tmp_path / "wrappers.c").write_text(source(functions))
    return tmp_path / "wrappers.c"


def test_functions_are_read_with_their_parameters() -> None:
    found = {each.name: each for each in prototypes(HEADER)}
    assert set(found) == {
        *("MPI_Send", "MPI_Send_c", "MPI_Allreduce", "MPI_Alltoallw", "MPI_Op_create", "MPI_Wtime"),
        *("MPI_Group_range_incl", "MPI_Start", "MPI_Teleport", "MPI_Comm_spawn"),
    }
    assert found["MPI_Send"].parameters[0] == "const void *buf"
    assert found["MPI_Send_c"].arguments == ("buf", "count", "type", "dest", "tag", "comm")
    assert found["MPI_Alltoallw"].arguments == (
        "a",
        "ac",
        "ad",
        "at",
        "b",
        "bc",
        "bd",
        "bt",
        "comm",
    )
    assert found["MPI_Wtime"].parameters == ()
    assert found["MPI_Wtime"].returns == "double"
    assert not found["MPI_Op_create"].fortran
    assert not found["MPI_Comm_spawn"].fortran


def test_what_moves_data_or_is_unknown_is_counted() -> None:
    names = {each.name for each in counted(prototypes(HEADER))}
    assert names == {"MPI_Send", "MPI_Send_c", "MPI_Alltoallw", "MPI_Teleport", "MPI_Comm_spawn"}


def test_forms_of_one_function_share_a_number() -> None:
    text = source(prototypes(HEADER))
    assert text.count('"MPI_Send",') == 1
    assert '"MPI_Send_c"' not in text
    start = text.index("int MPI_Send(")
    assert text[start : start + 400].count("DITHER_COUNT(0);") == 2


@pytest.mark.parametrize(
    "text",
    [
        "int MPI_Send(void *buf);",
        "int MPI_Allreduce(void *a, MPI_Comm comm); int MPI_Send(const void *, int);",
        "int MPI_Allreduce(void *a, ",
    ],
)
def test_a_header_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ReduceError, match=r"mpi\.h"):
        prototypes(text)


def test_wrappers_compile_without_a_warning(mpi: Mpi, generated: Path) -> None:
    run(mpi.tool("mpicc"), *STRICT, "-c", generated, "-o", generated.with_suffix(".o"))


def test_every_counted_form_is_exported_and_nothing_else(
    mpi: Mpi, functions: list[Prototype], generated: Path
) -> None:
    library = generated.with_name("library.so")
    stub = generated.with_name("stub.c")
    flags = ["-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-z,defs"]
    run(mpi.tool("mpicc"), *STRICT, *flags, generated, stub, "-o", library)
    lines = run("nm", "-D", "--defined-only", library).splitlines()
    symbols = {line.split()[-1] for line in lines}
    wanted = {
        each.name
        for each in functions
        if kind_of(each.name) in {Kind.COUNTED, Kind.REFUSED}
        and base_name(each.name) not in BY_HAND
    }
    assert {name for name in symbols if name.startswith("MPI_") and not name.isupper()} | {
        name for name in symbols if name.startswith("MPIX_") and not name.isupper()
    } == wanted
    assert len(wanted) > 100
    if mpi.name == "openmpi":
        assert {"mpi_bcast_", "mpi_bcast__", "mpi_bcast", "MPI_BCAST", "mpi_bcast_f08_"} <= symbols
    else:
        assert not any(name.startswith("mpi_") for name in symbols)


def test_fortran_names_count_and_pass_their_arguments(mpi: Mpi, generated: Path) -> None:
    if mpi.name != "openmpi":
        pytest.skip("MPICH's Fortran names come by C's")
    program = generated.with_name("fortran.c")
    program.write_text("""
#include <stdio.h>
#include "counted.h"
extern void mpi_bcast_(void *, void *, void *, void *, void *, void *);
extern void MPI_BCAST(void *, void *, void *, void *, void *, void *);
static int sum;
void pmpi_bcast_(void *a, void *b, void *c, void *d, void *e, void *f);
void pmpi_bcast_(void *a, void *b, void *c, void *d, void *e, void *f) {
    sum = *(int *)a + 10 * *(int *)b + 100 * *(int *)c + 1000 * *(int *)d + 10000 * *(int *)e;
    *(int *)f = 7;
}
int main(int count, char **words) {
    int v[6] = {1, 2, 3, 4, 5, 0};
    (count > 1 ? MPI_BCAST : mpi_bcast_)(v, v + 1, v + 2, v + 3, v + 4, v + 5);
    for (unsigned i = 0; i < dither_counted_total; i++)
        if (dither_counted[i]) printf("%s %d %d %d\\n", dither_counted_names[i],
                                      (int)dither_counted[i], sum, v[5]);
    return !words;
}
""")
    executable, stub = generated.with_name("fortran"), generated.with_name("stub.c")
    run(mpi.tool("mpicc"), "-I", SOURCES, generated, stub, program, "-o", executable)
    assert run(executable) == "MPI_Bcast 1 54321 7\n"
    done = subprocess.run(
        [executable, "x"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0
    assert "MPI_BCAST" in done.stderr
    assert "Fortran library is not loaded" in done.stderr
