"""Finds MPI, and builds ``libdither_mpi.so`` for it when first needed."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from dither import _native
from dither.errors import ConfigError, ReduceError
from dither.files import home, locked, output_errors
from dither.mpirun.recipe import LIBRARY, Mpi, Native, key, make

__all__ = ["LIBRARY", "Mpi", "Native", "find_library", "find_mpi", "library", "native"]


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
    installed = _installed()
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


def _installed() -> Path:
    return Path(_native.__file__).parent / "native"


def library(
    mpi: Mpi,
    told: Callable[[str], None] = lambda _: None,
    *,
    sources: Native | None = None,
    prebuilt: Path | None = None,
) -> Path:
    """Return the library for an MPI, built now if no earlier build serves.

    It is kept under ``home()/mpi`` by what it depends on: MPI, machine, version and sources of
    dither. Processes that need it at once build it once. The wheel has one by the same name, if it
    was built where this very MPI is.

    Args:
        mpi: The MPI to build for.
        told: Is told when it has to be built.
        sources: C sources; dither's own by default.
        prebuilt: Folder of what came with the wheel; this installation's by default.

    Raises:
        ReduceError: The compiler fails, or sources are missing.
        OutputError: The folder cannot be written.
    """
    parts = sources or native()
    came, built = _places(key(mpi, parts), prebuilt)
    for each in (came, built):
        if each.is_file():
            return each
    folder = built.parents[1]
    with locked(folder / "lock"):
        if not built.is_file():
            told(f"building {LIBRARY} for the MPI of {mpi.launcher}, once")
            with output_errors(built):
                _build(mpi, parts, built)
    return built


def find_library(mpi: Mpi) -> Path | None:
    """Return the library for an MPI where it is built already, and build nothing.

    Raises:
        ReduceError: Sources are missing.
    """
    return next((path for path in _places(key(mpi, native())) if path.is_file()), None)


def _places(name: str, prebuilt: Path | None = None) -> tuple[Path, Path]:
    """Return where a library of this name came with the wheel, and where it is built."""
    came = prebuilt or _installed() / "prebuilt"
    return came / name / LIBRARY, home() / "mpi" / name / LIBRARY


def _build(mpi: Mpi, parts: Native, built: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".build-", dir=built.parents[1]) as work:
        out = Path(work) / LIBRARY
        make(mpi, parts, out)
        built.parent.mkdir(exist_ok=True)
        out.replace(built)
