"""Builds ``libdither_mpi.so`` into the wheel, for the MPI on PATH, if there is one.

CMake runs this where none of dither's dependencies need be installed, so of dither only what makes
the library is loaded, from the sources; that needs Python alone. `dither mpirun` takes the result
if it is of the very MPI, machine and sources that it finds, and builds one itself otherwise; so
whatever fails here is said, and fails nothing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path


def main() -> int:
    """Build it into OUT/KEY, and remove what is there of other keys."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    for name in ("version", "core", "native", "out"):
        parser.add_argument(f"--{name}", required=True)
    words = parser.parse_args()
    native, out = Path(words.native), Path(words.out)
    compiler = shutil.which("mpicc")
    try:
        built = compiler and build(words.version, compiler, Path(words.core), native, out)
    except Exception as error:  # noqa: BLE001 - the wheel is whole without it
        built = None
        print(f"libdither_mpi.so is not prebuilt: {error}")  # noqa: T201
    for stale in out.glob("*"):
        if stale != built:
            shutil.rmtree(stale, ignore_errors=True)
    print(f"libdither_mpi.so: {built or 'built when first needed'}")  # noqa: T201
    return 0


def build(version: str, compiler: str, core: Path, native: Path, out: Path) -> Path:
    """Return the folder, named by what it depends on, that has the library."""
    package = module_from_spec(ModuleSpec("dither", None, is_package=True))
    package.__path__ = [str(native.parent / "src" / "dither")]
    package.__dict__["__version__"] = version
    sys.modules["dither"] = package
    from dither.mpirun import recipe  # noqa: PLC0415 - found by what is above

    mpi = recipe.Mpi(Path(compiler).absolute(), Path(compiler).with_name("mpiexec").absolute())
    parts = recipe.Native(core, native / "include", native / "mpi")
    folder = out / recipe.key(mpi, parts)
    if not (folder / recipe.LIBRARY).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work) / recipe.LIBRARY
            recipe.make(mpi, parts, made)
            made.replace(folder / recipe.LIBRARY)
    return folder


if __name__ == "__main__":
    sys.exit(main())
