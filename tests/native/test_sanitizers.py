"""The C core's own tests, ``native/tests``, under the compiler's sanitizers.

The program compares with plain C or with other parts of the core, for fixed keys. Chance enters
where fresh keys must differ (false alarm below 2^-68) and where a consumed block of the pool must
have left the ring (below 2^-50).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.native.building import ADDRESS, THREAD, build, require_flags, run

PARTS = ("codec", "exact", "key", "lattice", "norm", "paths", "pool", "shm")


@pytest.fixture(scope="module")
def checked_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_flags(tmp_path_factory.mktemp("hello"), ADDRESS)
    return build(tmp_path_factory.mktemp("address"), flags=(*ADDRESS, "-g1"))


@pytest.mark.xdist_group("address_sanitizer")
@pytest.mark.parametrize("part", PARTS)
def test_no_address_or_undefined_behaviour_is_found(checked_program: Path, part: str) -> None:
    assert f"{part} passed" in run([str(checked_program), part])


@pytest.mark.xdist_group("address_sanitizer")
def test_every_part_is_named_here(checked_program: Path) -> None:
    source = (Path(__file__).resolve().parents[2] / "native/tests/main.c").read_text()
    assert all(f'{{"{part}", test_{part}}}' in source for part in PARTS)
    assert source.count(", test_") == len(PARTS)


@pytest.mark.full
def test_no_data_race_is_found(tmp_path: Path) -> None:
    require_flags(tmp_path, THREAD)
    program = build(tmp_path / "thread", flags=(*THREAD, "-g1"))
    said = run([str(program), "pool", "shm"])
    assert "pool passed" in said
    assert "shm passed" in said
