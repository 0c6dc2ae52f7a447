"""MPI: its launcher and compiler, and the library that `dither mpirun` puts before programs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence

from dither.doctor.check import Check, first_line
from dither.errors import ConfigError, DitherError
from dither.files import home
from dither.mpirun.build import LIBRARY, Mpi, find_library, find_mpi
from dither.mpirun.preload import require_loads

_SECONDS = 60
_MEANS = "dither mpirun, sums over MPI"
_KINDS = (
    ("MPICH", re.compile(r"HYDRA.*?Version:\s*(\S+)", re.DOTALL)),
    ("Open MPI", re.compile(r"(?:Open MPI|OpenRTE|OpenMPI)\D*([\d.]+)")),
    ("Intel MPI", re.compile(r"Intel\(R\) MPI Library.*?Version ([^\n(]+\S)", re.DOTALL)),
)


def checks() -> Iterator[Check]:
    """Look for MPI as `dither mpirun` does, and for its library; nothing is built."""
    try:
        mpi = find_mpi()
    except ConfigError as error:
        yield Check("MPI", "missing", f"no {_short(error)}", _MEANS, error.fix)
        yield Check(LIBRARY, "missing", "no MPI to build it for", "dither mpirun", "mend MPI first")
        return
    kind = said_by(mpi)
    good = kind is not None
    yield Check(
        "MPI",
        "good" if good else "wrong",
        f"{kind or 'a launcher that does not tell its version'}: {mpi.launcher}, {mpi.compiler}",
        _MEANS,
        None if good else f"see what {mpi.launcher} --version says, or name another by --mpiexec",
    )
    yield _library(mpi)


def said_by(mpi: Mpi) -> str | None:
    """Return kind and version of an MPI, by its launcher; None where it fails."""
    text = _answer([str(mpi.launcher), "--version"])
    if text is None:
        return None
    for kind, pattern in _KINDS:
        if found := pattern.search(text):
            return f"{kind} {found[1]}"
    return first_line(text)


def _library(mpi: Mpi) -> Check:
    means = "dither mpirun"
    if not sys.platform.startswith("linux"):
        found, fix = f"{sys.platform}, not Linux", "use dither.PrivateComm in a Python program"
        return Check(LIBRARY, "missing", found, means, fix)
    try:
        built = find_library(mpi)
        if built is not None:
            require_loads(built)
            return Check(LIBRARY, "good", f"built and loads: {built}", means)
    except (DitherError, OSError) as error:
        fix = error.fix if isinstance(error, DitherError) else "install this MPI again"
        return Check(LIBRARY, "wrong", first_line(str(error)), means, fix)
    words = shlex.split(_answer([str(mpi.compiler), "-show"]) or "")
    if words and shutil.which(words[0]) is None:
        found = f"not built yet, and no {words[0]}, which {mpi.compiler} needs"
        fix = "install a C compiler (Debian and Ubuntu: gcc; conda: c-compiler)"
        return Check(LIBRARY, "wrong", found, means, fix)
    if any(letter in str(home().absolute()) for letter in " :"):
        found = f"the dynamic linker splits at the space or colon in {home().absolute()}"
        fix = "set DITHER_HOME to a path without them"
        return Check(LIBRARY, "wrong", found, means, fix)
    fix = "run dither mpirun: it builds the library when it is first needed"
    return Check(LIBRARY, "missing", "not built yet for this MPI", means, fix)


def _answer(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - the user's own MPI
            list(command),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout + done.stderr if done.returncode == 0 else None


def _short(error: ConfigError) -> str:
    return error.expected.removeprefix("an ").removeprefix("the ")
