"""Builds the C core's own test program, ``native/tests``, in one flavour or another."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).resolve().parents[2] / "native"
BUILD_SECONDS = 240
RUN_SECONDS = 240

ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREAD = ("-fsanitize=thread",)

_HELLO = '#include <stdio.h>\nint main(void) { return puts("here") < 0; }\n'


def require(*programs: str) -> None:
    """Skip where a program is missing."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"no {program} on PATH")


def require_flags(folder: Path, flags: tuple[str, ...]) -> None:
    """Skip where the compiler cannot build, or this system cannot run, a program with the flags."""
    require("cc")
    source, program = folder / "hello.c", folder / "hello"
    source.write_text(_HELLO)
    for command in (["cc", *flags, str(source), "-o", str(program)], [str(program)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode != 0:
            pytest.skip(f"{' '.join(flags)} does not work here: {done.stderr.strip()[:200]}")


def build(
    folder: Path,
    *,
    flags: tuple[str, ...] = (),
    definitions: tuple[str, ...] = (),
    native: Path = NATIVE,
) -> Path:
    """Build the program in a folder and return where it is.

    Args:
        folder: Empty folder.
        flags: Compiler flags beside the core's own.
        definitions: CMake cache entries, ``NAME=VALUE``.
        native: The core's sources.
    """
    require("cmake", "make", "cc")
    entries = [f"-D{entry}" for entry in definitions]
    configure = ["cmake", "-S", str(native / "tests"), "-B", str(folder), "-G", "Unix Makefiles"]
    run([*configure, f"-DCMAKE_C_FLAGS={' '.join(flags)}", *entries], seconds=BUILD_SECONDS)
    run(["cmake", "--build", str(folder)], seconds=BUILD_SECONDS)
    return folder / "core_test"


def run(command: list[str], *, seconds: int = RUN_SECONDS) -> str:
    """Run a command that must succeed; what it says is in the failure's message."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout
