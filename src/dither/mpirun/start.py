"""What is started, found before anything slow is loaded, so that mistakes answer at once."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from dither.errors import ConfigError
from dither.mpirun.build import Mpi, find_mpi
from dither.mpirun.options import MpirunConfig
from dither.mpirun.preload import require_preloadable

# The dynamic linker only warns of a library that it cannot read, and the rank would run bare:
# so a rank is not started where library ($0) or plan ($1) cannot be read. No variable is set.
_CHECK = (
    '[ -r "$0" ] && [ -r "$1" ] || { echo "dither: no rank is started on $(uname -n): it cannot '
    "read $0 and $1 there, and would run unprotected; start all ranks on the host of "
    'dither mpirun, as the user of it" >&2; exit 1; }; shift; exec "$@"'
)


@dataclass(frozen=True)
class Found:
    """What a start needs of this machine.

    Attributes:
        program: Path of the program.
        mpi: That starts it.
    """

    program: str
    mpi: Mpi


def look(options: MpirunConfig) -> Found:
    """Check the options, and find the program and MPI.

    Raises:
        ConfigError: An option, the program or MPI is missing or wrong.
    """
    options.check()
    _require_linux()
    return Found(find_program(options.program[0]), find_mpi(options.mpiexec))


def full_command(options: MpirunConfig, found: Found, preload: Path, plan: Path) -> list[str]:
    """Return what is started: the library is set for the program alone, not for mpiexec.

    Each rank is a shell that sees first that it can read both files, and becomes the program.
    """
    earlier = os.environ.get("LD_PRELOAD", "")
    environment = [
        f"LD_PRELOAD={preload}{':' if earlier else ''}{earlier}",
        f"DITHER_MPI_PLAN={plan}",
    ]
    env = shutil.which("env") or "env"
    start = [str(found.mpi.launcher), "-n", str(options.ranks), *options.mpi_words]
    # Others than bash lose what is in the environment under no shell's names, as functions are.
    bash = shutil.which("bash")
    check = [*([bash, "-p"] if bash else ["sh"]), "-c", _CHECK, str(preload), str(plan)]
    # env would take a name with = for a variable.
    shell = ["sh", "-c", 'exec "$0" "$@"'] if "=" in found.program else []
    return [*start, *check, env, *environment, *shell, found.program, *options.program[1:]]


def find_program(name: str) -> str:
    """Return the program's path, if it can be started with a library before it.

    Raises:
        ConfigError: It is not there, not executable, or linked so that no library can be before it.
    """
    found = shutil.which(name)
    if found is None:
        there = Path(name).exists() and "/" in name
        raise ConfigError(
            expected=f"a program {name}",
            got="a file that is not executable" if there else "none of that name",
            fix="chmod +x it, or start it by its interpreter"
            if there
            else "give its path, for instance ./app; options of dither come before it",
        )
    require_preloadable(Path(found))
    return name if "/" in name else str(Path(found).absolute())


def _require_linux() -> None:
    if not sys.platform.startswith("linux"):
        raise ConfigError(
            expected="Linux, whose dynamic linker puts a library before a program's MPI",
            got=sys.platform,
            fix="run it on Linux, or use dither.PrivateComm in a Python program",
        )
