"""Java as Spark would start it."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from dither.data.engines.java import JAVA, check_spark
from dither.doctor.check import Check
from dither.doctor.java import checks
from dither.errors import ConfigError


def check() -> Check:
    (found,) = checks()
    return found


def fake(home: Path, says: str, status: int = 0) -> Path:
    (home / "bin").mkdir(parents=True)
    java = home / "bin" / "java"
    java.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit {status}\n")
    java.chmod(0o755)
    return home


def test_what_is_here_is_judged_as_spark_judges_it() -> None:
    if shutil.which("java") is None or importlib.util.find_spec("pyspark") is None:
        pytest.skip("Java or pyspark is not installed")
    try:
        check_spark()
        can = True
    except ConfigError:
        can = False
    assert ("Spark can start" in check().found) is can


def test_no_java_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (check().state, check().stops) == ("missing", False)
    assert "openjdk-17" in str(check().fix)


def test_a_java_home_without_java_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert (check().state, check().stops) == ("wrong", False)
    assert str(tmp_path) in check().found


@pytest.mark.parametrize(
    ("says", "status", "state"),
    [
        ('openjdk version "11.0.2"', 0, "wrong"),
        ('openjdk version "25"', 0, "wrong"),
        ("cannot find libjava.so", 1, "wrong"),
        ('openjdk version "17.0.15"', 0, "good"),
        ('openjdk version "21"', 0, "good"),
    ],
)
def test_its_version_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, status: int, state: str
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake(tmp_path, says, status)))
    found = check()
    assert found.state == state
    assert (found.fix is None) is (state == "good")
    if state == "wrong":
        assert all(str(version) in found.found for version in JAVA)
