"""Runs unchanged MPI programs, bare and under `dither mpirun`, and reads what their ranks saw."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dither.privacy.ledger import Ledger

PROGRAMS = Path(__file__).parent / "programs"
DELTA = 1e-6
# A whole launch; on a busy machine ranks take turns on its cores.
SECONDS = float(os.environ.get("DITHER_TEST_MPI_SECONDS", "120"))
_ROOT_MAY_RUN = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


@dataclass(frozen=True)
class Mpi:
    """One MPI: its compiler, its launcher, and a Python whose mpi4py uses it, if there is one."""

    name: str
    folder: Path
    python: Path | None

    def tool(self, name: str) -> Path:
        """mpicc or mpiexec."""
        return self.folder / name

    def environment(self, **more: str) -> dict[str, str]:
        """For programs of this MPI: its tools come first on PATH."""
        path = f"{self.folder}{os.pathsep}{os.environ.get('PATH', '')}"
        return {**os.environ, **_ROOT_MAY_RUN, "PATH": path, "OMP_NUM_THREADS": "1", **more}


@dataclass(frozen=True)
class Run:
    """What a finished launch left behind."""

    status: int
    out: str
    err: str
    prefix: Path
    ranks: int
    ledger: Path
    report: dict[str, Any] = field(default_factory=dict)

    def lines(self, rank: int) -> list[str]:
        """All that a rank told."""
        path = Path(f"{self.prefix}.{rank}")
        return path.read_text().splitlines() if path.exists() else []

    def told(self, rank: int, name: str) -> list[str]:
        """What stands after a name, of each line that begins with it."""
        return [
            line.removeprefix(name).strip()
            for line in self.lines(rank)
            if line == name or line.startswith(f"{name} ")
        ]

    def ended(self) -> bool:
        """Whether every rank came to its end."""
        return all("end" in self.lines(rank) for rank in range(self.ranks))

    def charged(self, rank: int, run: str | None = None) -> int:
        """Releases in a rank's ledger, of this run or of a named one."""
        name = run if run is not None else self.report["run"]
        return Ledger.open(self.ledger / f"rank-{rank}.sqlite").charged(name)

    def calls(self, name: str, kind: str) -> int:
        """A number of the report's table of calls; 0 where it has none."""
        return int(self.report["calls"].get(name, {}).get(kind, 0))


@dataclass(frozen=True)
class Programs:
    """Compiles programs once a session and runs them under one MPI."""

    mpi: Mpi
    built: Path
    home: Path
    work: Path

    def compiled(self, name: str) -> Path:
        """The executable of programs/NAME.c (or .f90), made with the MPI's own compiler."""
        executable = self.built / f"{name}.{self.mpi.name}"
        if not executable.exists():
            compile_program(self.mpi, PROGRAMS / f"{name}.c", executable)
        return executable

    def python(self) -> Path:
        """A Python with this MPI's mpi4py."""
        if self.mpi.python is None:
            pytest.skip(f"no Python with an mpi4py of {self.mpi.name}")
        return self.mpi.python

    def command(self, name: str) -> list[str]:
        """The command line of programs/NAME.c, or programs/NAME.py."""
        if name.endswith(".py"):
            return [str(self.python()), str(PROGRAMS / name)]
        return [str(self.compiled(name))]

    def bare(self, name: str, *arguments: str, ranks: int = 2) -> Run:
        """Run without dither."""
        prefix = self._prefix()
        command = [*self.command(name), str(prefix), *arguments]
        launcher = [str(self.mpi.tool("mpiexec")), "-n", str(ranks)]
        done = run_command([*launcher, *command], self.mpi.environment(), self.work)
        return Run(done.returncode, done.stdout, done.stderr, prefix, ranks, self.work)

    def private(self, name: str, *arguments: str, ranks: int = 2, **options: Any) -> Run:
        """Run under `dither mpirun`, with these options for the usual ones."""
        prefix = self._prefix()
        return self.launch([*self.command(name), str(prefix), *arguments], ranks, prefix, **options)

    def launch(self, command: Sequence[str], ranks: int, prefix: Path, **options: Any) -> Run:
        """Run any command under `dither mpirun`."""
        ledger = Path(options.pop("ledger", self.work / "accounts"))
        report = Path(f"{prefix}.json")
        words = _options(
            {
                "ranks": ranks,
                "trust": "local",
                "clip": 100.0,
                "delta": DELTA,
                "releases": 2000,
                "noise_multiplier": 0.05 if "epsilon" not in options else None,
                "ledger": ledger,
                "pool": 1 << 18,
                "json": report,
                "mpiexec": self.mpi.tool("mpiexec"),
                **options,
            }
        )
        done = run_command(
            [sys.executable, "-m", "dither", "mpirun", *words, "--", *command],
            self.mpi.environment(DITHER_HOME=str(self.home)),
            self.work,
        )
        found = json.loads(report.read_text()) if report.exists() else {}
        return Run(done.returncode, done.stdout, done.stderr, prefix, ranks, ledger, found)

    def _prefix(self) -> Path:
        taken = len(list(self.work.glob("told-*")))
        folder = self.work / f"told-{taken}"
        folder.mkdir()
        return folder / "rank"


def compile_program(mpi: Mpi, source: Path, executable: Path, more: Sequence[str] = ()) -> None:
    """Compile with all warnings as errors; atomically, as other workers may do the same."""
    part = executable.with_suffix(f".{os.getpid()}")
    flags = ["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Werror", *more]
    files = [str(source), "-o", str(part)]
    command = [str(mpi.tool("mpicc")), *flags, *files, "-lpthread", "-ldl", "-lm"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=SECONDS, env=mpi.environment()
    )
    assert done.returncode == 0, done.stderr
    part.replace(executable)


def run_command(
    command: Sequence[str], environment: Mapping[str, str], folder: Path
) -> subprocess.CompletedProcess[str]:
    """Run in a process group of its own; past the time limit, end it and fail."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(environment),
        cwd=folder,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            out, err = _end(process)
            pytest.fail(f"not done in {SECONDS:g} s: {' '.join(command)}\n{out}\n{err}")
    return subprocess.CompletedProcess(list(command), process.returncode, out, err)


def _end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Ask first, so that launchers end their ranks."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        os.killpg(process.pid, number)
        try:
            return process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            continue
    return "", "the process group would not end"


def _options(values: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in values.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, (tuple, list)):
            words += [option, *map(str, value)]
        elif value is True:
            words.append(option)
        elif value is not None and value is not False:
            words += [option, str(value)]
    return words


def find_mpich() -> Mpi | str:
    """The MPICH beside this Python, else on PATH; or why there is none."""
    here = Path(sys.executable).parent
    known = [here, *map(Path, os.environ.get("PATH", "").split(os.pathsep))]
    return _first(known, "mpich", "HYDRA", Path(sys.executable))


def find_openmpi() -> Mpi | str:
    """The Open MPI that DITHER_TEST_OPENMPI names (a bin folder), else on PATH; or why not."""
    named = os.environ.get("DITHER_TEST_OPENMPI")
    if named is not None:
        known = [Path(named)]
    else:
        known = [Path(entry) for entry in os.environ.get("PATH", "").split(os.pathsep)]
    return _first(known, "openmpi", "Open MPI", None)


def _first(folders: Sequence[Path], name: str, sign: str, python: Path | None) -> Mpi | str:
    for folder in folders:
        launcher, compiler = folder / "mpiexec", folder / "mpicc"
        if not (os.access(launcher, os.X_OK) and os.access(compiler, os.X_OK)):
            continue
        said = subprocess.run(
            [launcher, "--version"], capture_output=True, text=True, check=False, timeout=60
        )
        if sign in said.stdout + said.stderr:
            own = folder / "python"
            interpreter = python if python is not None else (own if own.exists() else None)
            return Mpi(name, folder, _with_mpi4py(interpreter))
    where = "DITHER_TEST_OPENMPI or PATH" if name == "openmpi" else "this Python's folder or PATH"
    return f"no {name} with mpicc and mpiexec in {where}"


def _with_mpi4py(python: Path | None) -> Path | None:
    if python is None:
        return None
    done = subprocess.run(
        [python, "-c", "import importlib.util as u; assert u.find_spec('mpi4py')"],
        capture_output=True,
        check=False,
        timeout=60,
    )
    return python if done.returncode == 0 else None


def deviates(noise: np.ndarray, sigma: float) -> bool:
    """Whether values are not N(0, σ²): by variance or shape, false alarm 2e-9 each.

    With 4000 values a standard deviation off by a tenth shows.
    """
    spread = float(np.sum(noise**2)) / sigma**2
    tails = (stats.chi2.cdf(spread, noise.size), stats.chi2.sf(spread, noise.size))
    shape = stats.kstest(noise / sigma, "norm").pvalue
    return bool(min(tails) < 1e-9 or shape < 1e-9)


def require_fortran(mpi: Mpi) -> Path:
    """The MPI's Fortran compiler, where it works."""
    compiler = mpi.folder / "mpifort"
    if not compiler.exists() or shutil.which("gfortran") is None:
        pytest.skip(f"no Fortran compiler for {mpi.name}")
    return compiler
