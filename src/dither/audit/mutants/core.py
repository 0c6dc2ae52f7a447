"""Builds copies of the C core, each with one defect, and runs the core's own tests on them.

Such a core is only ever built in a temporary folder: none can come into a wheel.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from dither.audit.mutants.mutant import CoreMutant, Outcome
from dither.errors import ConfigError

SECONDS = 240
_NO_SUCH_PART = 2


def run_core(
    mutants: Sequence[CoreMutant], root: Path, told: Callable[[str], None]
) -> Iterator[Outcome]:
    """Build and run each mutant; yield what became of it.

    Args:
        mutants: Which.
        root: The checkout.
        told: Called with what happens now.

    Raises:
        ConfigError: No compiler, or a mutant's place is not there any more.
    """
    for program in ("cmake", "make", "cc"):
        if shutil.which(program) is None:
            raise ConfigError(
                expected="cmake, make and cc, to build the C core with a defect",
                got=f"no {program} on PATH",
                fix="install it, or name mutants of the Python code",
            )
    for flags, group in groupby(sorted(mutants, key=_flags), key=_flags):
        with tempfile.TemporaryDirectory(prefix="dither-core-mutants-") as folder:
            native = Path(folder) / "native"
            shutil.copytree(root / "native", native)
            yield from _run_group(list(group), _Build(native, Path(folder) / "build", flags), told)


def _flags(mutant: CoreMutant) -> tuple[str, ...]:
    return mutant.flags


class _Build:
    """A build of the core's test program, brought up to date after each change."""

    def __init__(self, native: Path, folder: Path, flags: tuple[str, ...]) -> None:
        self.native = native
        self._folder = folder
        self._flags = flags
        self._configured = False

    def make(self) -> str | None:
        """Return what the compiler says where it fails."""
        commands = [["cmake", "--build", str(self._folder)]]
        if not self._configured:
            source, flags = str(self.native / "tests"), " ".join(self._flags)
            configure = ["cmake", "-S", source, "-B", str(self._folder), "-G", "Unix Makefiles"]
            commands.insert(0, [*configure, f"-DCMAKE_C_FLAGS={flags}"])
        for command in commands:
            done = _run(command)
            if done.returncode != 0:
                return f"{done.stdout[-1000:]}{done.stderr[-2000:]}"
        self._configured = True
        return None

    def test(self, part: str) -> subprocess.CompletedProcess[str]:
        return _run([str(self._folder / "core_test"), part])


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own build
        command, capture_output=True, text=True, check=False, timeout=SECONDS
    )


def _run_group(
    mutants: list[CoreMutant], build: _Build, told: Callable[[str], None]
) -> Iterator[Outcome]:
    told("the core: as it is")
    fault = build.make()
    passes = {
        part: fault is None and build.test(part).returncode == 0
        for part in sorted({mutant.part for mutant in mutants})
    }
    for mutant in mutants:
        if not passes[mutant.part]:
            why = f"the part does not pass without the mutant: {fault or mutant.part}"
            yield Outcome(mutant, killed=False, reached=None, seconds=0.0, why=why)
            continue
        told(mutant.name)
        yield _run_one(mutant, build)


def _run_one(mutant: CoreMutant, build: _Build) -> Outcome:
    source = build.native / "src" / mutant.path
    text = source.read_text()
    if mutant.right not in text:
        raise ConfigError(
            expected=f"{mutant.right!r} in {mutant.target}",
            got="none",
            fix=f"the code has moved on: give the mutant {mutant.name} its new place",
        )
    start = time.monotonic()
    source.write_text(text.replace(mutant.right, mutant.wrong))
    try:
        fault = build.make()
        killed, why = (False, f"it does not build: {fault}") if fault else _judge(mutant, build)
    finally:
        source.write_text(text)
    return Outcome(mutant, killed, None, time.monotonic() - start, why)


def _judge(mutant: CoreMutant, build: _Build) -> tuple[bool, str]:
    try:
        done = build.test(mutant.part)
    except subprocess.TimeoutExpired:
        return False, "out of time"
    said = " ".join((done.stdout + done.stderr).split())[-300:]
    if done.returncode == 0:
        return False, "the part passed"
    return done.returncode != _NO_SUCH_PART, said
