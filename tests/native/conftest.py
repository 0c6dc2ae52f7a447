"""The C core's test program, built once for the tests that ask it things."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.native.building import build, require


@pytest.fixture(scope="session")
def core_program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Command of ``native/tests``, built with the core's own compiler flags."""
    return [str(build(tmp_path_factory.mktemp("core_test")))]


@pytest.fixture(scope="session")
def arm_program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The same for 64-bit Arm, in user-mode emulation."""
    require("aarch64-linux-gnu-gcc", "qemu-aarch64")
    program: Path = build(
        tmp_path_factory.mktemp("arm"),
        definitions=(
            "CMAKE_SYSTEM_NAME=Linux",
            "CMAKE_SYSTEM_PROCESSOR=aarch64",
            "CMAKE_C_COMPILER=aarch64-linux-gnu-gcc",
            "CMAKE_EXE_LINKER_FLAGS=-static",
        ),
    )
    return ["qemu-aarch64", str(program)]
