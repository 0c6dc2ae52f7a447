"""What dither requires is read from its own metadata, and compared by version."""

from __future__ import annotations

import tomllib
from importlib.metadata import metadata, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dither.doctor.check import Check
from dither.doctor.packages import EXTRAS, checks, gaps, requirement, requirements

ROOT = Path(__file__).resolve().parents[2]


def found(name: str) -> Check:
    return {check.name: check for check in checks()}[name]


def installed(folder: Path, name: str, of: str, *lines: str) -> None:
    """Write what an installer writes of a package."""
    where = folder / f"{name}-{of}.dist-info"
    where.mkdir(parents=True)
    head = ("Metadata-Version: 2.1", f"Name: {name}", f"Version: {of}")
    (where / "METADATA").write_text("\n".join([*head, *lines]) + "\n")


def test_every_extra_of_users_is_looked_at() -> None:
    assert set(EXTRAS) == {*(metadata("dither").get_all("Provides-Extra") or ())} - {"dev", "docs"}


def test_what_is_asked_is_what_the_project_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    said = {each.name: each for each in map(Requirement, project["dependencies"])}
    assert requirement("torch") == said["torch"]
    extra = project["optional-dependencies"]["track"]
    assert {each.name for each in requirements("track")} == {Requirement(t).name for t in extra}
    assert not {each.name for each in requirements()} & {each.name for each in requirements("mpi")}


def test_this_environment_has_what_dither_needs() -> None:
    assert found("Python").state == "good"
    assert found("packages").state == "good"
    assert version("dither") in found("packages").found


def test_gaps_are_by_presence_and_version() -> None:
    asked = [Requirement(t) for t in ("numpy<1", "numpy>=2", "nobody-has-this-package")]
    absent, unfit = gaps(asked)
    assert absent == ["nobody-has-this-package"]
    assert unfit == [f"numpy {version('numpy')}, not <1"]


def test_an_old_package_is_wrong_and_its_mend_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "duckdb", "0.1")
    installed(tmp_path, "opendp", "0.1")
    monkeypatch.syspath_prepend(tmp_path)
    needed, extra = found("packages"), found("extra opendp")
    assert needed.stops
    assert "duckdb 0.1" in needed.found
    assert needed.fix is not None
    assert needed.fix.startswith("pip install 'duckdb")
    assert extra.state == "wrong"
    assert not extra.stops
    assert extra.fix == "pip install 'dither[opendp]'"


def test_a_missing_extra_is_no_fault_and_a_missing_need_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = 'Requires-Dist: nobody-has-this; extra == "bench"', "Requires-Dist: nor-this>=2"
    installed(tmp_path, "dither", "9", "Requires-Python: >=99", *asks)
    monkeypatch.syspath_prepend(tmp_path)
    extra = found("extra bench")
    assert (extra.state, extra.stops) == ("missing", False)
    assert extra.found == "no nobody-has-this"
    assert found("packages").stops
    assert found("packages").fix == "pip install 'nor-this>=2'"
    assert found("Python").stops
