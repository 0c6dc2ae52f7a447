"""Finds MPI, and builds ``libdither_mpi.so`` for it when first needed."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dither import __version__, _native
from dither.errors import ConfigError, ReduceError
from dither.files import home, locked, output_errors
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
        return [self.core, self.include / "dither.h", *sorted(own)]


def find_mpi(mpiexec: str | Path | None = None) -> Mpi:
    """Return the MPI of a given ``mpiexec``, else of the PATH, else of this Python environment.

    ``mpicc`` is the one beside ``mpiexec``, so that library and launcher are of one MPI; only if
    there is none, that of the PATH.

    Raises:
        ConfigError: One of them is missing.
    """
    beside_python = str(Path(sys.executable).parent)
    if mpiexec is not None:
        found = shutil.which(mpiexec)
    else:
        found = shutil.which("mpiexec") or shutil.which("mpiexec", path=beside_python)
    if found is None:
        raise ConfigError(
            expected="an mpiexec" + (" on the PATH" if mpiexec is None else f" at {mpiexec}"),
            got="none",
            fix="install MPICH or Open MPI, or pip install 'dither[mpi]', or name it by --mpiexec",
        )
    launcher = Path(found).absolute()
    folders = dict.fromkeys([launcher.parent, launcher.resolve().parent])
    compiler = next(
        (path for path in (shutil.which("mpicc", path=str(folder)) for folder in folders) if path),
        None,
    ) or shutil.which("mpicc")
    if compiler is None:
        raise ConfigError(
            expected=f"the mpicc of {launcher}, to build {LIBRARY} for this MPI",
            got="none beside it or on the PATH",
            fix="install the development part of this MPI (libmpich-dev, libopenmpi-dev, ...)",
        )
    return Mpi(Path(compiler).absolute(), launcher)


def native() -> Native:
    """Return the C sources that came with dither; in a checkout, those of the checkout.

    Raises:
        ReduceError: This installation lacks them.
    """
    installed = Path(_native.__file__).parent / "native"
    checkout = Path(__file__).resolve().parents[3] / "native"
    beside = checkout / "mpi" / "counted.h"
    found = Native(
        core=installed / "lib" / "libdither_core.a",
        include=checkout / "include" if beside.is_file() else installed / "include",
        sources=checkout / "mpi" if beside.is_file() else installed / "mpi",
    )
    missing = [path for path in (found.core, found.sources) if not path.exists()]
    if missing:
        raise ReduceError(
            expected=f"the C core and the sources of {LIBRARY} in this installation",
            got=f"no {missing[0]}",
            fix="install dither again, from its wheel or its sources",
        )
    return found


def library(
    mpi: Mpi, told: Callable[[str], None] = lambda _: None, *, sources: Native | None = None
) -> Path:
    """Return the library for an MPI, built now if no earlier build serves.

    It is kept under ``home()/mpi`` by what it depends on: MPI, machine, version and sources of
    dither. Processes that need it at once build it once.

    Args:
        mpi: The MPI to build for.
        told: Is told when it has to be built.
        sources: C sources; dither's own by default.

    Raises:
        ReduceError: The compiler fails, or sources are missing.
        OutputError: The folder cannot be written.
    """
    parts = sources or native()
    folder = home() / "mpi"
    built = folder / _key(mpi, parts) / LIBRARY
    if built.is_file():
        return built
    with locked(folder / "lock"):
        if not built.is_file():
            told(f"building {LIBRARY} for the MPI of {mpi.launcher}, once")
            with output_errors(built):
                _build(mpi, parts, built)
    return built


def _build(mpi: Mpi, parts: Native, built: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".build-", dir=built.parents[1]) as work:
        wrappers = Path(work) / "wrappers.c"
        wrappers.write_text(generate.source(generate.prototypes(header(mpi))))
        out = Path(work) / LIBRARY
        sources = [str(path) for path in parts.files() if path.suffix == ".c"]
        command = [
            *(str(mpi.compiler), *_FLAGS),
            *("-I", str(parts.include), "-I", str(parts.sources)),
            *(*sources, str(wrappers), str(parts.core), *_LIBRARIES, "-o", str(out)),
        ]
        _compile(command, built.parent)
        built.parent.mkdir(exist_ok=True)
        out.replace(built)


def header(mpi: Mpi) -> str:
    """Return ``mpi.h`` after the preprocessor.

    Raises:
        ReduceError: The compiler does not find it.
    """
    command = [str(mpi.compiler), "-E", "-x", "c", "-"]
    return _run(command, "#include <mpi.h>\n", "to read its mpi.h")


def _compile(command: list[str], folder: Path) -> None:
    _run(command, "", f"to build {LIBRARY} for this MPI, into {folder}")


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


def _key(mpi: Mpi, parts: Native) -> str:
    digest = hashlib.sha256()
    shown = _shown(mpi)
    for text in (__version__, platform.machine(), str(mpi.compiler), shown, " ".join(_FLAGS)):
        digest.update(text.encode() + b"\0")
    for path in _mpi_files(shown):
        state = path.stat()
        digest.update(f"{path}:{state.st_size}:{state.st_mtime_ns}\0".encode())
    for path in [*parts.files(), Path(calls.__file__), Path(generate.__file__)]:
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
