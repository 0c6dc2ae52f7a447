"""How ``libdither_mpi.so`` is made from its C sources, and what it depends on.

Needs nothing but Python's own library, so that building the wheel can use it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dither import __version__
from dither.errors import ReduceError
from dither.mpirun import calls, generate

LIBRARY = "libdither_mpi.so"
_SECONDS = 600  # a compiler that takes longer hangs
_FLAGS = (
    *("-std=gnu11", "-O3", "-fPIC", "-shared", "-fvisibility=hidden"),
    *("-Wl,--exclude-libs,ALL", "-Wl,-z,nodelete", "-Wl,-z,defs"),
)
_LIBRARIES = ("-lpthread", "-lm", "-ldl")


@dataclass(frozen=True)
class Mpi:
    """One MPI library, by its two programs.

    Attributes:
        compiler: Its ``mpicc``.
        launcher: Its ``mpiexec``.
    """

    compiler: Path
    launcher: Path


@dataclass(frozen=True)
class Native:
    """What the library is built from.

    Attributes:
        core: ``libdither_core.a``.
        include: Folder of ``dither.h``.
        sources: Folder of the C files.
    """

    core: Path
    include: Path
    sources: Path

    def files(self) -> list[Path]:
        """Return all files that a build reads."""
        own = [path for path in self.sources.iterdir() if path.suffix in {".c", ".h"}]
        return [self.core, *sorted(self.include.glob("*.h")), *sorted(own)]


def make(mpi: Mpi, parts: Native, out: Path, more: Sequence[str] = ()) -> None:
    """Build the library.

    Args:
        mpi: For this MPI.
        parts: From these.
        out: The library's path, in an empty folder, where the generated source stays beside it.
        more: Further options of the compiler.

    Raises:
        ReduceError: The compiler fails.
    """
    wrappers = out.with_name("wrappers.c")
    wrappers.write_text(generate.source(generate.prototypes(header(mpi))))
    sources = [str(path) for path in parts.files() if path.suffix == ".c"]
    command = [
        *(str(mpi.compiler), *_FLAGS, *more),
        *("-I", str(parts.include), "-I", str(parts.sources)),
        *(*sources, str(wrappers), str(parts.core), *_LIBRARIES, "-o", str(out)),
    ]
    _run(command, "", f"to build {LIBRARY} for this MPI")


def header(mpi: Mpi) -> str:
    """Return ``mpi.h`` after the preprocessor.

    Raises:
        ReduceError: The compiler does not find it.
    """
    command = [str(mpi.compiler), "-E", "-x", "c", "-"]
    return _run(command, "#include <mpi.h>\n", "to read its mpi.h")


def _run(command: list[str], text: str, purpose: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - the user's own compiler
            command,
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _failed(command[0], purpose, str(error)) from error
    if done.returncode != 0:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        told = next((line for line in said if "error" in line or "undefined" in line), None)
        raise _failed(command[0], purpose, told or (said or [f"exit {done.returncode}"])[-1])
    return done.stdout


def _failed(compiler: str, purpose: str, got: str) -> ReduceError:
    return ReduceError(
        expected=f"{compiler} {purpose}",
        got=got[:500],
        fix="see that it builds an MPI program of one line, with a C compiler on the PATH",
    )


def key(mpi: Mpi, parts: Native) -> str:
    """Return a name for what a build depends on: MPI, machine, version and sources of dither."""
    digest = hashlib.sha256()
    shown = _shown(mpi)
    system = (platform.machine(), *platform.libc_ver())
    for text in (__version__, *system, str(mpi.compiler), shown, " ".join(_FLAGS)):
        digest.update(text.encode() + b"\0")
    for path in _mpi_files(shown):
        state = path.stat()
        digest.update(f"{path}:{state.st_size}:{state.st_mtime_ns}\0".encode())
    for path in [*parts.files(), *map(Path, (calls.__file__, generate.__file__, __file__))]:
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:24]


def _shown(mpi: Mpi) -> str:
    """Return what the compiler's wrapper would run; MPICH, Open MPI and their kin can say."""
    try:
        return _run([str(mpi.compiler), "-show"], "", "to say what it would run").strip()
    except ReduceError:  # another kind: the build will show whether it works
        return ""


def _mpi_files(shown: str) -> list[Path]:
    """Return the MPI libraries and headers that these flags name, by which a new MPI is noticed."""
    try:
        words = shlex.split(shown)
    except ValueError:
        words = []
    folders = [Path(word[2:]) for word in words if word.startswith("-L")]
    names = [f"lib{word[2:]}.so" for word in words if re.match(r"-l\w*mpi", word)]
    headers = [Path(word[2:]) / "mpi.h" for word in words if word.startswith("-I")]
    found = [folder / name for folder in folders for name in names]
    return [Path(os.path.realpath(path)) for path in [*found, *headers] if path.is_file()]
