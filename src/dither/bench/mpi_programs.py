"""The C programs of `dither bench mpi`: built when needed, run under the launcher or without."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dither import _native
from dither.bench.launch import lines_of
from dither.bench.mpi_cases import CONTROL, ENCRYPTED, SUSTAINED, Manner, Program
from dither.errors import ReduceError
from dither.mpirun.build import Mpi, find_mpi

RANKS = 2
CLIP = 1.0
NOISE_MULTIPLIER = 8.0  # ε of about 1 for one call; speed does not depend on it
_RELEASES = 1 << 22
_DELTA = 1e-6
_SECONDS = 120.0  # to compile
_PARTS: dict[Program, tuple[str, ...]] = {
    "workload": ("workload.c", "lists.c", "bench.c"),
    "sweep": ("sweep.c", "bench.c"),
}
# Enough for a step of the largest workload, or the longest message; and where noise shall run
# out, less than a step of most has.
_READY_POOL: dict[Program, int] = {"workload": 1 << 26, "sweep": 1 << 25}
_SHORT_POOL = 1 << 23
_REPORT = "report.json"


@dataclass(frozen=True)
class Spoken:
    """What a run of a program said.

    Attributes:
        lines: Its cases, as `benchmarks/mpi/bench.c` writes them.
        report: The launcher's report; empty where the program ran without it.
        error: Why it ended, where it ended early.
        late: Whether that was because its time was over.
    """

    lines: list[dict[str, Any]]
    report: dict[str, Any]
    error: str | None = None
    late: bool = False

    @property
    def dry(self) -> float | None:
        """Share of the noise that was made within calls; None where none was drawn."""
        share: float | None = self.report.get("draws", {}).get("dry_share")
        return share

    @property
    def protected(self) -> int:
        """AllReduces that the library took."""
        calls: dict[str, dict[str, int]] = self.report.get("calls", {})
        return sum(counts.get("protected", 0) for counts in calls.values())


def sources() -> Path:
    """Return the folder of the C programs: of the checkout, else of the installation.

    Raises:
        ReduceError: This installation lacks them.
    """
    checkout = Path(__file__).resolve().parents[3] / "benchmarks" / "mpi"
    installed = Path(_native.__file__).parent / "native" / "bench"
    for folder in (checkout, installed):
        if all((folder / part).is_file() for parts in _PARTS.values() for part in parts):
            return folder
    raise ReduceError(
        expected="the C programs of benchmarks/mpi in this installation",
        got="none",
        fix="install dither again, or run the bench from a checkout",
    )


class Programs:
    """Programs built for one MPI.

    Args:
        mpi: What builds and starts them.
        folder: Where they are built.
    """

    def __init__(self, mpi: Mpi, folder: Path) -> None:
        self.mpi = mpi
        self.folder = folder

    def build(self, program: Program) -> Path:
        """Return the program, compiled at first use.

        Raises:
            ReduceError: The compiler fails.
        """
        built = self.folder / program
        if not built.is_file():
            origin = sources()
            files = [str(origin / part) for part in _PARTS[program]]
            compile_ = [str(self.mpi.compiler), "-std=c11", "-O2", *files, "-lm", "-o", str(built)]
            try:
                done = subprocess.run(  # noqa: S603 - our own sources
                    compile_, capture_output=True, text=True, timeout=_SECONDS, check=False
                )
                said = done.stderr.strip().splitlines() if done.returncode else []
            except (OSError, subprocess.TimeoutExpired) as error:
                said = [str(error)]
            if not built.is_file():
                raise ReduceError(
                    expected=f"{self.mpi.compiler.name} to build the program {program}",
                    got=next((line for line in said if "error" in line), "")
                    or (said[-1] if said else "no program"),
                    fix="see that this mpicc compiles C11",
                )
        return built

    def run(
        self, program: Program, manner: Manner, arguments: Sequence[str], *, limit: float
    ) -> Spoken:
        """Run a program on all ranks and return what it said, up to where it failed if it did.

        Args:
            program: Which.
            manner: Under which protection.
            arguments: For it.
            limit: Seconds after which the ranks are ended.
        """
        words = [*arguments, *_told(program, manner)]
        with tempfile.TemporaryDirectory(dir=self.folder) as kept:
            report = Path(kept) / _REPORT
            lines: list[dict[str, Any]] = []
            error = None
            began = time.monotonic()
            try:
                start = [str(self.mpi.launcher), "-n", str(RANKS)]
                if manner != CONTROL:
                    start = self._launcher(program, manner, Path(kept))
                said = lines_of([*start, str(self.build(program)), *words], limit=limit)
                # Keeps those before a failure; mpiexec writes of failures to standard output too.
                lines.extend(json.loads(line) for line in said if _is_case(line))
            except ReduceError as failure:
                error = failure.got
            late = error is not None and time.monotonic() - began >= limit
            told: dict[str, Any] = {}
            with suppress(OSError, ValueError):  # none, or empty, where the launcher ended early
                told = json.loads(report.read_text())
            return Spoken(lines, told, error, late)

    def _launcher(self, program: Program, manner: Manner, kept: Path) -> list[str]:
        options = {
            "-n": RANKS,
            "--trust": "local",
            "--clip": CLIP,
            "--noise-multiplier": NOISE_MULTIPLIER,
            "--delta": _DELTA,
            "--releases": _RELEASES,
            "--ledger": kept / "accounts",
            "--report": kept / "report.txt",
            "--mpiexec": self.mpi.launcher,
            "--pool": _pool(program, manner),
            "--json": kept / _REPORT,
        }
        words = [str(word) for option in options.items() for word in option]
        if manner == ENCRYPTED:
            words.append("--encrypted")
        if manner != SUSTAINED:
            words.append("--warm-pool")
        return [sys.executable, "-m", "dither", "mpirun", *words, "--"]


@contextmanager
def programs() -> Iterator[Programs]:
    """Programs for the MPI at hand, in a folder that is removed at the end.

    Raises:
        ConfigError: There is no MPI.
        ReduceError: This installation lacks the programs' sources.
    """
    mpi = find_mpi()
    sources()
    with tempfile.TemporaryDirectory(prefix="dither-bench-") as folder:
        yield Programs(mpi, Path(folder))


def _is_case(line: str) -> bool:
    return line.startswith("{") and line.endswith("}")  # else cut off by the program's end


def _pool(program: Program, manner: Manner) -> int:
    if manner != SUSTAINED:
        return _READY_POOL[program]
    # Short messages never empty a pool within a bench: without one they draw their noise always.
    return 0 if program == "sweep" else _SHORT_POOL


def _told(program: Program, manner: Manner) -> list[str]:
    """Return the options that say how long contributions are, and when noise is to run out."""
    words = ["--norm", str(norm(manner)), "--kept", str(kept(manner))]
    if manner == SUSTAINED:
        words += ["--drain", str(max(1, _pool(program, manner)))]
    return words


def norm(manner: Manner) -> float:
    """Return the L2 norm of contributions: twice the bound where they are clipped."""
    return 2.0 * CLIP if is_private(manner) else CLIP


def kept(manner: Manner) -> float:
    """Return what clipping leaves of them."""
    return CLIP / norm(manner)


def is_private(manner: Manner) -> bool:
    """Return whether sums are clipped and noisy."""
    return manner not in {ENCRYPTED, CONTROL}
